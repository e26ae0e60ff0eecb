//! The KL coefficient: constant, or adapted to reach a target KL.
//!
//! A controller is part of a run's state: without a checkpoint the adaptive coefficient would start
//! over on resume.

use serde::{Deserialize, Serialize};

use super::error::{Result, check_not_negative, check_positive};

/// A constant coefficient.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FixedKl {
    /// The coefficient.
    pub coef: f64,
}

/// The proportional controller of Ziegler et al. 2019, "Fine-Tuning Language Models from Human
/// Preferences", section 2.2:
/// e = clip(KL/target − 1, −0.2, 0.2), β ← β · (1 + e · n/horizon).
///
/// Ziegler's values are β = 0.15, target = 6 nats a sequence, horizon = 10000 sequences.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdaptiveKl {
    coef: f64,
    target: f64,
    horizon: f64,
}

/// Bound of the proportional error, Ziegler et al. 2019.
const MAX_ERROR: f64 = 0.2;

impl AdaptiveKl {
    /// A controller that starts at `coef` and adapts it towards a KL of `target` nats a sequence;
    /// `horizon` is the number of sequences over which it acts.
    ///
    /// # Errors
    /// [`RlhfError::Range`](super::RlhfError::Range) if `coef` is negative, or `target` or
    /// `horizon` not above zero.
    pub fn new(coef: f64, target: f64, horizon: f64) -> Result<Self> {
        check_not_negative("the initial KL coefficient", coef)?;
        check_positive("the target KL", target)?;
        check_positive("the horizon of the KL controller", horizon)?;
        Ok(Self {
            coef,
            target,
            horizon,
        })
    }

    /// Adapts the coefficient to `kl`, the mean KL of `sequences` sequences. A KL that is not
    /// finite is ignored, since it would stay in the coefficient.
    pub fn update(&mut self, kl: f64, sequences: usize) {
        if kl.is_finite() {
            let error = (kl / self.target - 1.0).clamp(-MAX_ERROR, MAX_ERROR);
            // n/horizon above 5 could turn the coefficient negative.
            self.coef *= (1.0 + error * sequences as f64 / self.horizon).max(0.0);
        }
    }
}

/// A constant or adaptive coefficient.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum KlController {
    /// The coefficient stays `coef`.
    Fixed(FixedKl),
    /// The coefficient follows the KL.
    Adaptive(AdaptiveKl),
}

impl KlController {
    /// The coefficient for the coming iteration.
    pub fn coef(&self) -> f64 {
        match self {
            Self::Fixed(fixed) => fixed.coef,
            Self::Adaptive(adaptive) => adaptive.coef,
        }
    }

    /// Adapts the coefficient to the `objective/kl` of an iteration of `sequences` sequences.
    pub fn update(&mut self, objective_kl: f64, sequences: usize) {
        match self {
            Self::Fixed(_) => {}
            Self::Adaptive(adaptive) => adaptive.update(objective_kl, sequences),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adaptive() -> KlController {
        KlController::Adaptive(AdaptiveKl::new(0.15, 6.0, 10_000.0).unwrap())
    }

    #[test]
    fn adaptive_rises_above_the_target_and_falls_below_it() {
        for (kl, expected) in [(6.6, 0.15 * 1.001), (6.0, 0.15), (0.0, 0.15 * 0.998)] {
            let mut controller = adaptive();
            controller.update(kl, 100);
            assert!((controller.coef() - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn fixed_stays_and_a_broken_kl_is_ignored() {
        let mut fixed = KlController::Fixed(FixedKl { coef: 0.05 });
        fixed.update(100.0, 64);
        assert_eq!(fixed.coef(), 0.05);
        let mut controller = adaptive();
        controller.update(f64::NAN, 64);
        assert_eq!(controller, adaptive());
    }

    #[test]
    fn the_coefficient_never_turns_negative() {
        let mut controller = adaptive();
        controller.update(0.0, 1_000_000);
        assert_eq!(controller.coef(), 0.0);
    }

    #[test]
    fn state_survives_serialisation() {
        let mut controller = adaptive();
        controller.update(7.3, 64);
        let text = serde_json::to_string(&controller).unwrap();
        assert_eq!(
            serde_json::from_str::<KlController>(&text).unwrap(),
            controller
        );
    }

    #[test]
    fn impossible_settings_are_refused() {
        for (coef, target, horizon) in [(-0.1, 6.0, 1e4), (0.1, 0.0, 1e4), (0.1, 6.0, f64::NAN)] {
            assert!(AdaptiveKl::new(coef, target, horizon).is_err());
        }
    }
}
