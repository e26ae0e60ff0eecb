//! SIGKILL, which a process cannot handle.

use std::fs;
use std::time::Duration;

use collimate::random::Purpose;
use kernels::random::Key;
use kernels::random::rand::Rng;

use crate::orpo_table::ORPO;
use crate::process::{ATTEMPTS, Moment, StageRun};
use crate::support::{Line, Workspace};

/// A PPO run of short samples that are often equal, so that dynamic sampling has many groups to
/// replace.
pub const STATEFUL: &str = "--set ppo.max_steps=30 --set ppo.save_steps=4 \
                            --set ppo.kl_controller=adaptive --set ppo.kl_target=0.5 \
                        --set ppo.kl_horizon=200.0 --set ppo.score_normalization=running \
                        --set ppo.num_samples_per_prompt=2 \
                        --set ppo.dynamic_sampling=2 --set ppo.top_k=2 --set ppo.temperature=0.7 \
                        --set ppo.max_new_tokens=3";

/// Number of kills of each stage.
fn kills() -> u64 {
    match std::env::var("COLLIMATE_KILLS") {
        Err(_) => 1,
        Ok(text) => text
            .parse()
            .unwrap_or_else(|e| panic!("COLLIMATE_KILLS = {text:?}: {e}")),
    }
}

/// The `kill`-th of `kills` moments in a stage of `lines` log lines: random within its part of the
/// middle, with a checkpoint before it and steps after it.
fn moment(key: Key, kill: u64, kills: u64, attempt: u64, lines: usize) -> Moment {
    let place = (kill as f64 + key.uniform(kill, 2 * attempt)) / kills as f64;
    Moment {
        lines: ((0.2 + 0.6 * place) * lines as f64) as usize,
        delay: Duration::from_micros(key.stream(kill, 2 * attempt + 1).random_range(0..5000)),
    }
}

/// Starts the run again and again and kills it each time; returns the moments of the kills. Each
/// process must continue where the one before it had saved. If a process ends by itself, everything
/// starts over with other moments.
fn kill_repeatedly(run: &StageRun, key: Key, lines: usize) -> Vec<Moment> {
    let kills = kills();
    for attempt in 0..ATTEMPTS {
        let moments: Vec<Moment> = (0..kills)
            .map(|kill| moment(key, kill, kills, attempt, lines))
            .collect();
        for &moment in &moments {
            let left = run.left();
            let mut child = run.start_until(moment);
            child.kill().expect("a process to kill");
            child.wait().expect("its end");
            left.assert_continued_by_now(run);
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

/// Asserts that an uninterrupted run leaves the same files as one that was killed and continued
/// from its newest checkpoint. Returns the metrics of the first.
fn assert_continues(stage: &str, purpose: Purpose, flags: &str) -> Vec<Line> {
    let workspace = Workspace::trained();
    let config = fs::read_to_string(workspace.path("config.toml")).expect("a configuration");
    workspace.write("config.toml", &(config + ORPO));
    let run = |name| StageRun {
        workspace: &workspace,
        stage,
        name,
        flags,
    };
    let (unbroken, killed) = (run("unbroken"), run("killed"));
    unbroken.complete();
    let lines = workspace.metrics("unbroken", stage);
    let moments = kill_repeatedly(&killed, Key::new(11, purpose), lines.len());
    let left = killed.left();
    assert!(
        left.timed_steps() > 0,
        "{stage}: no step lay behind: {left:?}"
    );
    killed.continue_from(&left);
    killed.assert_same(&unbroken, &format!("killed at {moments:?}"));
    lines
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
    // The best weights so far must survive.
    let flags = "--set sft.max_steps=80 --set sft.early_stopping_patience=30 \
                 --set sft.eval_steps=3 --set sft.learning_rate=3e-2";
    assert_continues("sft", Purpose::Mixture, flags);
}

#[test]
fn the_reward_model_continues_to_the_same_bits() {
    assert_continues("reward", Purpose::Sample, "--set reward.max_steps=80");
}

#[test]
fn preference_tuning_continues_to_the_same_bits() {
    // The reference's log-probs and the best weights so far must survive.
    let flags =
        "--set dpo.max_steps=80 --set dpo.early_stopping_patience=30 --set dpo.eval_steps=3";
    assert_continues("dpo", Purpose::Init, flags);
}

#[test]
fn preference_tuning_of_adapters_continues_to_the_same_bits() {
    let flags = "--set dpo.max_steps=80 --set dpo.learning_rate=1e-2 --set dpo.lora.r=4 \
                 --set dpo.lora.layers_to_transform=top:1";
    assert_continues("dpo", Purpose::Shuffle, flags);
}

#[test]
fn preference_tuning_without_a_reference_continues_to_the_same_bits() {
    let flags =
        "--set orpo.max_steps=80 --set orpo.early_stopping_patience=30 --set orpo.eval_steps=3";
    assert_continues("orpo", Purpose::Shuffle, flags);
}

#[test]
fn ppo_continues_to_the_same_bits() {
    assert_continues(
        "ppo",
        Purpose::PpoShuffle,
        "--set ppo.max_steps=30 --set ppo.save_steps=4",
    );
}

#[cfg(any(feature = "emulate", feature = "cuda"))]
#[test]
fn ppo_on_a_gpu_continues_to_the_same_bits() {
    let device = std::env::var("COLLIMATE_TEST_DEVICE").unwrap_or("emulated".to_owned());
    let flags = "--set ppo.max_steps=8 --set ppo.save_steps=2 --set ppo.eval_steps=0";
    let flags = format!("--set run.device={device} {flags}");
    assert_continues("ppo", Purpose::PpoShuffle, &flags);
}

#[test]
fn ppo_with_fixed_score_scale_continues_to_the_same_bits() {
    // A judge watches: the state of its watch must survive.
    let flags = "--set ppo.max_steps=30 --set ppo.save_steps=4 \
                 --set ppo.score_normalization=reference --set ppo.num_samples_per_prompt=2 \
                 --set ppo.judge_model=models/reward --set ppo.eval_steps=3";
    assert_continues("ppo", Purpose::Evaluation, flags);
}

#[test]
fn ppo_with_every_term_of_the_update_continues_to_the_same_bits() {
    // The cursor of the pretraining text, the KL coefficient, the moments of scores, the count of
    // rolled-back iterations and the critic's warm-up must survive.
    let flags = "--set ppo.max_steps=24 --set ppo.save_steps=4 --set ppo.critic_warmup=2 \
                 --set ppo.kl_in=loss --set ppo.entropy_coef=0.01 \
                 --set ppo.loss_aggregation=sequence --set ppo.dual_clip=3.0 \
                 --set ppo.target_kl=0.012 --set ppo.rollback_kl_factor=1.5 \
                 --set ppo.ptx_coef=0.5 --set ppo.ptx_data=text.jsonl --set ppo.ptx_length=24 \
                 --set ppo.ptx_batch_size=3 \
                 --set ppo.score_normalization=running --set ppo.kl_controller=adaptive \
                 --set ppo.kl_target=0.5 --set ppo.kl_horizon=200.0";
    let lines = assert_continues("ppo", Purpose::Ptx, flags);
    // The limits take effect; otherwise there would be no state of them to restore.
    let column =
        |name: &str| -> Vec<f64> { lines.iter().filter_map(|l| l.get(name)?.as_f64()).collect() };
    let (back, stopped) = (column("policy/rolled_back"), column("policy/stopped_early"));
    assert!(
        back.last() > Some(&0.0) && back.last() < Some(&24.0),
        "{back:?}"
    );
    assert!(
        stopped.contains(&1.0) && stopped.contains(&0.0),
        "{stopped:?}"
    );
}

/// All state of an iteration beside the weights at once: the KL coefficient, the moments of scores,
/// and the prompt cursor of dynamic sampling.
#[test]
fn ppo_with_a_state_of_many_parts_continues_to_the_same_bits() {
    let lines = assert_continues("ppo", Purpose::Split, STATEFUL);
    let all = |name: &str| -> Vec<f64> {
        lines
            .iter()
            .filter_map(|line| line.get(name)?.as_f64())
            .collect()
    };
    // All of that state differs from its initial value.
    assert!(all("rollout/groups_dropped")[..4].iter().sum::<f64>() > 0.0);
    let coefs = all("objective/kl_coef");
    assert_eq!(coefs.len(), 30);
    assert!(coefs.windows(2).all(|w| w[0] != w[1]), "{coefs:?}");
}

#[test]
fn ppo_without_a_critic_continues_to_the_same_bits() {
    let flags =
        format!("{STATEFUL} --set ppo.advantage_estimator=remax --set ppo.overlong_buffer=2");
    assert_continues("ppo", Purpose::Split, &flags);
}
