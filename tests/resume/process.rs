//! A run as a child process that is stopped at a chosen moment; the files that it left; and the
//! comparison of two runs.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use collimate::train::metrics::is_timing;

use crate::support::{Line, Workspace, lines, read};

/// Longest time that a process may take to reach a moment.
const PATIENCE: Duration = Duration::from_secs(120);

/// Attempts to stop a process before it ends by itself, since the machine may be busy.
pub const ATTEMPTS: u64 = 6;

/// When to stop a process: once `metrics.jsonl` has so many lines, plus a short delay, so that the
/// moment may fall anywhere in a step, including its checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub lines: usize,
    pub delay: Duration,
}

/// One stage of one run, started or continued with the same command.
pub struct StageRun<'a> {
    pub workspace: &'a Workspace,
    pub stage: &'a str,
    pub name: &'a str,
    pub flags: &'a str,
}

impl StageRun<'_> {
    fn arguments(&self) -> String {
        let Self {
            stage, name, flags, ..
        } = self;
        format!("{stage} config.toml --set run.name={name} {flags}")
    }

    /// Runs to the end and returns standard error.
    #[track_caller]
    pub fn complete(&self) -> String {
        self.workspace.succeed(&self.arguments()).stderr
    }

    /// Runs to the end from the state `left`, and checks that the run continued from there.
    #[track_caller]
    pub fn continue_from(&self, left: &Left) -> String {
        let said = self.complete();
        assert_eq!(continued_after(&said), left.checkpoint, "{said}");
        left.assert_kept(self);
        // The logged times distinguish steps that were repeated from those that were kept.
        let log = self.log();
        let again = left.dropped.iter().filter(|line| log.contains(line));
        assert_eq!(again.count(), 0, "{:?} stand in {log:?}", left.dropped);
        said
    }

    /// Starts the process; its output can be read with [`Self::said`].
    pub fn start(&self) -> Child {
        let mut command = self.workspace.command(&self.arguments());
        let said = fs::File::create(self.said_file()).expect("a writable folder");
        let command = command.stdout(Stdio::null()).stderr(said);
        command.spawn().expect("the binary")
    }

    /// Output so far of the process that was started last.
    pub fn said(&self) -> String {
        fs::read_to_string(self.said_file()).expect("what a process said")
    }

    fn said_file(&self) -> PathBuf {
        self.workspace.path(&format!("{}.stderr", self.name))
    }

    /// Starts the process and returns at `moment`, or when the process has ended.
    pub fn start_until(&self, moment: Moment) -> Child {
        let mut child = self.start();
        let started = Instant::now();
        while self.lines_written() < moment.lines && is_running(&mut child) {
            assert!(started.elapsed() < PATIENCE, "{moment:?} never came");
            sleep(Duration::from_micros(500));
        }
        sleep(moment.delay);
        child
    }

    fn lines_written(&self) -> usize {
        self.log()
            .iter()
            .filter(|line| line.ends_with('\n'))
            .count()
    }

    /// The lines of `metrics.jsonl`, the last of which may be incomplete.
    fn log(&self) -> Vec<String> {
        let text = fs::read(self.file("metrics.jsonl")).unwrap_or_default();
        let text = String::from_utf8(text).expect("UTF-8");
        text.split_inclusive('\n').map(str::to_owned).collect()
    }

    /// Path of a file or folder of the stage.
    pub fn file(&self, name: &str) -> PathBuf {
        self.workspace.stage(self.name, self.stage).join(name)
    }

    /// Steps of the complete checkpoints, in ascending order.
    pub fn checkpoints(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(self.file("checkpoints")) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let steps = names.filter_map(|name| name.strip_prefix("step-")?.parse().ok());
        let mut steps: Vec<u64> = steps.collect();
        steps.sort_unstable();
        steps
    }

    /// The state that the run has left for the next process.
    pub fn left(&self) -> Left {
        self.left_of(self.checkpoints().last().copied())
    }

    /// The state that the run has left if this checkpoint is the newest readable one.
    pub fn left_of(&self, newest: Option<u64>) -> Left {
        // Only PPO has state before its first step: the scale of scores.
        let checkpoint = newest.filter(|&step| step > 0 || self.stage == "ppo");
        let log = self.log().into_iter();
        let whole = log.filter_map(|line| Some((step_of(&line)?, line)));
        let (kept, dropped): (Vec<_>, Vec<_>) =
            whole.partition(|(step, _)| Some(*step) <= checkpoint);
        let lines = |part: Vec<(u64, String)>| part.into_iter().map(|(_, line)| line).collect();
        Left {
            checkpoint,
            kept: lines(kept),
            dropped: lines(dropped),
        }
    }

    pub fn is_done(&self) -> bool {
        self.file("done.json").exists()
    }

    /// Removes the run's folder.
    pub fn forget(&self) {
        fs::remove_dir_all(self.workspace.path("runs").join(self.name)).expect("a run");
    }

    /// Asserts that the run left what `other` left: weights and samples byte by byte, and metrics
    /// except for times.
    #[track_caller]
    pub fn assert_same(&self, other: &Self, context: &str) {
        let weights = |run: &Self| run.workspace.weights(run.name, run.stage);
        assert!(
            weights(self) == weights(other),
            "{}: other weights; {context}",
            self.stage
        );
        let metrics = |run: &Self| untimed(run.workspace.metrics(run.name, run.stage));
        assert_eq!(metrics(self), metrics(other), "{}; {context}", self.stage);
        if self.stage == "ppo" {
            let samples = |run: &Self| {
                read(
                    &run.workspace
                        .stage(run.name, run.stage)
                        .join("samples.jsonl"),
                )
            };
            assert!(samples(self) == samples(other), "other samples; {context}");
            let path = self
                .workspace
                .stage(self.name, self.stage)
                .join("samples.jsonl");
            assert!(!lines(&path).is_empty(), "no samples to compare");
        }
    }
}

/// State that a stopped run has left for the next process.
#[derive(Clone, Debug)]
pub struct Left {
    /// Step of the newest complete checkpoint; `None` if there is nothing to continue from.
    pub checkpoint: Option<u64>,
    /// The lines of `metrics.jsonl` up to that step. They hold times, so a repeated step has
    /// another line.
    kept: Vec<String>,
    /// The lines of later steps, which will be repeated.
    dropped: Vec<String>,
}

impl Left {
    /// Asserts that no step up to the checkpoint was repeated.
    #[track_caller]
    pub fn assert_kept(&self, run: &StageRun) {
        let log = run.log();
        let start = log.get(..self.kept.len());
        let same = start.is_some_and(|start| start == self.kept);
        assert!(
            same,
            "{}: steps up to {:?} were done again:\n{:?}\n{log:?}",
            run.stage, self.checkpoint, self.kept
        );
    }

    /// Does [`Self::assert_kept`] for a process that was itself stopped and may not have printed
    /// where it continued.
    #[track_caller]
    pub fn assert_continued_by_now(&self, run: &StageRun) {
        let said = run.said();
        let after = continued_after(&said);
        assert!(
            after.is_none() || after == self.checkpoint,
            "{self:?}: {said}"
        );
        self.assert_kept(run);
    }

    /// Number of kept lines that hold times.
    pub fn timed_steps(&self) -> usize {
        let timed = |line: &&String| line.contains("\"time/");
        self.kept.iter().filter(timed).count()
    }
}

/// The step after which the process says that it continues.
pub fn continued_after(said: &str) -> Option<u64> {
    let (_, rest) = said.split_once("continues after ")?;
    let words: Vec<&str> = rest.split_whitespace().take(2).collect();
    assert!(["step", "iteration"].contains(&words[0]), "{said}");
    Some(words[1].parse().unwrap_or_else(|e| panic!("{said}: {e}")))
}

/// The step of a complete line.
fn step_of(line: &str) -> Option<u64> {
    let line: Line = serde_json::from_str(line.strip_suffix('\n')?).ok()?;
    line.get("step")?.as_u64()
}

fn is_running(child: &mut Child) -> bool {
    child.try_wait().expect("a child process").is_none()
}

/// Sends a signal by name, such as `INT`. A process that has ended is left alone.
pub fn send(signal: &str, child: &Child) {
    let command = format!("kill -{signal} {}", child.id());
    Command::new("sh")
        .args(["-c", &command])
        .stderr(Stdio::null())
        .status()
        .expect("a shell");
}

fn untimed(mut lines: Vec<Line>) -> Vec<Line> {
    lines
        .iter_mut()
        .for_each(|line| line.retain(|name, _| !is_timing(name)));
    lines
}
