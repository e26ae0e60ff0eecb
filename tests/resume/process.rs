//! A run in a process of its own that is stopped at a chosen instant, and the comparison of two runs.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use collimate::train::metrics::is_timing;

use crate::support::{Line, Workspace, lines, read};

/// How long a process may take for what these tests ask of it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Attempts to stop a process before it ends by itself; the machine may be busy elsewhere just then.
pub const ATTEMPTS: u64 = 6;

/// When to stop a process: once `metrics.jsonl` has so many lines, and then a little later, so that the instant may lie anywhere in a
/// step, in a checkpoint too.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub lines: usize,
    pub delay: Duration,
}

/// One stage of one run, begun or continued by always the same command.
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

    /// Runs it to its end, and returns what it said.
    #[track_caller]
    pub fn complete(&self) -> String {
        self.workspace.succeed(&self.arguments()).stderr
    }

    /// Starts it and returns at `moment`, or when it has ended before.
    pub fn start_until(&self, moment: Moment) -> Child {
        let mut command = self.workspace.command(&self.arguments());
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the binary");
        let started = Instant::now();
        while self.lines_written() < moment.lines && is_running(&mut child) {
            assert!(started.elapsed() < PATIENCE, "{moment:?} never came");
            sleep(Duration::from_micros(500));
        }
        sleep(moment.delay);
        child
    }

    fn lines_written(&self) -> usize {
        let metrics = self
            .workspace
            .stage(self.name, self.stage)
            .join("metrics.jsonl");
        fs::read(metrics).map_or(0, |bytes| {
            bytes.iter().filter(|&&byte| byte == b'\n').count()
        })
    }

    pub fn is_done(&self) -> bool {
        self.workspace
            .stage(self.name, self.stage)
            .join("done.json")
            .exists()
    }

    /// Removes all that it has done.
    pub fn forget(&self) {
        fs::remove_dir_all(self.workspace.path("runs").join(self.name)).expect("a run");
    }

    /// Checks that it left what `other` left: weights and samples byte by byte, metrics but for those that measure time.
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

fn is_running(child: &mut Child) -> bool {
    child.try_wait().expect("a child process").is_none()
}

/// Sends a signal by name, such as `INT`; to a process that has ended it does nothing.
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
