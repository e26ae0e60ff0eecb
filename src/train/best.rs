//! The weights that early stopping may restore: one file for each step that was the best, beside
//! the checkpoints.
//!
//! A checkpoint names the best step so far and needs its weights, so a file is kept as long as a
//! checkpoint names it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable::{self, on};
use super::float;
use super::metrics::names;
use super::objective::Evaluation;
use super::snapshot::{self, SnapshotError};
use crate::model::Decoder;

/// A step and its held-out measures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Best {
    /// The step.
    pub step: u64,
    /// Held-out measures after the step.
    #[serde(with = "float::map")]
    pub evaluation: Evaluation,
}

impl Best {
    /// Whether the held-out loss is below that of `other`; NaN is above every loss.
    pub fn is_below(&self, other: &Self) -> bool {
        match (self.loss(), other.loss()) {
            (Some(own), Some(other)) => own < other,
            (own, None) => own.is_some(),
            (None, Some(_)) => false,
        }
    }

    fn loss(&self) -> Option<f64> {
        let loss = self.evaluation.get(names::EVAL_LOSS).copied();
        loss.filter(|loss| !loss.is_nan())
    }
}

/// The weights of best steps in a stage's folder.
pub struct BestWeights {
    folder: PathBuf,
}

impl BestWeights {
    /// Opens the weights of best steps in `folder`.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// Writes the weights of `step`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, step: u64, model: &Decoder) -> Result<(), SnapshotError> {
        snapshot::save_params(&self.file(step), model)
    }

    /// Restores the weights of `step` in `model`.
    ///
    /// # Errors
    /// If the file is missing or of another model.
    pub fn restore(&self, step: u64, model: &Decoder) -> Result<(), SnapshotError> {
        snapshot::restore_params(&self.file(step), model)
    }

    /// Removes the weights of all steps but those `named`.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn keep_only(&self, named: &[u64]) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder).map_err(on("read", &self.folder))? {
            let path = entry.map_err(on("read", &self.folder))?.path();
            let step = path.file_name().and_then(|name| step_of(name.to_str()?));
            if step.is_some_and(|step| !named.contains(&step)) {
                durable::remove(&path)?;
            }
        }
        Ok(())
    }

    fn file(&self, step: u64) -> PathBuf {
        self.folder.join(file_name(step))
    }
}

/// Name of the file with a step's best weights, `best-00000120.safetensors`.
fn file_name(step: u64) -> String {
    format!("best-{step:08}.safetensors")
}

/// The step in a file's name; `None` for other names.
fn step_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix("best-")?.strip_suffix(".safetensors")?;
    let step = number.parse().ok()?;
    (file_name(step) == name).then_some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_is_no_number_is_above_all() {
        let best = |loss: f64| Best {
            step: 1,
            evaluation: Evaluation::from([(names::EVAL_LOSS.to_owned(), loss)]),
        };
        assert!(best(1.0).is_below(&best(2.0)) && !best(2.0).is_below(&best(2.0)));
        assert!(best(f64::INFINITY).is_below(&best(f64::NAN)));
        assert!(!best(f64::NAN).is_below(&best(f64::NAN)));
    }

    #[test]
    fn only_the_named_steps_stay() {
        let folder = tempfile::tempdir().unwrap();
        let best = BestWeights::new(folder.path());
        for step in [2, 4, 123_456_789] {
            fs::write(best.file(step), "").unwrap();
        }
        fs::write(folder.path().join("best-of-all.safetensors"), "").unwrap();
        best.keep_only(&[4, 8]).unwrap();
        let names = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(
            names,
            ["best-00000004.safetensors", "best-of-all.safetensors"]
        );
    }
}
