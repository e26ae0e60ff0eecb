//! The memory that each stage of a run will need, known before the run begins.
//!
//! A plan reads the configuration, the configurations and file headers of the models, and, for the
//! length of the prompts, their files and the tokenizer. Weights are read in one case, which
//! [`RoleLayout`](crate::roles::RoleLayout) names. A model that an earlier stage is yet to make has
//! the sizes of the model that this stage starts from. Counted is the memory that grows with the
//! models or with the batch; the program, the data and the reserve of the allocator are not.

pub mod generation;
pub mod machine;
pub mod models;
pub(super) mod ppo;
mod probe;
pub(super) mod supervised;
mod table;

use anyhow::{Context as _, Result};

use super::definition::definition;
use crate::config::{Config, Device, Stage};
use crate::model::activations::TrainingPass;
use crate::ops::head::most_logits;
use crate::roles::RoleTensors;
use machine::MemoryBound;
use models::RunModels;
pub use probe::{ProbeReport, probe};

/// The memory of a stage.
#[derive(Clone, Debug)]
pub struct StagePlan {
    /// The stage.
    pub stage: Stage,
    /// The tensors that the stage holds from its beginning to its end.
    pub roles: Vec<RoleTensors>,
    /// Memory besides these tensors, in the order of its use.
    pub buffers: Vec<PlannedBuffer>,
    /// Assumptions, and what is not counted.
    pub notes: Vec<String>,
}

/// Memory that a stage needs besides the tensors of its roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedBuffer {
    /// The name in the table.
    pub name: String,
    /// The size in bytes.
    pub bytes: usize,
    /// The phase in which the memory is held.
    pub phase: BufferPhase,
}

/// The phase in which a buffer is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferPhase {
    /// While the policy generates.
    Rollout,
    /// While weights are trained.
    Update,
    /// In both phases.
    Both,
}

impl StagePlan {
    /// Bytes held at once at most: the buffers of a rollout are freed before an update begins.
    pub fn peak_bytes(&self) -> usize {
        let in_phase = |phase| {
            let held = |b: &&PlannedBuffer| b.phase == phase || b.phase == BufferPhase::Both;
            let bytes = self.buffers.iter().filter(held).map(|b| b.bytes);
            bytes.sum::<usize>()
        };
        let (rollout, update) = (
            in_phase(BufferPhase::Rollout),
            in_phase(BufferPhase::Update),
        );
        self.roles_bytes() + rollout.max(update)
    }

    fn roles_bytes(&self) -> usize {
        self.roles.iter().map(RoleTensors::bytes).sum()
    }
}

/// The plans of all stages of the configuration, in order.
///
/// # Errors
/// If a model's configuration or the prompts cannot be read, or a stage would refuse its models.
pub fn plan(config: &Config) -> Result<Vec<StagePlan>> {
    plans(config, &config.stages())
}

/// Checks that the planned stages can begin, and that they fit on this machine.
///
/// # Errors
/// The error of the first stage that cannot begin, or that does not fit.
pub fn check(config: &Config, plans: &[StagePlan], bound: MemoryBound) -> Result<()> {
    let stages: Vec<Stage> = plans.iter().map(|plan| plan.stage).collect();
    let local = super::run::with_local_models(config, &stages)?;
    super::preflight::check(&local, &stages)?;
    machine::check(&local, plans, bound)
}

/// The plans of `stages`.
///
/// # Errors
/// The errors of [`plan`].
pub(super) fn plans(config: &Config, stages: &[Stage]) -> Result<Vec<StagePlan>> {
    let config = super::run::with_local_models(config, stages)?;
    let plan = |&stage: &Stage| plan_of(&config, stage).with_context(|| format!("stage {stage}"));
    stages.iter().map(plan).collect()
}

fn plan_of(config: &Config, stage: Stage) -> Result<StagePlan> {
    let mut plan = definition(config, stage)?.plan(RunModels(config), stage)?;
    if config.run.device != Device::Cpu {
        let note = "cache and activations are those of the CPU; a GPU's graph holds more";
        plan.notes.push(note.to_owned());
    }
    Ok(plan)
}

/// The activations of a training pass, with the memory of its backward pass.
fn activations(pass: TrainingPass) -> PlannedBuffer {
    PlannedBuffer {
        name: format!("activations of {} tokens", pass.rows),
        bytes: pass.held() + pass.backward(),
        phase: BufferPhase::Update,
    }
}

/// The logits held at once while the log-probs of `targets` tokens are computed.
fn log_prob_chunk(targets: usize, vocabulary: usize) -> PlannedBuffer {
    PlannedBuffer {
        name: "log-prob chunk".to_owned(),
        bytes: most_logits(targets, vocabulary) * size_of::<f32>(),
        phase: BufferPhase::Update,
    }
}
