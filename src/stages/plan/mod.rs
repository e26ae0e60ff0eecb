//! How much memory a run will take, stage by stage, known before it begins.
//!
//! Read are the configuration, each model's `config.json` (of adapters the file's header too) and, for the length of the prompts, these
//! with the tokenizer. Weights are read in one case: a judge that is there already shares a trunk only if it was trained on it, which a sum
//! of the policy's lowest layers tells. A model that an earlier stage of the run is yet to make has the sizes of what that stage starts
//! from. Counted is what grows with the models or with the batch; the program itself, the data and the allocator's reserve
//! come on top.

pub mod activations;
pub mod generation;
mod judge;
pub mod machine;
pub mod models;
pub(super) mod ppo;
mod probe;
pub mod roles;
pub(super) mod supervised;
mod table;

use anyhow::{Context as _, Result};

use super::definition::definition;
use crate::config::{Config, Device, Stage};
use crate::ops::head::most_logits;
use activations::Pass;
use machine::Bound;
use models::Folders;
pub use probe::{Probed, probe};
use roles::Role;

/// The memory of a stage.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which one.
    pub stage: Stage,
    /// What it holds from its beginning to its end.
    pub roles: Vec<Role>,
    /// What it takes beside, in its order.
    pub buffers: Vec<Buffer>,
    /// What was assumed.
    pub notes: Vec<String>,
}

/// Memory that is no role's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// What the table calls it.
    pub name: String,
    /// Its size.
    pub bytes: usize,
    /// When it is there.
    pub phase: Phase,
}

/// When memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// While the policy generates.
    Rollout,
    /// While weights are trained.
    Update,
    /// In both.
    Both,
}

impl Plan {
    /// Bytes of everything that is listed.
    pub fn total(&self) -> usize {
        self.roles_bytes() + self.buffers.iter().map(|b| b.bytes).sum::<usize>()
    }

    /// Most of it that is there at once: a rollout has ended when an update begins.
    pub fn most_at_once(&self) -> usize {
        let in_phase = |phase| {
            let there = |b: &&Buffer| b.phase == phase || b.phase == Phase::Both;
            let bytes = self.buffers.iter().filter(there).map(|b| b.bytes);
            bytes.sum::<usize>()
        };
        self.roles_bytes() + in_phase(Phase::Rollout).max(in_phase(Phase::Update))
    }

    fn roles_bytes(&self) -> usize {
        self.roles.iter().map(Role::bytes).sum()
    }
}

/// The plans of all stages that the configuration has, in their order.
///
/// # Errors
/// If a model's configuration or the prompts cannot be read, or a model cannot have what is asked of it.
pub fn plan(config: &Config) -> Result<Vec<Plan>> {
    plans(config, &config.stages())
}

/// Checks whether the stages of the plans could begin, and fit on this machine.
///
/// # Errors
/// The message with which the first stage that cannot begin would end, or what does not fit.
pub fn check(config: &Config, plans: &[Plan], bound: Bound) -> Result<()> {
    let stages: Vec<Stage> = plans.iter().map(|plan| plan.stage).collect();
    let local = super::run::with_local_models(config, &stages)?;
    super::preflight::check(&local, &stages)?;
    machine::check(&local, plans, bound)
}

/// The plans of `stages`.
///
/// # Errors
/// The errors of [`plan`].
pub(super) fn plans(config: &Config, stages: &[Stage]) -> Result<Vec<Plan>> {
    let config = super::run::with_local_models(config, stages)?;
    let folders = Folders(&config);
    let plan = |&stage: &Stage| {
        let planned = definition(&config, stage)?.plan(folders, stage);
        let mut planned = planned.with_context(|| format!("stage {stage}"))?;
        if config.run.device != Device::Cpu {
            let words = "cache and activations are those of the CPU; a GPU's graph holds more";
            planned.notes.push(words.to_owned());
        }
        Ok(planned)
    };
    stages.iter().map(plan).collect()
}

/// The activations of a pass, what its backward pass takes beside them included.
fn activations(pass: Pass) -> Buffer {
    Buffer {
        name: format!("activations of {} tokens", pass.rows),
        bytes: pass.held() + pass.backward(),
        phase: Phase::Update,
    }
}

/// The logits of a pass that asks for the log-probs of `targets` tokens.
fn log_prob_chunk(targets: usize, vocabulary: usize) -> Buffer {
    Buffer {
        name: "log-prob chunk".to_owned(),
        bytes: most_logits(targets, vocabulary) * size_of::<f32>(),
        phase: Phase::Update,
    }
}
