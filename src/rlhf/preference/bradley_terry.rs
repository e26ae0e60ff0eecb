//! Bradley-Terry for reward models: Ouyang et al. 2022, "Training Language Models to Follow
//! Instructions", eq. 1; the margin of Touvron et al. 2023, "Llama 2", eq. 2; centring of
//! Eisenstein et al. 2023, "Helping or Herding?", eq. 2.

use candle_core::Tensor;

use super::super::differentiable::{attach_gradient, host_values};
use super::super::error::{Result, check_length, check_not_negative, check_positive};
use super::{PreferenceStats, log_sigmoid, sigmoid};

/// Result of [`bradley_terry`].
#[derive(Debug, Clone)]
pub struct BradleyTerryLoss {
    /// Scalar to call `backward` on: ranking plus centring.
    pub loss: Tensor,
    /// −log σ(chosen − rejected − margin), summed and divided by the step's pairs.
    pub ranking: f64,
    /// The centring term, its coefficient included.
    pub centering: f64,
    /// Unweighted sums over the pairs.
    pub stats: PreferenceStats,
}

/// Mean of −log σ(chosen − rejected − margin) + centering_coef · (chosen + rejected)².
///
/// Centring keeps the scores near zero, which the ranking alone does not determine.
///
/// # Errors
/// A length error if the arguments differ in length; a range error for `pairs` 0 or a negative
/// coefficient; candle's errors.
pub fn bradley_terry(
    chosen: &Tensor,
    rejected: &Tensor,
    margins: Option<&[f64]>,
    centering_coef: f64,
    pairs: usize,
) -> Result<BradleyTerryLoss> {
    check_not_negative("the centring coefficient", centering_coef)?;
    check_positive("the step's pair count", pairs as f64)?;
    let (c, r) = (host_values(chosen)?, host_values(rejected)?);
    check_length("rejected scores", r.len(), c.len())?;
    check_length("margins", margins.map_or(c.len(), <[f64]>::len), c.len())?;
    let weight = 1.0 / pairs as f64;
    let mut gradients = PairGradients::with_capacity(c.len());
    let (mut ranking, mut centering, mut stats) = (0.0, 0.0, PreferenceStats::default());
    for i in 0..c.len() {
        let logit = c[i] - r[i] - margins.map_or(0.0, |m| m[i]);
        let sum = c[i] + r[i];
        ranking -= weight * log_sigmoid(logit);
        centering += weight * centering_coef * sum * sum;
        let (pull, centre) = (
            -weight * sigmoid(-logit),
            2.0 * weight * centering_coef * sum,
        );
        gradients.push(pull + centre, -pull + centre);
        stats.observe(c[i], r[i]);
    }
    let loss = gradients.attach(chosen, rejected, ranking + centering)?;
    Ok(BradleyTerryLoss {
        loss,
        ranking,
        centering,
        stats,
    })
}

/// Gradients with respect to both members of each pair.
struct PairGradients {
    chosen: Vec<f64>,
    rejected: Vec<f64>,
}

impl PairGradients {
    fn with_capacity(pairs: usize) -> Self {
        Self {
            chosen: Vec::with_capacity(pairs),
            rejected: Vec::with_capacity(pairs),
        }
    }

    fn push(&mut self, chosen: f64, rejected: f64) {
        self.chosen.push(chosen);
        self.rejected.push(rejected);
    }

    /// The loss of `value` as a function of both tensors.
    fn attach(self, chosen: &Tensor, rejected: &Tensor, value: f64) -> Result<Tensor> {
        let of_chosen = attach_gradient(chosen, value, self.chosen)?;
        Ok((of_chosen + attach_gradient(rejected, 0.0, self.rejected)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::differentiable::tests::{gradient, var};
    use super::*;

    #[test]
    fn micro_batches_add_up_to_the_step() {
        let (chosen, rejected, margins) = ([0.5, -1.0, 2.0], [0.1, 0.3, 2.5], [0.0, 0.2, 1.0]);
        let part = |range: std::ops::Range<usize>| {
            let (c, r) = (var(&chosen[range.clone()]), var(&rejected[range.clone()]));
            let result = bradley_terry(&c, &r, Some(&margins[range]), 0.01, 3).unwrap();
            (gradient(&result.loss, &c), result)
        };
        let (whole_gradient, whole) = part(0..3);
        let (first_gradient, first) = part(0..1);
        let (rest_gradient, rest) = part(1..3);
        assert_eq!([first_gradient, rest_gradient].concat(), whole_gradient);
        assert!((first.ranking + rest.ranking - whole.ranking).abs() < 1e-15);
        assert!((first.centering + rest.centering - whole.centering).abs() < 1e-15);
        let mut merged = first.stats;
        merged.merge(&rest.stats);
        assert_eq!((merged.pairs, merged.correct), (3, 1));
        assert!((merged.margin() - whole.stats.margin()).abs() < 1e-15);
    }

    #[test]
    fn margins_of_another_length_are_refused() {
        let error =
            bradley_terry(&var(&[1.0]), &var(&[0.0]), Some(&[0.0, 0.0]), 0.0, 1).unwrap_err();
        assert!(error.to_string().starts_with("margins has 2"));
    }
}
