//! SIGKILL, which no process can answer.

use std::time::Duration;

use rollout::random::{Key, Purpose};

use crate::process::{ATTEMPTS, Moment, StageRun};
use crate::support::Workspace;

/// Kills of each stage.
fn kills() -> u64 {
    match std::env::var("COLLIMATE_KILLS") {
        Err(_) => 1,
        Ok(text) => text
            .parse()
            .unwrap_or_else(|e| panic!("COLLIMATE_KILLS = {text:?}: {e}")),
    }
}

/// The `kill`-th of `kills` moments in a stage of `lines` lines: a draw from its part of the middle, where a checkpoint lies behind
/// and steps ahead.
fn moment(key: Key, kill: u64, kills: u64, attempt: u64, lines: usize) -> Moment {
    let place = (kill as f64 + key.uniform(kill, 2 * attempt)) / kills as f64;
    Moment {
        lines: ((0.2 + 0.6 * place) * lines as f64) as usize,
        delay: Duration::from_micros(key.below(kill, 2 * attempt + 1, 5000)),
    }
}

/// Starts the run over and over, killing it each time; returns the moments at which it was. If it should once end by itself, all starts
/// over with other moments.
fn kill_repeatedly(run: &StageRun, key: Key, lines: usize) -> Vec<Moment> {
    let kills = kills();
    for attempt in 0..ATTEMPTS {
        let moments: Vec<Moment> = (0..kills)
            .map(|kill| moment(key, kill, kills, attempt, lines))
            .collect();
        for &moment in &moments {
            let mut child = run.start_until(moment);
            child.kill().expect("a process to kill");
            child.wait().expect("its end");
        }
        if !run.is_done() {
            return moments;
        }
        run.forget();
    }
    panic!(
        "{}: {ATTEMPTS} times it ended before it was killed",
        run.stage
    )
}

/// One run to its end, another killed and continued: both leave the same.
fn assert_continues(stage: &str, purpose: Purpose, flags: &str) {
    let workspace = Workspace::trained();
    let run = |name| StageRun {
        workspace: &workspace,
        stage,
        name,
        flags,
    };
    let (unbroken, killed) = (run("unbroken"), run("killed"));
    unbroken.complete();
    let lines = workspace.metrics("unbroken", stage).len();
    let moments = kill_repeatedly(&killed, Key::new(11, purpose), lines);
    killed.complete();
    killed.assert_same(&unbroken, &format!("killed at {moments:?}"));
}

#[test]
fn pretraining_continues_to_the_same_bits() {
    assert_continues("pretrain", Purpose::Init, "--set pretrain.max_steps=80");
}

#[test]
fn fine_tuning_continues_to_the_same_bits() {
    assert_continues("sft", Purpose::Shuffle, "--set sft.max_steps=80");
}

#[test]
fn fine_tuning_with_early_stopping_continues_to_the_same_bits() {
    // The best weights so far are part of what must survive.
    let flags = "--set sft.max_steps=80 --set sft.early_stopping_patience=30 --set sft.eval_steps=3 --set sft.learning_rate=3e-2";
    assert_continues("sft", Purpose::Mixture, flags);
}

#[test]
fn the_reward_model_continues_to_the_same_bits() {
    assert_continues("reward", Purpose::Sample, "--set reward.max_steps=80");
}

#[test]
fn preference_tuning_continues_to_the_same_bits() {
    // The log-probs of the reference and the best weights so far are part of what must survive.
    let flags =
        "--set dpo.max_steps=80 --set dpo.early_stopping_patience=30 --set dpo.eval_steps=3";
    assert_continues("dpo", Purpose::Init, flags);
}

#[test]
fn ppo_continues_to_the_same_bits() {
    assert_continues(
        "ppo",
        Purpose::PpoShuffle,
        "--set ppo.max_steps=30 --set ppo.save_steps=4",
    );
}

#[test]
fn ppo_with_fixed_score_scale_continues_to_the_same_bits() {
    // A judge watches too: what it has seen is part of what must survive.
    let flags = "--set ppo.max_steps=30 --set ppo.save_steps=4 --set ppo.score_normalization=reference --set ppo.num_samples_per_prompt=2 \
                 --set ppo.judge_model=models/reward --set ppo.eval_steps=3";
    assert_continues("ppo", Purpose::Evaluation, flags);
}
