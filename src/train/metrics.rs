//! `metrics.jsonl` and `samples.jsonl`: one JSON object a line, in the order of steps.
//!
//! A stage that is continued from step N drops the lines after N and writes them again: a run that
//! was killed and continued leaves the same file as an unbroken one, except for times. The names of
//! the metrics are an interface, defined in [`names`].

pub mod names;

mod kept;

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::durable::{self, on};
use super::memory::peak_bytes;
use crate::ops::backend::Backend;
use kept::LogLines;

pub use names::*;

/// Whether a metric measures the machine rather than the training: such values differ
/// between two runs of one configuration.
pub fn is_timing(name: &str) -> bool {
    name.starts_with("time/") || name.starts_with("memory/") || name.ends_with("_per_second")
}

/// One line of `metrics.jsonl`: named numbers of one step, in the order in which they were set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    step: u64,
    #[serde(flatten)]
    values: Map<String, Value>,
}

impl Metrics {
    /// The line of `step`, without values yet.
    pub fn new(step: u64) -> Self {
        Self {
            step,
            values: Map::new(),
        }
    }

    /// Sets `name`. A value that is not finite is written as null, since JSON cannot express it.
    pub fn set(&mut self, name: &str, value: f64) -> &mut Self {
        self.values.insert(name.into(), Value::from(value));
        self
    }

    /// Sets the peaks of memory, those of the process and of a GPU.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn set_memory(&mut self, backend: &Backend) -> candle_core::Result<()> {
        if let Some(bytes) = peak_bytes() {
            self.set(MEMORY_PEAK_BYTES, bytes as f64);
        }
        if let Some(memory) = backend.memory()? {
            self.set(MEMORY_DEVICE_PEAK_BYTES, memory.peak as f64);
        }
        Ok(())
    }

    /// The value of `name`, if it was set and is finite.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.get(name)?.as_f64()
    }

    /// The step of the line.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Names and values in order; values that are not finite are NaN.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.values
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_f64().unwrap_or(f64::NAN)))
    }
}

/// The lines of an existing file that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetainedLines {
    /// No lines are kept: the stage starts over.
    None,
    /// Lines of this step and earlier ones are kept: the stage continues from its checkpoint.
    UpTo(u64),
}

/// Lines that a log must have up to the step of the checkpoint. A file that lacks them is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequiredLines {
    /// One line for each step, up to the checkpoint's.
    EachStep,
    /// At least one line; a step may have several.
    AtLeastOne,
    /// No lines are required.
    None,
}

/// A JSONL file that is appended to step by step. Each line must have [`STEP`], and steps must not
/// decrease.
#[derive(Debug)]
pub struct StepLog {
    path: PathBuf,
    writer: BufWriter<File>,
    damage: Option<String>,
}

impl StepLog {
    /// Does [`Self::open_requiring`] for a log with one line a step.
    ///
    /// # Errors
    /// The errors of opening the log.
    pub fn open(path: &Path, retained: RetainedLines) -> io::Result<Self> {
        Self::open_requiring(RequiredLines::EachStep, path, retained)
    }

    /// Opens `path`, creates it if necessary, and truncates it after the lines to keep. A last line
    /// that was torn by a crash is dropped. A file whose steps are out of order, or that lacks
    /// lines up to the step to keep, is set aside as a whole, and the log continues with the lines
    /// that fit: [`Self::damage`] says so.
    ///
    /// # Errors
    /// If the file cannot be read or truncated, or if a line other than the last is not an object
    /// with a step: such a file is not a log and is left alone.
    pub fn open_requiring(
        required: RequiredLines,
        path: &Path,
        retained: RetainedLines,
    ) -> io::Result<Self> {
        let (length, damage) = match retained {
            RetainedLines::None => (0, None),
            RetainedLines::UpTo(step) => mended(path, step, required)?,
        };
        let mut options = OpenOptions::new();
        let file = options
            .create(true)
            .append(true)
            .open(path)
            .map_err(on("open", path))?;
        file.set_len(length).map_err(on("cut", path))?;
        Ok(Self {
            path: path.into(),
            writer: BufWriter::new(file),
            damage,
        })
    }

    /// Fault of the file that was set aside, and its present path.
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// Appends one line. It reaches the file at once, the disk at [`StepLog::sync`].
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write<T: Serialize>(&mut self, line: &T) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)
            .map_err(io::Error::from)
            .map_err(on("write", &self.path))?;
        bytes.push(b'\n');
        self.writer
            .write_all(&bytes)
            .and_then(|()| self.writer.flush())
            .map_err(on("write", &self.path))
    }

    /// Makes the lines durable. Must be called before a checkpoint is committed, so that the log
    /// reaches at least to the checkpoint's step.
    ///
    /// # Errors
    /// If the file cannot be synced.
    pub fn sync(&mut self) -> io::Result<()> {
        self.writer
            .get_ref()
            .sync_data()
            .map_err(on("sync", &self.path))
    }
}

/// Repairs a damaged file. Returns the length in bytes of the lines to keep, and the fault.
fn mended(path: &Path, step: u64, required: RequiredLines) -> io::Result<(u64, Option<String>)> {
    let lines = LogLines::read(path, step, required)?;
    let Some(damage) = &lines.damage else {
        return Ok((lines.length, None));
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut words = match lines.is_there {
        true => format!("{name} is damaged: {damage}"),
        false => format!(
            "{name} is missing or empty: the steps up to {step} are lost from it, and it \
                          goes on with the next"
        ),
    };
    if lines.is_there {
        let aside = durable::set_aside(path, "damaged")?;
        durable::write_atomic(path, &lines.fitting)?;
        words += &format!(
            "; it is kept as {}, and the lines that fit go on in {name}",
            aside.display()
        );
    }
    Ok((lines.fitting.len() as u64, Some(words)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn line(step: u64) -> Metrics {
        let mut metrics = Metrics::new(step);
        metrics
            .set(TRAIN_LOSS, 1.0 / (step + 1) as f64)
            .set(TRAIN_GRAD_NORM, f64::NAN);
        metrics
    }

    fn run(path: &Path, retained: RetainedLines, steps: std::ops::RangeInclusive<u64>) {
        let mut log = StepLog::open(path, retained).unwrap();
        steps.for_each(|step| log.write(&line(step)).unwrap());
        log.sync().unwrap();
    }

    #[test]
    fn lines_are_objects_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        run(&path, RetainedLines::None, 0..=1);
        let expected = "{\"step\":0,\"train/loss\":1.0,\"train/grad_norm\":null}\n\
                        {\"step\":1,\"train/loss\":0.5,\"train/grad_norm\":null}\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(
            (line(1).get(TRAIN_LOSS), line(1).get(TRAIN_GRAD_NORM)),
            (Some(0.5), None)
        );
    }

    #[test]
    fn a_continued_file_equals_an_unbroken_one() {
        let folder = tempfile::tempdir().unwrap();
        let (unbroken, killed) = (folder.path().join("a.jsonl"), folder.path().join("b.jsonl"));
        run(&unbroken, RetainedLines::None, 0..=9);
        // Killed in the middle of step 7's line, with its last checkpoint at step 4.
        run(&killed, RetainedLines::None, 0..=6);
        OpenOptions::new()
            .append(true)
            .open(&killed)
            .unwrap()
            .write_all(b"{\"step\":7,\"tr")
            .unwrap();
        run(&killed, RetainedLines::UpTo(4), 5..=9);
        assert_eq!(fs::read(&killed).unwrap(), fs::read(&unbroken).unwrap());
        // Killed right after the checkpoint of step 9: nothing but the torn line goes.
        OpenOptions::new()
            .append(true)
            .open(&killed)
            .unwrap()
            .write_all(b"{\"step\":10")
            .unwrap();
        run(&killed, RetainedLines::UpTo(9), 10..=10);
        assert!(fs::read_to_string(&killed).unwrap().ends_with(
            "{\"step\":10,\"train/loss\":0.09090909090909091,\"train/grad_norm\":null}\n"
        ));
    }

    #[test]
    fn a_file_that_is_not_ours_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, "{\"step\":1}\nhello\n{\"step\":2}\n").unwrap();
        let error = StepLog::open(&path, RetainedLines::UpTo(1))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("metrics.jsonl:2: not a JSON object"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
    }

    /// Opens a log with lines of `steps` for a stage with a checkpoint of step 3. Returns the steps
    /// that remain, the damage that was found, and the names of the files in the folder.
    fn opened(required: RequiredLines, steps: &[u64]) -> (Vec<u64>, Option<String>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let text: String = steps
            .iter()
            .map(|s| format!("{{\"step\":{s}}}\n"))
            .collect();
        if !steps.is_empty() {
            fs::write(&path, &text).unwrap();
        }
        let log = StepLog::open_requiring(required, &path, RetainedLines::UpTo(3)).unwrap();
        let step = |line: &str| serde_json::from_str::<Value>(line).unwrap()[STEP].as_u64();
        let left = fs::read_to_string(&path).unwrap();
        let aside = fs::read(folder.path().join("metrics.jsonl.damaged-1"));
        if let Ok(aside) = &aside {
            assert_eq!(aside, text.as_bytes(), "set aside as it was");
        }
        let mut names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let damage = log.damage().map(str::to_owned);
        (left.lines().filter_map(step).collect(), damage, names)
    }

    #[test]
    fn a_log_that_does_not_reach_its_checkpoint_is_set_aside() {
        use RequiredLines::{AtLeastOne, EachStep};
        let whole = ["metrics.jsonl"];
        let both = ["metrics.jsonl", "metrics.jsonl.damaged-1"];
        for (required, steps, left, says, names) in [
            (
                EachStep,
                &[0, 1, 2, 3, 4, 5][..],
                &[0, 1, 2, 3][..],
                None,
                &whole[..],
            ),
            (EachStep, &[1, 2, 3], &[1, 2, 3], None, &whole),
            (
                EachStep,
                &[0, 9, 2, 3],
                &[0, 2, 3],
                Some("line 2 is of step 9"),
                &both,
            ),
            (
                EachStep,
                &[0, 1, 1, 3, 4],
                &[0, 1, 3],
                Some("line 3 is of step 1"),
                &both,
            ),
            (
                EachStep,
                &[0, 1, 2, 7],
                &[0, 1, 2],
                Some("ends at step 2"),
                &both,
            ),
            (EachStep, &[0, 1], &[0, 1], Some("ends at step 1"), &both),
            (EachStep, &[], &[], Some("missing or empty"), &whole),
            (AtLeastOne, &[0, 0, 2, 2, 4, 4], &[0, 0, 2, 2], None, &whole),
            (
                AtLeastOne,
                &[0, 2, 0, 2],
                &[0, 2, 2],
                Some("line 3 is of step 0"),
                &both,
            ),
            (AtLeastOne, &[], &[], Some("missing or empty"), &whole),
            (RequiredLines::None, &[], &[], None, &whole),
        ] {
            let found = opened(required, steps);
            assert_eq!(found.0, left, "{steps:?}");
            assert_eq!(found.2, names, "{steps:?}");
            match (says, found.1) {
                (None, None) => {}
                (Some(says), Some(damage)) => assert!(damage.contains(says), "{damage}"),
                (says, damage) => panic!("{steps:?}: {damage:?}, expected {says:?}"),
            }
        }
    }

    #[test]
    fn starting_over_empties_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, "anything").unwrap();
        StepLog::open(&path, RetainedLines::None).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn timing_is_told_from_training() {
        assert!(
            [
                TIME_STEP,
                MEMORY_PEAK_BYTES,
                MEMORY_DEVICE_PEAK_BYTES,
                ROLLOUT_TOKENS_PER_SECOND,
            ]
            .into_iter()
            .all(is_timing)
        );
        assert!(
            ![OBJECTIVE_KL, ROLLOUT_LENGTH_MEAN, TRAIN_TOKENS]
                .into_iter()
                .any(is_timing)
        );
    }
}
