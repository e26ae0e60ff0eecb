//! `[run]`: what the run is called, where it lies and what it computes on.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::value::{self, StrDeserializer};
use serde::{Deserialize, Serialize};

use super::Stage;
use super::check::Checker;

/// The `[run]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Name of the run and of its folder. Required.
    pub name: String,
    /// Folder that holds the folders of runs.
    pub dir: PathBuf,
    /// Seed of every draw of the run.
    pub seed: u64,
    /// What to compute on: `cpu` or `cuda:N`.
    pub device: Device,
    /// Threads of the CPU work; 0 takes all cores. Results do not depend on it.
    pub threads: usize,
    /// How the CPU computes matrix products: `fast` takes what is fastest on this processor,
    /// `portable` gives the same bits on every processor.
    pub arithmetic: Arithmetic,
    /// Steps in a row with a non-finite loss or gradient (each is skipped) after which the run
    /// stops.
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

    /// Where `stage` leaves its model, `DIR/NAME/STAGE/final`.
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

/// How the CPU computes matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arithmetic {
    /// In the fastest way that this processor has, and as accurately at least.
    Fast,
    /// In one order of sums, which every processor has.
    Portable,
}

impl FromStr for Arithmetic {
    type Err = String;

    /// Reads what the key takes.
    fn from_str(text: &str) -> Result<Self, String> {
        let read = Self::deserialize(StrDeserializer::<value::Error>::new(text));
        read.map_err(|error| error.to_string())
    }
}

/// What to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The processor.
    Cpu,
    /// The NVIDIA GPU of this ordinal.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    /// Reads `cpu`, `cuda` (the first GPU) or `cuda:N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = match text.split_once(':') {
            None if text == "cpu" => return Ok(Device::Cpu),
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
