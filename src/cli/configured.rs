//! Arguments of the commands about a configuration.

use std::path::PathBuf;

use clap::Args;

use crate::config::Override;
use crate::train::run_folder::Existing;

/// Flags of the commands that read a configuration.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// The TOML file that describes the run
    pub config: PathBuf,

    /// Override a key, for example ppo.kl_coef=0.1; can be repeated
    ///
    /// VALUE is TOML; bare words are strings.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<Override>,

    /// Start over instead of continuing; the old folder is renamed to NAME.old-1
    #[arg(long)]
    fresh: bool,

    /// Print the time of each part and operation at the end of each stage
    #[arg(long)]
    pub profile: bool,
}

impl ConfigArgs {
    /// Whether an existing run is continued or set aside.
    pub fn existing(&self) -> Existing {
        if self.fresh {
            Existing::SetAside
        } else {
            Existing::Continue
        }
    }
}

/// Flags of `plan`.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// The TOML file that describes the run
    pub config: PathBuf,

    /// Override a key, for example ppo.micro_batch_tokens=1024; can be repeated
    ///
    /// VALUE is TOML; bare words are strings.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<Override>,

    /// Also run each stage for a step or two, and print peak memory and seconds per step
    ///
    /// Programs and endpoints of [[ppo.rewards]] are called as in training.
    #[arg(long)]
    probe: bool,
}

/// Whether `plan` also runs the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trials {
    /// Stages are not run.
    None,
    /// Each stage runs for a step or two.
    Probe,
}

impl PlanArgs {
    /// Whether the stages are run.
    pub fn trials(&self) -> Trials {
        match self.probe {
            true => Trials::Probe,
            false => Trials::None,
        }
    }
}

/// Arguments of `config`.
#[derive(Clone, Debug, Args)]
pub struct KeyArgs {
    /// A key such as ppo.kl_coef, or a table such as ppo
    pub key: Option<String>,
}
