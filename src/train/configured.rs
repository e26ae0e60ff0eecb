//! The keys that all stages have, as the loop's parts take them.

use super::optimizer::AdamWConfig;
use super::schedule::{Schedule, ScheduleKind};
use crate::config::{LrScheduler, Recompute, Training};
use crate::model::{self, Gradient};

/// Whether something that comes every `every` steps comes at `step`; 0 is never.
pub fn is_due(step: u64, every: usize) -> bool {
    every > 0 && step.is_multiple_of(every as u64)
}

/// The optimizer's constants as configured.
pub fn adamw(training: &Training) -> AdamWConfig {
    AdamWConfig {
        beta1: training.adam_beta1,
        beta2: training.adam_beta2,
        epsilon: training.adam_epsilon,
        weight_decay: training.weight_decay,
        max_grad_norm: training.max_grad_norm,
    }
}

/// The learning-rate schedule as configured, with this peak.
pub fn schedule(training: &Training, steps: u64, learning_rate: f64) -> Schedule {
    Schedule {
        kind: match training.lr_scheduler_type {
            LrScheduler::Constant => ScheduleKind::Constant,
            LrScheduler::Linear => ScheduleKind::Linear,
            LrScheduler::Cosine => ScheduleKind::Cosine,
        },
        learning_rate,
        warmup_steps: training.warmup_steps,
        total_steps: steps as usize,
        min_lr_ratio: training.min_lr_ratio,
    }
}

/// What the backward pass keeps, as configured.
pub fn gradient(training: &Training) -> Gradient {
    Gradient::Record(match training.recompute {
        Recompute::None => model::Recompute::None,
        Recompute::Block => model::Recompute::Block,
    })
}
