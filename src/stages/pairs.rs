//! Preference pairs as packed batches, and their evaluation, for the stages that learn from pairs
//! without a reward model.

use anyhow::Result;

use crate::data::example::Pair;
use crate::data::packing::PackedBatch;
use crate::rlhf::preference::PreferenceStats;
use crate::terminal::Phase;
use crate::train::metrics::names;
use crate::train::objective::Evaluation;

/// Tokens of a forward pass over a pair.
pub fn tokens(pair: &Pair) -> usize {
    2 * pair.prompt.len() + pair.chosen.len() + pair.rejected.len() - 2
}

/// Chosen and rejected answer of each pair, one after the other, each behind its prompt. The
/// targets are the tokens of the answers, with the token that ends each.
pub fn answers<'p>(pairs: impl Iterator<Item = &'p Pair>) -> PackedBatch {
    let mut batch = PackedBatch::default();
    for pair in pairs {
        for sequence in pair.sequences() {
            batch.push(&sequence, pair.prompt.len()..sequence.len());
        }
    }
    batch
}

/// Loss and measures of held-out pairs, as means over all of them: `measure` gives a batch's share
/// of the mean loss and of each measure.
///
/// # Errors
/// Errors of `measure`.
pub fn evaluate<B>(
    batches: &[B],
    measure: impl Fn(&B) -> Result<(f64, Vec<(&'static str, f64)>)>,
) -> Result<Evaluation> {
    let mut evaluation = Evaluation::new();
    let phase = Phase::counted("batches", batches.len());
    for batch in batches {
        let (loss, measures) = measure(batch)?;
        phase.add(1);
        *evaluation.entry(names::EVAL_LOSS.to_owned()).or_default() += loss;
        for (name, share) in measures {
            *evaluation.entry(format!("eval/{name}")).or_default() += share;
        }
    }
    Ok(evaluation)
}

/// Sums over pairs of their rewards, by metric name.
pub fn rewards(stats: &PreferenceStats) -> [(&'static str, f64); 4] {
    [
        (names::REWARDS_CHOSEN, stats.chosen_sum),
        (names::REWARDS_REJECTED, stats.rejected_sum),
        (names::REWARDS_ACCURACIES, stats.correct as f64),
        (
            names::REWARDS_MARGINS,
            stats.chosen_sum - stats.rejected_sum,
        ),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn pair(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> Pair {
        Pair {
            prompt: prompt.to_vec(),
            chosen: chosen.to_vec(),
            rejected: rejected.to_vec(),
            margin: 0.0,
        }
    }

    #[test]
    fn every_answer_token_is_predicted_by_the_one_before() {
        let pairs = [
            pair(&[1, 2], &[3, 9], &[4, 5, 9]),
            pair(&[], &[6, 9], &[7, 8]),
        ];
        let batch = answers(pairs.iter());
        assert_eq!(batch.ids, [1, 2, 3, 1, 2, 4, 5, 6, 7]);
        assert_eq!(batch.rows[..5], [1, 2, 4, 5, 6]);
        assert_eq!(batch.targets[..5], [3, 9, 4, 5, 9]);
        let rest = (&batch.rows[5..], &batch.targets[5..]);
        assert_eq!(
            rest,
            (&[7, 8][..], &[9, 8][..]),
            "without a prompt nothing predicts an answer's first token"
        );
        assert_eq!(batch.offsets, [0, 2, 5, 6, 7]);
        assert_eq!(pairs.iter().map(tokens).sum::<usize>(), batch.ids.len());
    }
}
