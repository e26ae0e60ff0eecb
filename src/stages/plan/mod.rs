//! The memory that a stage needs, computed before it runs.
//!
//! A plan reads the configuration, the configurations and file headers of the models, and, for the
//! length of the prompts, their files and the tokenizer. Weights are read in one case, which
//! [`RoleLayout`](crate::roles::RoleLayout) names. A model that an earlier stage is yet to make has
//! the sizes of the model that this stage starts from. Counted is the memory that grows with the
//! models or with the batch; the program, the data and the reserve of the allocator are not
//! ([`not_counted`]).
//!
//! Not here: the plans of a whole run ([`super::preflight`]), the plan of PPO
//! (`stages/ppo/plan`), and measurements ([`super::probe()`]).

pub mod generation;
pub mod machine;
pub mod models;
pub(super) mod supervised;
pub(super) mod table;

use crate::config::{Config, DataSource, Device, ModelStart, Stage};
use crate::model::activations::TrainingPass;
use crate::ops::head::most_logits;
use crate::roles::RoleTensors;

/// The memory of a stage.
#[derive(Clone, Debug)]
pub struct StagePlan {
    /// The stage.
    pub stage: Stage,
    /// The tensors that the stage holds from its beginning to its end.
    pub roles: Vec<RoleTensors>,
    /// Memory besides these tensors, in the order of its use.
    pub buffers: Vec<PlannedBuffer>,
    /// Notes on assumptions, and on memory that is not counted.
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
    /// Peak memory in bytes. The buffers of a rollout are freed before an update begins.
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

    /// Bytes of the tensors of all roles.
    fn roles_bytes(&self) -> usize {
        self.roles.iter().map(RoleTensors::bytes).sum()
    }
}

/// A note on the memory that no plan counts, for the end of all tables.
pub fn not_counted(config: &Config) -> String {
    let program = "not counted: the program itself, about 80 MiB";
    let Some(pretrain) = &config.pretrain else {
        return program.to_owned();
    };
    let folder = config.model.start.as_ref().and_then(ModelStart::folder);
    let trains_tokenizer = config.tokenizer.from.as_deref().or(folder).is_none();
    let mut files = pretrain.data.sources.iter();
    let is_text = |source: &DataSource| source.path.extension().is_some_and(|e| e == "txt");
    match trains_tokenizer || files.any(is_text) {
        true => format!(
            "{program}, and in stage pretrain the tokenizing of its text, about 110 bytes for each \
             byte of it"
        ),
        false => program.to_owned(),
    }
}

/// The activations of a training pass, with the memory of its backward pass.
pub(super) fn activations(pass: TrainingPass, device: Device) -> PlannedBuffer {
    let sums = match device.is_gpu() {
        true => pass.attention_sums(),
        false => 0,
    };
    PlannedBuffer {
        name: format!("activations of {} tokens", pass.rows),
        bytes: pass.held() + pass.backward() + sums,
        phase: BufferPhase::Update,
    }
}

/// The logits held at once while the log-probs of `targets` tokens are computed.
pub(super) fn log_prob_chunk(targets: usize, vocabulary: usize) -> PlannedBuffer {
    PlannedBuffer {
        name: "log-prob chunk".to_owned(),
        bytes: most_logits(targets, vocabulary) * size_of::<f32>(),
        phase: BufferPhase::Update,
    }
}
