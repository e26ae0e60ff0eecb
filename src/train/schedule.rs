//! The learning rate as a pure function of the step.
//!
//! Hugging Face's schedules as its trainer applies them: a linear warm-up, then constant, linear or
//! cosine decay (Loshchilov and Hutter 2017, "SGDR", eq. 5, without restarts) to a floor. There is
//! no state, so a resumed run needs the step number alone.
//!
//! Steps count from 1. transformers' `lr_lambda(k)` counts from 0 and sets the rate of step k + 1.
//! With w warm-up steps, N steps and the floor m as a share of the peak, step s has this share of
//! the peak:
//!
//! | step | here | transformers |
//! |---|---|---|
//! | 1 ≤ s ≤ w | s / (w + 1) | (s − 1) / w |
//! | w < s ≤ N | m + (1 − m) · f(x), x = (s − 1 − w) / max(N − w, 1) | the same |
//!
//! f(x) is 1, 1 − x or ½ (1 + cos πx). The decay begins at the peak, on step w + 1, and would be at
//! the floor on step N + 1, so that the last step still learns. The warm-up alone differs: its
//! first step in transformers has rate 0 and changes nothing. Here the straight line from 0 to the
//! peak begins a step earlier, as in nanoGPT; it lies above theirs by at most 1 / (w + 1), and by
//! that on the first step. A warm-up as long as the stage or longer never reaches the peak.

use std::f64::consts::PI;

use crate::config::LrScheduler;

/// A learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The shape after the warm-up.
    pub kind: LrScheduler,
    /// The peak, which step `warmup_steps + 1` has.
    pub learning_rate: f64,
    /// Steps of linear warm-up; 0 for none.
    pub warmup_steps: usize,
    /// Steps in all. The decay would reach the floor on the step after them.
    pub total_steps: usize,
    /// The floor as a share of the peak, in [0, 1].
    pub min_lr_ratio: f64,
}

impl Schedule {
    /// The learning rate of `step`, counted from 1. Past `total_steps` it stays at the floor.
    pub fn lr_at(&self, step: usize) -> f64 {
        if step <= self.warmup_steps {
            return self.learning_rate * step as f64 / (self.warmup_steps as f64 + 1.0);
        }
        let remaining = match self.kind {
            LrScheduler::Constant => return self.learning_rate,
            LrScheduler::Linear => 1.0 - self.progress(step),
            LrScheduler::Cosine => 0.5 * (1.0 + (PI * self.progress(step)).cos()),
        };
        self.learning_rate * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * remaining)
    }

    /// The highest rate that a step has, as a share of the peak: below 1 where the warm-up is as
    /// long as the stage.
    pub fn highest_share(&self) -> f64 {
        let last = self.total_steps as f64 / (self.warmup_steps as f64 + 1.0);
        last.min(1.0)
    }

    /// Share of the decay that lies behind a `step` after the warm-up, in [0, 1].
    fn progress(&self, step: usize) -> f64 {
        let behind = step - self.warmup_steps - 1;
        let decay = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        (behind as f64 / decay as f64).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    const PEAK: f64 = 3e-2;

    fn schedule(kind: LrScheduler, warmup_steps: usize, total_steps: usize) -> Schedule {
        Schedule {
            kind,
            learning_rate: PEAK,
            warmup_steps,
            total_steps,
            min_lr_ratio: 0.0,
        }
    }

    fn rates(schedule: Schedule) -> Vec<f64> {
        (1..=schedule.total_steps)
            .map(|step| schedule.lr_at(step))
            .collect()
    }

    #[track_caller]
    fn assert_close(found: f64, expected: f64, what: &str) {
        let gap = (found - expected).abs();
        assert!(gap <= 1e-15, "{what}: {found} against {expected}");
    }

    /// The rates of a run of transformers, each as its optimizer had it when it stepped.
    #[derive(Deserialize)]
    struct Golden {
        name: String,
        learning_rate: f64,
        warmup_steps: usize,
        total_steps: usize,
        min_lr_ratio: f64,
        rates: Vec<f64>,
    }

    impl Golden {
        fn all() -> Vec<Self> {
            let golden = include_str!("../../tests/golden/schedules.json");
            let mut golden: serde_json::Value = serde_json::from_str(golden).unwrap();
            serde_json::from_value(golden["cases"].take()).unwrap()
        }

        fn schedule(&self) -> Schedule {
            let kind = match self.name.as_str() {
                "constant" | "constant_with_warmup" => LrScheduler::Constant,
                "linear" | "polynomial" => LrScheduler::Linear,
                "cosine" | "cosine_with_min_lr" => LrScheduler::Cosine,
                other => panic!("no schedule here is {other}"),
            };
            Schedule {
                kind,
                learning_rate: self.learning_rate,
                warmup_steps: self.warmup_steps,
                total_steps: self.total_steps,
                min_lr_ratio: self.min_lr_ratio,
            }
        }
    }

    /// `rates[s - 1]` is the rate of transformers' optimizer on its step s. After the warm-up ours
    /// is the same. During it theirs is (s − 1)/w and ours s/(w + 1), above theirs of this step and
    /// below theirs of the next one.
    #[test]
    fn rates_are_those_of_transformers_but_for_its_step_at_zero() {
        let mut warm = 0;
        for golden in Golden::all() {
            let (ours, warmup) = (golden.schedule(), golden.warmup_steps);
            assert_eq!(golden.rates.len(), golden.total_steps);
            for (step, &theirs) in (1..).zip(&golden.rates) {
                let (found, what) = (ours.lr_at(step), format!("{ours:?} step {step}"));
                assert!(found > 0.0, "{what} learns nothing");
                if step > warmup {
                    assert_close(found, theirs, &what);
                    continue;
                }
                warm += 1;
                let (step, warmup) = (step as f64, warmup as f64);
                assert_close(theirs, golden.learning_rate * (step - 1.0) / warmup, &what);
                assert_close(found, golden.learning_rate * step / (warmup + 1.0), &what);
                let next = golden.learning_rate * step / warmup;
                assert!(
                    theirs < found && found < next,
                    "{what}: {theirs} {found} {next}"
                );
            }
        }
        assert!(warm > 100, "{warm} steps of a warm-up");
    }

    #[test]
    fn a_single_step_runs_at_the_peak_and_two_end_above_zero() {
        for kind in [
            LrScheduler::Constant,
            LrScheduler::Linear,
            LrScheduler::Cosine,
        ] {
            assert_eq!(rates(schedule(kind, 0, 1)), [PEAK]);
        }
        for kind in [LrScheduler::Linear, LrScheduler::Cosine] {
            let found = rates(schedule(kind, 0, 2));
            assert_eq!(found[0], PEAK);
            assert_close(found[1], PEAK / 2.0, "the second of two");
        }
    }

    #[test]
    fn a_warm_up_as_long_as_the_stage_or_longer_stays_below_the_peak() {
        for warmup in [3, 4, 100] {
            let schedule = schedule(LrScheduler::Cosine, warmup, 3);
            let line = [1.0, 2.0, 3.0].map(|step| PEAK * step / (warmup as f64 + 1.0));
            assert_eq!(rates(schedule), line);
            assert_close(PEAK * schedule.highest_share(), line[2], "the highest");
        }
        assert_eq!(schedule(LrScheduler::Linear, 2, 3).highest_share(), 1.0);
        assert_eq!(rates(schedule(LrScheduler::Linear, 2, 3))[2], PEAK);
    }

    #[test]
    fn past_the_end_the_rate_stays_at_the_floor() {
        for kind in [LrScheduler::Linear, LrScheduler::Cosine] {
            let schedule = Schedule {
                min_lr_ratio: 0.1,
                ..schedule(kind, 2, 8)
            };
            for step in [9, 10, 1000] {
                assert_close(schedule.lr_at(step), PEAK * 0.1, "past the end");
            }
        }
    }
}
