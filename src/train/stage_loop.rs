//! The loop that all stages share: checkpoints, the log of metrics, progress on the terminal, and
//! the end at a signal.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::checkpoint::{Checkpoint, Checkpoints, Writer};
use super::metrics::{RequiredLines, RetainedLines, StepLog};
use super::progress::Progress;
use super::run_folder::StageFolder;
use super::signal::{Outcome, StopRequest};
use crate::config::Training;
use crate::ops::profile;
use crate::terminal::Phase;

/// Checkpoints, log and progress of a stage that is under way.
pub struct StageLoop {
    /// The stage's checkpoints.
    pub checkpoints: Checkpoints,
    /// `metrics.jsonl`.
    pub log: StepLog,
    /// The stage's line on the terminal.
    pub progress: Progress,
    /// Step of the newest checkpoint.
    saved: Option<u64>,
    retained: RetainedLines,
    keep_last: usize,
    keep_every: u64,
}

/// A stage's steps.
pub trait Steps {
    /// Word for a step in messages.
    const UNIT: &'static str;

    /// Number of completed steps.
    fn done(&self) -> u64;

    /// Whether another step follows.
    fn continues(&self) -> bool;

    /// Runs the next step, with the evaluation and the checkpoint that are due after it.
    ///
    /// # Errors
    /// If a computation or a file fails.
    fn step(&mut self) -> Result<()>;

    /// Writes a checkpoint, unless the newest one is of this step.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn save(&mut self) -> Result<()>;
}

/// Runs steps until the stage is complete or a signal arrives; after a signal the stage is saved.
///
/// # Errors
/// Errors of a step, with its number, or of writing a checkpoint.
pub fn run<S: Steps>(stage: &mut S, stop: &StopRequest) -> Result<Outcome> {
    while stage.continues() {
        if stop.is_requested() {
            stage.save()?;
            return Ok(Outcome::Stopped);
        }
        let step = stage.done() + 1;
        stage
            .step()
            .with_context(|| format!("{} {step}", S::UNIT))?;
    }
    Ok(Outcome::Finished)
}

impl StageLoop {
    /// Opens the stage's checkpoints, and its log up to the newest usable checkpoint, which is
    /// returned. Notes on the terminal the damaged files and the step from which the stage
    /// continues. `steps` is the total number of steps of the stage, and `unit` the word for one of
    /// them.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn open(
        stage: &str,
        unit: &str,
        steps: u64,
        folder: &StageFolder,
        training: &Training,
    ) -> Result<(Self, Option<Checkpoint>)> {
        let checkpoints = Checkpoints::open(&folder.checkpoints())?;
        let latest = checkpoints.resume()?;
        let saved = latest.checkpoint.as_ref().map(|newest| newest.step);
        let retained = saved.map_or(RetainedLines::None, RetainedLines::UpTo);
        let begun = saved.unwrap_or(0);
        let opened = Self {
            checkpoints,
            log: StepLog::open(&folder.metrics(), retained)?,
            progress: Progress::new(stage, begun, steps, training.log_steps as u64),
            saved,
            retained,
            keep_last: training.keep_last,
            keep_every: training.keep_every as u64,
        };
        for line in &latest.passed_over {
            let note = format!("damaged checkpoint passed over: {line}");
            opened.progress.note(&note);
        }
        opened.note_damage(&opened.log);
        if let Some(step) = saved {
            opened
                .progress
                .note(&format!("continues after {unit} {step}"));
        }
        Ok((opened, latest.checkpoint))
    }

    /// Opens another log of the stage. If lines are `expected` and the stage continues from a
    /// checkpoint, a log without lines counts as damaged.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open_log(&self, path: &Path, expected: bool) -> Result<StepLog> {
        let required = match (expected, self.retained) {
            (true, RetainedLines::UpTo(_)) => RequiredLines::AtLeastOne,
            _ => RequiredLines::None,
        };
        let log = StepLog::open_requiring(required, path, self.retained)?;
        self.note_damage(&log);
        Ok(log)
    }

    fn note_damage(&self, log: &StepLog) {
        log.damage()
            .iter()
            .for_each(|line| self.progress.note(line));
    }

    /// Writes a checkpoint of `step` and removes old ones, unless the newest checkpoint is of this
    /// step and so has the same contents. `write` adds files and returns their state.
    ///
    /// # Errors
    /// Errors of `write`, or if a file cannot be written or removed.
    pub fn save<T: Serialize>(
        &mut self,
        step: u64,
        write: impl FnOnce(&mut Writer) -> Result<T>,
    ) -> Result<()> {
        if self.saved == Some(step) {
            return Ok(());
        }
        let _part = profile::part("save");
        let _phase = Phase::begin("saving");
        self.log.sync()?;
        let mut writer = self.checkpoints.writer(step)?;
        let state = write(&mut writer)?;
        writer.commit(&state)?;
        self.saved = Some(step);
        Ok(self.checkpoints.prune(self.keep_last, self.keep_every)?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use anyhow::bail;

    use super::*;
    use crate::config::Stage;
    use crate::train::metrics::Metrics;
    use crate::train::run_folder::{Existing, RunFolder};

    /// Steps that count themselves and their checkpoints; the third one fails.
    #[derive(Default)]
    struct Counted {
        done: u64,
        saved: u64,
    }

    impl Steps for Counted {
        const UNIT: &'static str = "round";

        fn done(&self) -> u64 {
            self.done
        }

        fn continues(&self) -> bool {
            self.done < 9
        }

        fn step(&mut self) -> Result<()> {
            if self.done == 2 {
                bail!("broken");
            }
            self.done += 1;
            Ok(())
        }

        fn save(&mut self) -> Result<()> {
            self.saved += 1;
            Ok(())
        }
    }

    #[test]
    fn a_failing_step_is_named_and_a_request_to_stop_saves_before_the_next() {
        let (mut stage, stop) = (Counted::default(), StopRequest::default());
        let error = run(&mut stage, &stop).unwrap_err();
        assert_eq!(format!("{error:#}"), "round 3: broken");
        assert_eq!((stage.done, stage.saved), (2, 0));
        stop.request();
        assert_eq!(run(&mut stage, &stop).unwrap(), Outcome::Stopped);
        assert_eq!((stage.done, stage.saved), (2, 1));
        stage.done = 9;
        assert_eq!(run(&mut stage, &stop).unwrap(), Outcome::Finished);
        assert_eq!((stage.done, stage.saved), (9, 1));
    }

    /// A stage of ten steps that keeps its two newest checkpoints and each third.
    fn open(folder: &StageFolder) -> (StageLoop, Option<Checkpoint>) {
        let training = Training {
            keep_last: 2,
            keep_every: 3,
            log_steps: 5,
            ..Training::default()
        };
        StageLoop::open("sft", "step", 10, folder, &training).unwrap()
    }

    /// Writes the log's line of each step, and a checkpoint whose state is the step.
    fn train(stage: &mut StageLoop, steps: std::ops::RangeInclusive<u64>) {
        for step in steps {
            stage.log.write(&Metrics::new(step)).unwrap();
            stage.save(step, |_| Ok(step)).unwrap();
        }
    }

    fn saved(stage: &StageLoop) -> Vec<u64> {
        let checkpoints = stage.checkpoints.all().unwrap();
        checkpoints.iter().map(|c| c.step).collect()
    }

    #[test]
    fn a_stage_continues_after_its_newest_checkpoint() {
        let root = tempfile::tempdir().unwrap();
        let run = RunFolder::open(&root.path().join("run")).unwrap();
        let folder = run.stage(Stage::Sft, Existing::Continue).unwrap();
        let (mut first, none) = open(&folder);
        assert!(none.is_none());
        train(&mut first, 1..=5);
        first
            .save(5, |_| -> Result<u64> { panic!("saved twice") })
            .unwrap();
        assert_eq!(saved(&first), [3, 4, 5]);
        first.log.write(&Metrics::new(6)).unwrap();
        drop(first);

        let (mut second, newest) = open(&folder);
        assert_eq!(newest.unwrap().state::<u64>().unwrap(), 5);
        let shown = format!("{:?}", second.progress);
        for part in ["total: 10", "began: (5,", "every: 5"] {
            assert!(shown.contains(part), "no {part} in {shown}");
        }
        second
            .save(5, |_| -> Result<u64> { panic!("saved twice") })
            .unwrap();
        train(&mut second, 6..=7);
        assert_eq!(saved(&second), [3, 6, 7]);
        let log = fs::read_to_string(folder.metrics()).unwrap();
        assert_eq!(log.lines().count(), 7, "{log}");
    }

    #[test]
    fn a_log_without_lines_is_damaged_only_where_the_stage_continues_and_expects_some() {
        let root = tempfile::tempdir().unwrap();
        let run = RunFolder::open(&root.path().join("run")).unwrap();
        let folder = run.stage(Stage::Sft, Existing::Continue).unwrap();
        let damaged = |stage: &StageLoop, expected| {
            let log = stage.open_log(&folder.samples(), expected).unwrap();
            log.damage().is_some()
        };
        let (mut first, _) = open(&folder);
        assert!(!damaged(&first, true) && !damaged(&first, false));
        train(&mut first, 1..=2);
        let (second, _) = open(&folder);
        assert!(damaged(&second, true) && !damaged(&second, false));

        let mut samples = second.open_log(&folder.samples(), false).unwrap();
        for step in [1, 3] {
            samples.write(&Metrics::new(step)).unwrap();
        }
        assert!(!damaged(&second, true));
        let left = fs::read_to_string(folder.samples()).unwrap();
        assert_eq!(left.lines().count(), 1, "{left}");
    }
}
