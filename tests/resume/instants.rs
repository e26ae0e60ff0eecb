//! SIGKILL at chosen instants that a random moment would rarely hit: at start-up, inside saves,
//! between a save and the clean-up after it, and while `final/` is written.
//!
//! The process runs in slices of some microseconds and is stopped between them, so that its files
//! can be inspected; it is killed once they show the wanted instant. If the process ran past the
//! instant because the machine was busy, the kill is tried again: at the next save, or in a process
//! that only has to write `final/`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant as Clock};

use crate::process::{ATTEMPTS, StageRun};
use crate::support::Workspace;

/// Time between two inspections of the files.
const SLICE: Duration = Duration::from_micros(20);

/// Most processes that only have to write `final/` before the instant is given up.
const LAST_ATTEMPTS: usize = 300;

/// Steps of a run.
const STEPS: u64 = 12;

/// The instant at which a process is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Instant {
    /// Its configuration and inputs are written, and there is no checkpoint yet.
    Start,
    /// A checkpoint is being written.
    Save,
    /// The weights of a best step are being written.
    SaveOfBest,
    /// It has started to continue, and has not said so yet.
    Continue,
    /// A checkpoint is complete, and older ones still exist, whole or in part.
    Prune,
    /// `final/` is being written.
    Final,
    /// `final/` is complete, and the stage is not marked as done yet.
    Done,
}

impl Instant {
    /// Whether the files of a stopped process show this instant. `before` is the inode of the run's
    /// configuration before the process started, which replaces the file.
    fn is_now(self, run: &StageRun, before: Option<u64>) -> bool {
        let writes = |folder: &str, start: &str| has_name(&run.file(folder), start);
        let newest = || run.checkpoints().last().copied().unwrap_or(0);
        match self {
            Self::Start => run.file("inputs.json").exists() && newest() == 0,
            Self::Save => writes("checkpoints", ".tmp-step-") && newest() >= 2,
            Self::SaveOfBest => writes("", ".tmp-best-") && newest() >= 2,
            Self::Continue => configuration(run) != before && !run.said().contains("continues"),
            Self::Prune => run.checkpoints().len() > 1 && newest() >= 2,
            Self::Final => writes("", ".tmp-final"),
            Self::Done => run.file("final").exists() && !run.is_done(),
        }
    }

    /// Whether a process that only has to write `final/` reaches the instant.
    fn is_last(self) -> bool {
        matches!(self, Self::Final | Self::Done)
    }
}

/// Whether the folder contains a name with this prefix.
fn has_name(folder: &Path, start: &str) -> bool {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names = names.map(|entry| entry.file_name());
    names.any(|name| name.to_string_lossy().starts_with(start))
}

/// Inode of the run's configuration.
fn configuration(run: &StageRun) -> Option<u64> {
    let file = run
        .workspace
        .path("runs")
        .join(run.name)
        .join("config.toml");
    fs::metadata(file).ok().map(|file| file.ino())
}

/// A child process that can be stopped and resumed.
struct Stepped(Child);

impl Stepped {
    fn signal(&self, signal: i32) {
        // SAFETY: a system call without pointers. The child has not been waited for, so its id is
        // still its own.
        let sent = unsafe { libc::kill(self.0.id() as i32, signal) };
        assert_eq!(sent, 0, "signal {signal}");
    }

    /// Stops the process; false if it has ended successfully instead.
    fn stop(&self) -> bool {
        self.signal(libc::SIGSTOP);
        let mut status = 0;
        // SAFETY: `status` is valid for the call, and nothing keeps its address.
        let waited = unsafe { libc::waitpid(self.0.id() as i32, &mut status, libc::WUNTRACED) };
        assert_eq!(waited, self.0.id() as i32, "its state");
        let stopped = libc::WIFSTOPPED(status);
        let well = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
        assert!(stopped || well, "it ended with status {status}");
        stopped
    }

    /// Lets the process run for [`SLICE`] or a little longer.
    fn run(&self) {
        self.signal(libc::SIGCONT);
        let start = Clock::now();
        while start.elapsed() < SLICE {
            std::hint::spin_loop();
        }
    }
}

/// Starts the run and kills it at `instant`; false if it ended before that.
fn kill_at(run: &StageRun, instant: Instant) -> bool {
    let (left, before) = (run.left(), configuration(run));
    let child = Stepped(run.start());
    while child.stop() {
        if instant.is_now(run, before) {
            let Stepped(mut child) = child;
            child.kill().expect("a process to kill");
            child.wait().expect("its end");
            left.assert_continued_by_now(run);
            return true;
        }
        child.run();
    }
    left.assert_continued_by_now(run);
    false
}

/// Does [`kill_at`], with as many processes as needed if only the stage's last files are left to
/// write.
fn kill_at_last(run: &StageRun, instant: Instant) -> bool {
    for _ in 0..LAST_ATTEMPTS {
        if kill_at(run, instant) {
            return true;
        }
        if !instant.is_last() {
            return false;
        }
        fs::remove_file(run.file("done.json")).expect("a mark");
        fs::remove_dir_all(run.file("final")).expect("a model");
    }
    false
}

/// Kills a process at each of the instants, each process continuing where the one before it ended;
/// false if an instant was missed.
fn kill_at_all(run: &StageRun, instants: &[Instant]) -> bool {
    instants.iter().all(|&instant| {
        let killed = kill_at_last(run, instant);
        let newest = run.checkpoints().last().copied();
        let fits = match instant {
            Instant::Start => newest.unwrap_or(0) == 0,
            Instant::Final | Instant::Done => newest == Some(STEPS),
            _ => newest >= Some(2),
        };
        assert!(!killed || fits, "{instant:?}: {newest:?}");
        killed
    })
}

/// Asserts that an uninterrupted run and one killed at each of the instants leave the same files,
/// and that no step before a complete checkpoint was repeated.
fn assert_continues(stage: &str, flags: &str, instants: &[Instant]) {
    let workspace = Workspace::trained();
    let config = fs::read_to_string(workspace.path("config.toml")).expect("a configuration");
    // PPO would use the judge.
    if stage == "judge" {
        let judge = "[judge]\nfrom = \"models/sft\"\ndata = \"pairs.jsonl\"\nmax_length = 48\n";
        workspace.write("config.toml", &(config + judge));
    }
    let often = format!(
        "--set {stage}.max_steps={STEPS} --set {stage}.save_steps=1 --set {stage}.keep_last=1 \
         --set run.threads=1 {flags}"
    );
    let run = |name| StageRun {
        workspace: &workspace,
        stage,
        name,
        flags: &often,
    };
    let (unbroken, killed) = (run("unbroken"), run("killed"));
    unbroken.complete();
    for _ in 0..ATTEMPTS {
        if !kill_at_all(&killed, instants) {
            killed.forget();
            continue;
        }
        let left = killed.left();
        assert_eq!(left.checkpoint, Some(STEPS), "{stage}");
        let said = killed.continue_from(&left);
        assert!(!said.contains("computed once"), "{stage}: {said}");
        killed.assert_same(&unbroken, &format!("killed at {instants:?}"));
        assert!(!has_name(&killed.file(""), ".tmp-"), "{stage}");
        assert!(!has_name(&killed.file("checkpoints"), ".tmp-"), "{stage}");
        return;
    }
    panic!("{stage}: {ATTEMPTS} times one of {instants:?} was missed")
}

/// The instants of every stage.
const ALL: [Instant; 6] = [
    Instant::Start,
    Instant::Save,
    Instant::Continue,
    Instant::Prune,
    Instant::Final,
    Instant::Done,
];

#[test]
fn pretraining_survives_a_kill_at_each_instant() {
    assert_continues("pretrain", "", &ALL);
}

#[test]
fn fine_tuning_survives_a_kill_at_each_instant() {
    assert_continues("sft", "", &ALL);
    let adapters = "--set sft.lora.r=4 --set sft.lora.lora_alpha=8";
    assert_continues("sft", adapters, &[Instant::Save, Instant::Final]);
}

#[test]
fn early_stopping_survives_a_kill_while_the_best_weights_are_written() {
    let instants = [Instant::SaveOfBest, Instant::Prune, Instant::Done];
    for stage in ["sft", "dpo"] {
        let flags = format!(
            "--set {stage}.early_stopping_patience=12 --set {stage}.eval_steps=1 \
             --set {stage}.lr_scheduler_type=constant"
        );
        assert_continues(stage, &flags, &instants);
    }
}

#[test]
fn preference_tuning_survives_a_kill_at_each_instant() {
    assert_continues("dpo", "", &ALL);
}

#[test]
fn reward_models_survive_a_kill_at_each_instant() {
    assert_continues("reward", "", &ALL);
    assert_continues("judge", "", &ALL);
}

#[test]
fn ppo_survives_a_kill_at_each_instant() {
    assert_continues("ppo", "", &ALL);
    let group = "--set ppo.advantage_estimator=rloo --set ppo.num_samples_per_prompt=4";
    assert_continues(
        "ppo",
        group,
        &[Instant::Save, Instant::Prune, Instant::Final],
    );
}
