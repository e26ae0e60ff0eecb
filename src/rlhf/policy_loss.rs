//! The clipped policy loss of PPO: Schulman et al. 2017, "Proximal Policy Optimization Algorithms",
//! eq. 7.
//!
//! Two variations: clip-higher (a separate upper range; Yu et al. 2025, "DAPO", section 3.1) and
//! the dual clip, which bounds the loss of a token with negative advantage and a large ratio (Ye et
//! al. 2020, "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning").

use candle_core::Tensor;

use super::differentiable::{attach_gradient, host_values};
use super::error::{Result, RlhfError, check_length, check_not_negative};
use super::ratio::RatioStats;
use super::stats::Real;

/// Bounds of the ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicyLossConfig {
    /// The ratio is clipped at 1 − this from below.
    pub cliprange_low: f64,
    /// The ratio is clipped at 1 + this from above.
    pub cliprange_high: f64,
    /// c > 1: where the advantage A is negative the loss is at most −c·A.
    pub dual_clip: Option<f64>,
}

impl PolicyLossConfig {
    /// Clips ratios to 1 ± `cliprange`, without dual clip.
    pub fn symmetric(cliprange: f64) -> Self {
        Self {
            cliprange_low: cliprange,
            cliprange_high: cliprange,
            dual_clip: None,
        }
    }

    fn check(&self) -> Result<()> {
        check_not_negative("the lower clip range", self.cliprange_low)?;
        check_not_negative("the upper clip range", self.cliprange_high)?;
        match self.dual_clip {
            Some(found) if found.is_nan() || found <= 1.0 => Err(RlhfError::Range {
                what: "the dual clip",
                found,
                requirement: "above 1",
            }),
            _ => Ok(()),
        }
    }
}

/// Sums over the tokens of a microbatch; [`merge`](Self::merge) them over a minibatch, then read
/// the means.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PolicyStats {
    /// The ratio of new to old policy.
    pub ratio: RatioStats,
    /// Tokens whose clipped loss exceeds the unclipped one; the clip stops their gradient.
    pub clipped: usize,
    /// Tokens whose loss the dual clip bounds; this stops their gradient too.
    pub dual_clipped: usize,
}

impl PolicyStats {
    /// Adds the tokens of another microbatch.
    pub fn merge(&mut self, other: &Self) {
        self.ratio.merge(&other.ratio);
        self.clipped += other.clipped;
        self.dual_clipped += other.dual_clipped;
    }

    /// `policy/clip_fraction`; NaN without tokens.
    pub fn clip_fraction(&self) -> f64 {
        self.clipped as f64 / self.ratio.tokens as f64
    }

    /// `policy/dual_clip_fraction`; NaN without tokens.
    pub fn dual_clip_fraction(&self) -> f64 {
        self.dual_clipped as f64 / self.ratio.tokens as f64
    }
}

/// Result of [`policy_loss`].
#[derive(Debug, Clone)]
pub struct PolicyLoss {
    /// Scalar to call `backward` on.
    pub loss: Tensor,
    /// The value of `loss` on the host, in full precision. The values of a minibatch's microbatches
    /// add up to `loss/policy`.
    pub value: f64,
    /// Unweighted sums over the tokens.
    pub stats: PolicyStats,
}

/// Loss and gradient of one token.
struct TokenLoss {
    loss: f64,
    gradient: f64, // with respect to the token's new log-prob
}

/// Σ wₜ max(−Aₜ ρₜ, −Aₜ clip(ρₜ, 1 − low, 1 + high)), with ρ = exp(log π_new − log π_old).
///
/// All arguments are `[n]`; `new_log_probs` is the differentiable one. `weights` come from
/// [`LossAggregation::weights`](super::LossAggregation::weights), taken over the whole minibatch.
///
/// At a tie of the two terms, as at ratio exactly 1, the unclipped one is taken: the gradient there
/// is −wₜ Aₜ. A NaN in any argument gives a NaN loss.
///
/// # Errors
/// A length error if the arguments differ in length; a range error for a negative clip range or a
/// dual clip of 1 or below; candle's errors.
pub fn policy_loss<O: Real, A: Real>(
    new_log_probs: &Tensor,
    old_log_probs: &[O],
    advantages: &[A],
    weights: &[f64],
    config: &PolicyLossConfig,
) -> Result<PolicyLoss> {
    config.check()?;
    let new = host_values(new_log_probs)?;
    check_length("old log-probs", old_log_probs.len(), new.len())?;
    check_length("advantages", advantages.len(), new.len())?;
    check_length("weights", weights.len(), new.len())?;
    let (mut value, mut gradient, mut stats) =
        (0.0, Vec::with_capacity(new.len()), PolicyStats::default());
    for t in 0..new.len() {
        let log_ratio = new[t] - old_log_probs[t].into();
        let token = token_loss(log_ratio, advantages[t].into(), config, &mut stats);
        value += weights[t] * token.loss;
        gradient.push(weights[t] * token.gradient);
    }
    Ok(PolicyLoss {
        loss: attach_gradient(new_log_probs, value, gradient)?,
        value,
        stats,
    })
}

fn token_loss(
    log_ratio: f64,
    advantage: f64,
    config: &PolicyLossConfig,
    stats: &mut PolicyStats,
) -> TokenLoss {
    let ratio = log_ratio.exp();
    stats.ratio.observe(log_ratio, ratio);
    let unclipped = -advantage * ratio;
    let clipped = -advantage * ratio.clamp(1.0 - config.cliprange_low, 1.0 + config.cliprange_high);
    if clipped > unclipped {
        // Only reached outside the range, where the clipped ratio is constant.
        stats.clipped += 1;
        return TokenLoss {
            loss: clipped,
            gradient: 0.0,
        };
    }
    match config.dual_clip {
        Some(bound) if advantage < 0.0 && unclipped > -bound * advantage => {
            stats.dual_clipped += 1;
            TokenLoss {
                loss: -bound * advantage,
                gradient: 0.0,
            }
        }
        _ => TokenLoss {
            loss: unclipped,
            gradient: unclipped,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::differentiable::tests::{gradient, var};
    use super::*;

    /// Loss and gradient of one token with weight 1.
    fn one(ratio: f64, advantage: f64, config: PolicyLossConfig) -> (f64, f64, PolicyStats) {
        let x = var(&[ratio.ln() - 1.0]);
        let result = policy_loss(&x, &[-1.0], &[advantage], &[1.0], &config).unwrap();
        (result.value, gradient(&result.loss, &x)[0], result.stats)
    }

    #[test]
    fn at_ratio_one_the_gradient_is_the_whole_advantage() {
        let x = var(&[-0.7, -1.3]);
        let result = policy_loss(
            &x,
            &[-0.7, -1.3],
            &[2.0, -3.0],
            &[0.5; 2],
            &PolicyLossConfig::symmetric(0.2),
        )
        .unwrap();
        assert_eq!(gradient(&result.loss, &x), [-1.0, 1.5]);
        assert_eq!((result.value, result.stats.clip_fraction()), (0.5, 0.0));
        assert_eq!(
            (
                result.stats.ratio.ratio_mean(),
                result.stats.ratio.approx_kl()
            ),
            (1.0, 0.0)
        );
    }

    #[test]
    fn the_clip_stops_only_what_would_go_further_away() {
        let config = PolicyLossConfig::symmetric(0.2);
        for (ratio, advantage, stopped) in [
            (1.5, 1.0, true),
            (1.5, -1.0, false),
            (0.5, 1.0, false),
            (0.5, -1.0, true),
        ] {
            let (_, gradient, stats) = one(ratio, advantage, config);
            assert_eq!(
                (gradient == 0.0, stats.clipped == 1),
                (stopped, stopped),
                "ratio {ratio}, advantage {advantage}"
            );
        }
    }

    #[test]
    fn clip_higher_leaves_room_above_only() {
        let config = PolicyLossConfig {
            cliprange_low: 0.2,
            cliprange_high: 0.28,
            dual_clip: None,
        };
        assert!(one(1.25, 1.0, config).1 != 0.0);
        assert_eq!(one(0.75, -1.0, config).1, 0.0);
    }

    #[test]
    fn dual_clip_bounds_the_loss_of_a_bad_token() {
        let config = PolicyLossConfig {
            dual_clip: Some(3.0),
            ..PolicyLossConfig::symmetric(0.2)
        };
        let (loss, gradient, stats) = one(10.0, -2.0, config);
        assert_eq!((loss, gradient, stats.clipped), (6.0, 0.0, 0));
        assert_eq!(stats.dual_clip_fraction(), 1.0);
        assert_eq!(one(2.0, -2.0, config).2.dual_clipped, 0);
        assert!((one(2.0, -2.0, config).1 - 4.0).abs() < 1e-12);
        assert!(
            (one(10.0, 2.0, config).0 + 2.4).abs() < 1e-12,
            "a good token keeps its own clip"
        );
    }

    #[test]
    fn a_nan_reaches_the_loss() {
        let config = PolicyLossConfig {
            dual_clip: Some(3.0),
            ..PolicyLossConfig::symmetric(0.2)
        };
        for (new, advantage) in [(f64::NAN, 1.0), (-1.0, f64::NAN)] {
            let x = var(&[new]);
            let result = policy_loss(&x, &[-1.0], &[advantage], &[1.0], &config).unwrap();
            assert!(result.value.is_nan() && gradient(&result.loss, &x)[0].is_nan());
        }
    }

    #[test]
    fn settings_and_lengths_are_checked() {
        let x = var(&[-1.0]);
        let with = |config| policy_loss(&x, &[-1.0], &[1.0], &[1.0], &config);
        assert!(with(PolicyLossConfig::symmetric(-0.1)).is_err());
        assert!(
            with(PolicyLossConfig {
                dual_clip: Some(1.0),
                ..PolicyLossConfig::symmetric(0.2)
            })
            .is_err()
        );
        let error = policy_loss(
            &x,
            &[-1.0],
            &[1.0, 2.0],
            &[1.0],
            &PolicyLossConfig::symmetric(0.2),
        )
        .unwrap_err();
        assert!(error.to_string().starts_with("advantages has 2"));
    }
}
