//! `[run]`: name, folder, seed and device of the run.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Stage;
use super::check::Checker;

/// The run: its name, folder, seed and device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Name of the run, and of its folder inside `run.dir`.
    #[schemars(extend("x-default" = "required"))]
    pub name: String,
    /// Folder in which the folders of all runs are created.
    #[schemars(extend("x-type" = "path"))]
    pub dir: PathBuf,
    /// Seed of every random draw: initial weights, the order of records, sampled completions.
    ///
    /// Must be below 2^63.
    pub seed: u64,
    /// Device to compute on.
    pub device: Device,
    /// Number of CPU threads; 0 uses all cores.
    ///
    /// Results do not depend on it.
    pub threads: usize,
    /// Arithmetic of matrix products on the CPU.
    pub arithmetic: Arithmetic,
    /// Number of consecutive steps with a non-finite loss or gradient after which the run stops.
    ///
    /// Each such step is skipped: it changes no weight.
    pub max_bad_steps: usize,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            name: String::new(),
            dir: "runs".into(),
            seed: 0,
            device: Device::Cpu,
            threads: 0,
            arithmetic: Arithmetic::Fast,
            max_bad_steps: 10,
        }
    }
}

impl Run {
    /// The folder of this run, `DIR/NAME`.
    pub fn folder(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// Folder of the model that `stage` trains, `DIR/NAME/STAGE/final`.
    pub fn final_model(&self, stage: Stage) -> PathBuf {
        self.folder().join(stage.name()).join("final")
    }

    pub(super) fn check(&self, checker: &mut Checker<'_>) {
        let mut keys = checker.table("run");
        if self.name.is_empty() {
            keys.missing(
                "name",
                "it names the run's folder, for example name = \"trial\"",
            );
        } else if self.name.starts_with('.') || self.name.contains(['/', '\\']) {
            keys.wrong(
                "name",
                quoted(&self.name),
                "must be the name of one folder; the path belongs in run.dir",
            );
        }
        // TOML has no integers beyond i64, so a larger seed could not be written into the run
        // folder.
        if i64::try_from(self.seed).is_err() {
            keys.wrong(
                "seed",
                self.seed,
                "must be below 2^63; choose a smaller one",
            );
        }
        keys.at_least("max_bad_steps", self.max_bad_steps, 1, "10 is usual");
    }
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// Arithmetic of matrix products on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// Use the processor's matrix unit where it has one.
    Fast,
    /// Give the same bits on every processor.
    Portable,
}

/// Device to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("x-type" = "`cpu` or `cuda:N`"))]
pub enum Device {
    /// The processor.
    Cpu,
    /// The NVIDIA GPU of this ordinal.
    Cuda(usize),
    /// The emulated GPU, for tests.
    #[cfg(feature = "emulate")]
    Emulated,
}

impl Device {
    /// Whether it is a GPU, with memory of its own.
    pub fn is_gpu(self) -> bool {
        self != Self::Cpu
    }
}

impl FromStr for Device {
    type Err = String;

    /// Reads `cpu`, `cuda` (the first GPU) or `cuda:N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = match text.split_once(':') {
            None if text == "cpu" => return Ok(Device::Cpu),
            #[cfg(feature = "emulate")]
            None if text == "emulated" => return Ok(Device::Emulated),
            None if text == "cuda" => Some(0),
            Some(("cuda", ordinal)) => ordinal.parse().ok(),
            _ => None,
        };
        ordinal
            .map(Device::Cuda)
            .ok_or_else(|| format!("unknown device `{text}`; write `cpu` or `cuda:0`"))
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            #[cfg(feature = "emulate")]
            Device::Emulated => f.write_str("emulated"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_read_and_write() {
        assert_eq!("cpu".parse(), Ok(Device::Cpu));
        assert_eq!("cuda:1".parse(), Ok(Device::Cuda(1)));
        assert_eq!(Device::Cuda(1).to_string(), "cuda:1");
        assert!("gpu".parse::<Device>().is_err());
        assert!("cuda:x".parse::<Device>().is_err());
    }
}
