//! The learning rate as a pure function of the step.
//!
//! Linear warm-up, then constant, linear or cosine decay to a floor: Loshchilov and Hutter 2017, "SGDR",
//! eq. 5, without restarts. There is no state, so a resumed run needs the step number alone.

use std::f64::consts::PI;

/// The shape after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScheduleKind {
    /// Stays at the peak; neither `total_steps` nor `min_lr_ratio` matters.
    #[default]
    Constant,
    /// Falls along a straight line.
    Linear,
    /// Falls along half a cosine.
    Cosine,
}

/// A learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The shape after the warm-up.
    pub kind: ScheduleKind,
    /// The peak, reached at step `warmup_steps`.
    pub learning_rate: f64,
    /// Steps of linear warm-up; 0 for none.
    pub warmup_steps: usize,
    /// The step at which the floor is reached.
    pub total_steps: usize,
    /// The floor as a share of the peak, in [0, 1].
    pub min_lr_ratio: f64,
}

impl Schedule {
    /// The learning rate of `step`, counted from 1.
    ///
    /// Up to `warmup_steps` it is peak · step/warmup_steps, so the first step already moves. Past
    /// `total_steps` it stays at the floor.
    pub fn lr_at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * step as f64 / self.warmup_steps as f64;
        }
        let remaining = match self.kind {
            ScheduleKind::Constant => return self.learning_rate,
            ScheduleKind::Linear => 1.0 - self.progress(step),
            ScheduleKind::Cosine => 0.5 * (1.0 + (PI * self.progress(step)).cos()),
        };
        self.learning_rate * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * remaining)
    }

    /// Share of the decay that lies behind `step`, in [0, 1].
    fn progress(&self, step: usize) -> f64 {
        let behind = step.saturating_sub(self.warmup_steps);
        let decay = self.total_steps.saturating_sub(self.warmup_steps);
        if behind >= decay {
            // Also a warm-up as long as the run: its last step is the peak, all later ones the floor.
            return if behind == 0 { 0.0 } else { 1.0 };
        }
        behind as f64 / decay as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> Schedule {
        Schedule {
            kind,
            learning_rate: 3e-2,
            warmup_steps: 2,
            total_steps: 8,
            min_lr_ratio: 0.1,
        }
    }

    fn rates(kind: ScheduleKind) -> Vec<f64> {
        (1..=9).map(|step| schedule(kind).lr_at(step)).collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-15,
                "{found} against {expected}"
            );
        }
    }

    /// The `lr` of each step in `optimizer.json`, made with the script in `tests/golden`; step 9 lies past
    /// the end.
    #[test]
    fn cosine_matches_the_golden_rates() {
        let golden = [
            0.015,
            0.03,
            0.028191342951089923,
            0.02325,
            0.0165,
            0.009750000000000003,
            0.004808657048910077,
            0.003,
            0.003,
        ];
        assert_close(&rates(ScheduleKind::Cosine), &golden);
    }

    #[test]
    fn linear_falls_by_equal_parts_to_the_floor() {
        assert_close(
            &rates(ScheduleKind::Linear),
            &[
                0.015, 0.03, 0.0255, 0.021, 0.0165, 0.012, 0.0075, 0.003, 0.003,
            ],
        );
    }

    #[test]
    fn constant_stays_after_the_warm_up() {
        assert_close(
            &rates(ScheduleKind::Constant),
            &[0.015, 0.03, 0.03, 0.03, 0.03, 0.03, 0.03, 0.03, 0.03],
        );
    }

    #[test]
    fn a_warm_up_as_long_as_the_run_ends_at_the_peak() {
        let schedule = Schedule {
            warmup_steps: 8,
            ..schedule(ScheduleKind::Cosine)
        };
        assert_close(
            &[schedule.lr_at(4), schedule.lr_at(8), schedule.lr_at(9)],
            &[0.015, 0.03, 0.003],
        );
    }

    #[test]
    fn without_a_warm_up_the_decay_starts_at_once() {
        let schedule = Schedule {
            warmup_steps: 0,
            min_lr_ratio: 0.0,
            ..schedule(ScheduleKind::Linear)
        };
        assert_close(
            &[schedule.lr_at(1), schedule.lr_at(8)],
            &[0.03 * 7.0 / 8.0, 0.0],
        );
    }
}
