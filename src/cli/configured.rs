//! Flags of the commands that read a configuration.

use std::path::PathBuf;

use clap::Args;

use crate::config::Override;
use crate::train::run_folder::Existing;

/// Flags of the commands that read a configuration.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// The TOML file that describes the run
    pub config: PathBuf,

    /// Override a key, for example ppo.kl_coef=0.1; may be given several times
    ///
    /// VALUE is TOML; bare words are strings.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<Override>,

    /// Set the old folder aside (NAME.old-1) and start over instead of continuing
    #[arg(long)]
    fresh: bool,

    /// Print where each stage's time went, by part and operation, when it ends
    #[arg(long)]
    pub profile: bool,
}

impl ConfigArgs {
    /// What happens to what a former run left.
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

    /// Override a key, for example ppo.micro_batch_tokens=1024; may be given several times
    ///
    /// VALUE is TOML; bare words are strings.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<Override>,

    /// Try the stages too, and print peak memory and seconds a step beside the plan
    ///
    /// Programs and endpoints among ppo.rewards are asked as in training.
    #[arg(long)]
    probe: bool,
}

/// Whether `plan` tries what it plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trials {
    /// Sizes are enough.
    None,
    /// A step or two of each stage.
    Probe,
}

impl PlanArgs {
    /// Whether the stages are tried.
    pub fn trials(&self) -> Trials {
        match self.probe {
            true => Trials::Probe,
            false => Trials::None,
        }
    }
}
