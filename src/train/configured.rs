//! Optimizer, schedule and backward pass by the keys that all stages have.

use super::optimizer::AdamWConfig;
use super::schedule::Schedule;
use crate::config::Training;
use crate::model::Gradient;

/// Whether an event that occurs every `every` steps is due at `step`; 0 means never.
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
        kind: training.lr_scheduler_type,
        learning_rate,
        warmup_steps: training.warmup_steps,
        total_steps: steps as usize,
        min_lr_ratio: training.min_lr_ratio,
    }
}

/// A note on a learning rate of 0, which leaves the model `kept` names as it was.
pub fn rate_of_zero(training: &Training, kept: &str) -> Option<String> {
    (training.learning_rate == 0.0)
        .then(|| format!("learning_rate = 0: {kept} as the stage found it"))
}

/// A note on a warm-up that is longer than the stage's `steps`.
pub fn never_at_peak(training: &Training, steps: u64) -> Option<String> {
    let schedule = schedule(training, steps, training.learning_rate);
    let (warmup, share) = (training.warmup_steps, 100.0 * schedule.highest_share());
    (share < 100.0).then(|| {
        format!(
            "warmup_steps = {warmup} with {steps} steps in all: the learning rate rises to \
             {share:.0} % of learning_rate and no further"
        )
    })
}

/// The gradient mode of a forward pass whose backward pass recomputes activations as configured.
pub fn gradient(training: &Training) -> Gradient {
    Gradient::Record(training.recompute)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(warmup_steps: usize, learning_rate: f64) -> Training {
        Training {
            warmup_steps,
            learning_rate,
            ..Training::default()
        }
    }

    #[test]
    fn a_warm_up_that_does_not_end_is_said() {
        let note = never_at_peak(&training(9, 1e-3), 2).unwrap();
        assert!(
            note.contains("warmup_steps = 9") && note.contains("20 %"),
            "{note}"
        );
        assert!(never_at_peak(&training(3, 1e-3), 3).is_some());
        assert_eq!(never_at_peak(&training(2, 1e-3), 3), None);
        assert_eq!(never_at_peak(&training(0, 1e-3), 1), None);
    }

    #[test]
    fn a_rate_of_zero_is_said() {
        let note = rate_of_zero(&training(0, 0.0), "the model stays").unwrap();
        assert_eq!(
            note,
            "learning_rate = 0: the model stays as the stage found it"
        );
        assert_eq!(rate_of_zero(&training(0, 1e-9), "the model stays"), None);
    }
}
