//! ORPO (Hong et al. 2024): the policy learns the chosen answers and, at the same time, to prefer
//! them to the rejected ones, without a reference. The formula stands in `rlhf::preference`.

use anyhow::Result;

use super::context::Context;
use super::definition::CommandHelp;
use super::examples::Examples;
use super::language::log_probs;
use super::pairs;
use super::supervised::ExampleStage;
use crate::config::{Orpo, Stage};
use crate::data;
use crate::data::example::{Encoded, Encoder, Pair};
use crate::data::packing::PackedBatch;
use crate::data::records::Record;
use crate::model::{Decoder, Gradient};
use crate::rlhf::RaggedRows;
use crate::rlhf::preference::{OddsRatioLoss, OddsRatioStats, OddsRatioTotals, odds_ratio};
use crate::train::metrics::names;
use crate::train::objective::{Evaluation, LossShare, Objective};

impl ExampleStage for Orpo {
    type Record = Pair;
    type Objective = OddsRatio;

    fn help(_stage: Stage) -> CommandHelp {
        CommandHelp {
            about: "Tune the policy on pairs of a better and a worse answer, without a reference",
            details: "Needs [orpo] with `data`. Minimises the negative log-likelihood of the \
                      better answers plus `beta` times the odds-ratio loss, so that it can follow \
                      pretraining without fine-tuning between.",
            example: "collimate orpo configs/orpo.toml --set orpo.beta=0.2 --fresh",
        }
    }

    fn encode(&self, encoder: &Encoder, records: &[Record]) -> data::Result<Encoded<Pair>> {
        encoder.direct_pairs(records)
    }

    fn split(&self, pairs: Examples<Pair>) -> Examples<Pair> {
        pairs
    }

    fn objective(
        &self,
        _context: &Context,
        _model: &Decoder,
        _examples: &mut Examples<Pair>,
    ) -> Result<Option<OddsRatio>> {
        Ok(Some(OddsRatio { beta: self.beta }))
    }
}

/// Negative log-likelihood of the chosen sequences, plus the odds-ratio loss.
pub struct OddsRatio {
    /// Weight of the odds-ratio loss.
    beta: f64,
}

/// Pairs of a chosen and a rejected sequence.
pub struct SequencePairs {
    /// Targets: all tokens of the chosen sequences, and the answers of the rejected ones.
    packed: PackedBatch,
    /// Number of target tokens of each sequence's answer.
    answers: Vec<usize>,
}

impl SequencePairs {
    fn new(pairs: &[&Pair]) -> Self {
        let (mut packed, mut answers) = (PackedBatch::default(), Vec::new());
        for pair in pairs {
            let [chosen, rejected] = pair.sequences();
            // Without a prompt nothing predicts an answer's first token.
            let answer = pair.prompt.len().max(1);
            packed.push(&chosen, 1..chosen.len());
            packed.push(&rejected, answer..rejected.len());
            answers.extend([chosen.len() - answer, rejected.len() - answer]);
        }
        Self { packed, answers }
    }

    fn totals(&self) -> OddsRatioTotals {
        let offsets = self.packed.offsets.windows(2).step_by(2);
        OddsRatioTotals {
            pairs: self.answers.len() / 2,
            chosen_tokens: offsets.map(|chosen| chosen[1] - chosen[0]).sum(),
        }
    }
}

impl OddsRatio {
    fn of(
        &self,
        model: &Decoder,
        batch: &SequencePairs,
        totals: OddsRatioTotals,
        gradient: Gradient,
    ) -> Result<OddsRatioLoss> {
        let rows = RaggedRows::new(&batch.packed.offsets)?;
        let found = log_probs(model, &batch.packed, gradient)?;
        let loss = odds_ratio(&found, rows, &batch.answers, self.beta, totals)?;
        Ok(loss)
    }
}

impl Objective for OddsRatio {
    type Example = Pair;
    type Batch = SequencePairs;
    type Total = OddsRatioTotals;

    fn tokens(&self, pair: &Pair) -> usize {
        pairs::tokens(pair)
    }

    fn batch(&self, pairs: &[&Pair]) -> Result<SequencePairs> {
        Ok(SequencePairs::new(pairs))
    }

    fn total(&self, batches: &[SequencePairs]) -> OddsRatioTotals {
        let totals = || batches.iter().map(SequencePairs::totals);
        OddsRatioTotals {
            pairs: totals().map(|batch| batch.pairs).sum(),
            chosen_tokens: totals().map(|batch| batch.chosen_tokens).sum(),
        }
    }

    fn loss(
        &self,
        model: &Decoder,
        batch: &SequencePairs,
        totals: OddsRatioTotals,
        gradient: Gradient,
    ) -> Result<LossShare> {
        let found = self.of(model, batch, totals, gradient)?;
        Ok(LossShare {
            loss: found.loss,
            measures: measures(&found.stats, totals),
        })
    }

    fn evaluate(&self, model: &Decoder, batches: &[SequencePairs]) -> Result<Evaluation> {
        let totals = self.total(batches);
        pairs::evaluate(batches, |batch| {
            let found = self.of(model, batch, totals, Gradient::Skip)?;
            Ok((found.value, measures(&found.stats, totals)))
        })
    }
}

/// A batch's share of each metric's mean over the step, under TRL's names.
fn measures(stats: &OddsRatioStats, totals: OddsRatioTotals) -> Vec<(&'static str, f64)> {
    let sums = [
        (names::LOGPS_CHOSEN, stats.chosen_log_probs),
        (names::LOGPS_REJECTED, stats.rejected_log_probs),
        (names::LOG_ODDS_RATIO, stats.log_odds_ratio),
        (names::LOG_ODDS_CHOSEN, stats.log_odds),
    ];
    let sums = pairs::rewards(&stats.rewards).into_iter().chain(sums);
    let means = sums.map(|(name, sum)| (name, sum / totals.pairs as f64));
    let nll = stats.nll / totals.chosen_tokens as f64;
    means.chain([(names::NLL_LOSS, nll)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::pairs::tests::pair;

    #[test]
    fn whole_chosen_sequences_count_and_the_answers_of_rejected_ones() {
        let pairs = [
            pair(&[1, 2], &[3, 9], &[4, 5, 9]),
            pair(&[], &[6, 9], &[7, 8, 9]),
        ];
        let batch = SequencePairs::new(&pairs.each_ref());
        assert_eq!(batch.packed.targets, [2, 3, 9, 4, 5, 9, 9, 8, 9]);
        assert_eq!(batch.answers, [2, 3, 1, 2]);
        let totals = OddsRatioTotals {
            pairs: 2,
            chosen_tokens: 4,
        };
        assert_eq!(batch.totals(), totals);
        let stage = OddsRatio { beta: 0.1 };
        assert_eq!(pairs.each_ref().map(|pair| stage.tokens(pair)), [7, 3]);
        assert_eq!(batch.packed.ids.len(), 7 + 3);
        let twice = OddsRatioTotals {
            pairs: 4,
            chosen_tokens: 8,
        };
        let again = SequencePairs::new(&pairs.each_ref());
        assert_eq!(stage.total(&[batch, again]), twice);
    }
}
