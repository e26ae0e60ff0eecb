//! SIGINT and SIGTERM, after which a run saves and exits; and a checkpoint that was damaged
//! afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::killed::STATEFUL;
use crate::process::{ATTEMPTS, Left, Moment, StageRun, send};
use crate::support::Workspace;

/// A moment in the first half of a stage that has many steps left.
const EARLY: Moment = Moment {
    lines: 10,
    delay: Duration::from_millis(2),
};

const STAGES: [(&str, &str); 8] = [
    ("pretrain", "--set pretrain.max_steps=80"),
    ("sft", "--set sft.max_steps=80"),
    ("reward", "--set reward.max_steps=80"),
    ("sft", "--set sft.max_steps=80 --set sft.lora.r=4"),
    (
        "reward",
        "--set reward.max_steps=80 --set reward.lora.r=4 \
         --set reward.lora.layers_to_transform=top:1",
    ),
    ("dpo", "--set dpo.max_steps=80"),
    ("dpo", "--set dpo.max_steps=80 --set dpo.lora.r=4"),
    ("ppo", "--set ppo.max_steps=40"),
];

/// Runs until [`EARLY`], sends the signal, and checks that the run saves and exits with the right
/// code. If the run ended before the signal arrived because the machine was busy, it starts over.
fn interrupt(run: &StageRun, signal: &str) {
    for _ in 0..ATTEMPTS {
        let mut child = run.start_until(EARLY);
        send(signal, &child);
        let status = child.wait().expect("its end");
        if run.is_done() {
            run.forget();
            continue;
        }
        assert_eq!(status.code(), Some(130), "{} after SIG{signal}", run.stage);
        let unit = if run.stage == "ppo" {
            "iteration"
        } else {
            "step"
        };
        let last = *run.checkpoints().last().expect("a checkpoint");
        let saved = format!("stopped and saved after {unit} {last};");
        assert!(run.said().contains(&saved), "{}", run.said());
        return;
    }
    panic!(
        "{}: {ATTEMPTS} times it ended before SIG{signal}",
        run.stage
    )
}

/// Asserts that an uninterrupted run leaves the same files as one that was interrupted, changed by
/// `meanwhile`, which returns the remaining state, and continued from there. Returns the output of
/// the continued run.
fn assert_continues(
    stage: &str,
    flags: &str,
    signal: &str,
    meanwhile: impl Fn(&StageRun) -> Left,
) -> String {
    let workspace = Workspace::trained();
    let run = |name| StageRun {
        workspace: &workspace,
        stage,
        name,
        flags,
    };
    let (unbroken, broken) = (run("unbroken"), run("broken"));
    unbroken.complete();
    interrupt(&broken, signal);
    let left = meanwhile(&broken);
    assert!(left.timed_steps() > 0, "{stage}: {left:?}");
    let said = broken.continue_from(&left);
    broken.assert_same(&unbroken, &format!("SIG{signal} at {EARLY:?}"));
    said
}

#[test]
fn interrupted_runs_save_and_continue_where_they_were() {
    for (stage, flags) in STAGES {
        // Without periodic checkpoints, the run continues from the one that the signal made it
        // save.
        let flags = format!("{flags} --set {stage}.save_steps=0");
        assert_continues(stage, &flags, "INT", |run| run.left());
    }
}

/// A signal between two rounds of dynamic sampling discards the whole iteration. Where all samples
/// of a prompt are equal, every iteration has all its rounds, and a signal hardly misses them.
#[test]
fn interrupted_dynamic_sampling_continues_where_it_was() {
    let rounds = "--set ppo.temperature=0.0001 --set ppo.dynamic_sampling=60";
    for (steps, more) in [(60, ""), (30, rounds)] {
        let flags = format!("{STATEFUL} --set ppo.save_steps=0 --set ppo.max_steps={steps} {more}");
        assert_continues("ppo", &flags, "INT", |run| run.left());
    }
}

#[test]
fn a_terminated_run_saves_too() {
    assert_continues("sft", STAGES[1].1, "TERM", |run| run.left());
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    for (stage, flags) in STAGES {
        let said = assert_continues(stage, flags, "INT", |run| {
            let [.., whole, newest] = run.checkpoints()[..] else {
                panic!("{stage}: {:?}", run.checkpoints());
            };
            cut_short(&run.file("checkpoints").join(format!("step-{newest:08}")));
            run.left_of(Some(whole))
        });
        assert!(
            said.contains("damaged checkpoint passed over"),
            "{stage}: {said}"
        );
    }
}

/// Truncates the largest file of a checkpoint to half its size.
fn cut_short(checkpoint: &Path) {
    let entries = fs::read_dir(checkpoint).expect("a checkpoint");
    let files = entries.map(|entry| entry.expect("an entry").path());
    let size = |path: &PathBuf| fs::metadata(path).expect("a file").len();
    let largest = files.max_by_key(size).expect("a file");
    let bytes = fs::read(&largest).expect("a file");
    fs::write(&largest, &bytes[..bytes.len() / 2]).expect("a writable file");
}
