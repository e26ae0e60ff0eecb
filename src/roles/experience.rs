//! [`Experience`]: the value that is passed from rollout to update.
//!
//! It starts as sequences with their scores; the log-probs of policy and reference, the critic's
//! values, advantages and returns are added later. Per-token quantities are laid end to end over
//! the generated tokens of all sequences ([`RaggedRows`] has the start of each sequence). The shape
//! of a quantity is checked once, when it is added.

use std::ops::Range;
use std::sync::Arc;

use super::PolicyLogProbs;
use crate::model::boundary::States;
use crate::reward::CompletionScores;
use crate::rlhf::{RaggedRows, RlhfError};

/// A prompt with its completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// Key of the prompt, unique among all prompts of the training.
    pub key: u64,
    /// Index of the sequence among the samples of its prompt.
    pub sample: usize,
    /// Token ids of the prompt and the completion.
    pub ids: Vec<u32>,
    /// Generated tokens, as ascending ranges in `ids`. Generation gives one range today; the list
    /// is for dialogues, the next kind of rollout, which have one for each turn of the policy.
    pub generated: Vec<Range<usize>>,
    /// Log-prob of each generated token in the distribution that it was drawn from.
    pub log_probs: Vec<f32>,
    /// Log-prob of each generated token over the whole vocabulary; empty if sampling cut no
    /// distribution, so that `log_probs` are the same.
    pub whole_log_probs: Vec<f32>,
    /// Entropy in nats of the distribution that each token was drawn from; empty if generation did
    /// not record it.
    pub entropies: Vec<f32>,
    /// Ids that sampling kept for each generated token; `None` for a token whose distribution was
    /// not cut.
    pub kept: Vec<Option<Arc<[u32]>>>,
    /// Whether the completion ended with a stop token or stop text, not at the length limit.
    pub finished: bool,
    /// Hidden states that generation computed below the layers that any role trains, if the roles
    /// share these layers.
    pub states: Option<States>,
}

/// A quantity that does not fit the experience it is added to, or is read before it was added.
#[derive(Debug, thiserror::Error)]
pub enum ExperienceError {
    /// A sequence's parts have different lengths.
    #[error(
        "sequence {index} has {ids} tokens, {generated} generated ones, {log_probs} log-probs, \
         {whole_log_probs} of the whole vocabulary, {entropies} entropies and {kept} kept sets"
    )]
    Sequence {
        /// Index of the sequence.
        index: usize,
        /// Number of tokens.
        ids: usize,
        /// Number of generated tokens.
        generated: usize,
        /// Number of log-probs.
        log_probs: usize,
        /// Number of log-probs over the whole vocabulary.
        whole_log_probs: usize,
        /// Number of entropies.
        entropies: usize,
        /// Number of kept sets.
        kept: usize,
    },
    /// A quantity does not have one element for each token or each sequence.
    #[error("{what} has {found} elements, but the batch needs {expected}")]
    Length {
        /// Name of the quantity.
        what: String,
        /// Number of elements of the quantity.
        found: usize,
        /// Number of tokens or sequences of the batch.
        expected: usize,
    },
    /// A quantity was read before it was added.
    #[error("the batch has no {0} yet")]
    Missing(&'static str),
    /// A sequence has no generated token.
    #[error(transparent)]
    Rows(#[from] RlhfError),
}

impl Sequence {
    /// Positions of the generated tokens.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.generated.iter().cloned().flatten()
    }

    /// The generated tokens.
    pub fn response(&self) -> Vec<u32> {
        self.positions().map(|p| self.ids[p]).collect()
    }

    /// Log-prob of each generated token over the whole vocabulary.
    pub fn whole_log_probs(&self) -> &[f32] {
        match self.whole_log_probs.is_empty() {
            true => &self.log_probs,
            false => &self.whole_log_probs,
        }
    }

    fn check(&self, index: usize) -> Result<(), ExperienceError> {
        if self.fits() {
            return Ok(());
        }
        Err(ExperienceError::Sequence {
            index,
            ids: self.ids.len(),
            generated: self.generated.iter().map(Range::len).sum(),
            log_probs: self.log_probs.len(),
            whole_log_probs: self.whole_log_probs.len(),
            entropies: self.entropies.len(),
            kept: self.kept.len(),
        })
    }

    fn fits(&self) -> bool {
        // A generated token is predicted by the one before it, so the first token cannot be one.
        let inside = self
            .generated
            .iter()
            .all(|r| r.start > 0 && r.start < r.end && r.end <= self.ids.len());
        let ascending = self.generated.windows(2).all(|w| w[0].end <= w[1].start);
        let count: usize = self.generated.iter().map(Range::len).sum();
        let cut = self.kept.iter().any(Option::is_some);
        let whole = if cut { count } else { 0 };
        inside
            && ascending
            && count > 0
            && count == self.log_probs.len()
            && count == self.kept.len()
            && whole == self.whole_log_probs.len()
            && (self.entropies.is_empty() || count == self.entropies.len())
    }
}

/// The sequences of one iteration with the quantities computed so far.
#[derive(Clone, Debug)]
pub struct Experience {
    sequences: Vec<Sequence>,
    offsets: Vec<usize>, // B + 1
    scores: CompletionScores,
    policy: Option<PolicyLogProbs>,
    reference_log_probs: Option<Vec<f32>>, // n
    values: Option<Vec<f32>>,              // n
    advantages: Option<Vec<f64>>,          // n
    returns: Option<Vec<f64>>,             // n
}

impl Experience {
    /// The sequences of a rollout, with their scores.
    ///
    /// # Errors
    /// If a sequence's parts differ in length, a sequence has no generated token, or there is not
    /// one score of each component for each sequence.
    pub fn new(
        sequences: Vec<Sequence>,
        scores: CompletionScores,
    ) -> Result<Self, ExperienceError> {
        let mut offsets = vec![0];
        for (index, sequence) in sequences.iter().enumerate() {
            sequence.check(index)?;
            offsets.push(offsets[index] + sequence.log_probs.len());
        }
        RaggedRows::new(&offsets)?;
        check("scores", scores.total.len(), sequences.len())?;
        for (name, component) in &scores.components {
            check(format!("reward `{name}`"), component.len(), sequences.len())?;
        }
        Ok(Self {
            sequences,
            offsets,
            scores,
            policy: None,
            reference_log_probs: None,
            values: None,
            advantages: None,
            returns: None,
        })
    }

    /// Adds the log-probs and entropies of the policy that sampled.
    ///
    /// # Errors
    /// If there is not one log-prob and one entropy for each token.
    pub fn set_policy(&mut self, policy: PolicyLogProbs) -> Result<(), ExperienceError> {
        let tokens = self.token_count();
        check("log-probs", policy.log_probs.len(), tokens)?;
        let whole = policy.whole_log_probs.len();
        check("log-probs of the whole vocabulary", whole, tokens)?;
        check("entropies", policy.entropies.len(), tokens)?;
        self.policy = Some(policy);
        Ok(())
    }

    /// Adds the log-probs of the reference over the whole vocabulary.
    ///
    /// # Errors
    /// If there is not one log-prob for each token.
    pub fn set_reference(&mut self, log_probs: Vec<f32>) -> Result<(), ExperienceError> {
        let tokens = self.token_count();
        check("log-probs of the reference", log_probs.len(), tokens)?;
        self.reference_log_probs = Some(log_probs);
        Ok(())
    }

    /// Adds the critic's values at the positions that predict the tokens.
    ///
    /// # Errors
    /// If there is not one value for each token.
    pub fn set_values(&mut self, values: Vec<f32>) -> Result<(), ExperienceError> {
        check("values", values.len(), self.token_count())?;
        self.values = Some(values);
        Ok(())
    }

    /// Adds the advantages and, if there is a critic, the returns that its values are fitted to.
    ///
    /// # Errors
    /// If there is not one advantage, and one return, for each token, or if one of returns and
    /// values is there without the other.
    pub fn set_advantages(
        &mut self,
        advantages: Vec<f64>,
        returns: Option<Vec<f64>>,
    ) -> Result<(), ExperienceError> {
        let tokens = self.token_count();
        check("advantages", advantages.len(), tokens)?;
        if let Some(returns) = &returns {
            check("returns", returns.len(), tokens)?;
        }
        match (&returns, &self.values) {
            (Some(_), None) => return Err(ExperienceError::Missing("values")),
            (None, Some(_)) => return Err(ExperienceError::Missing("returns")),
            _ => {}
        }
        (self.advantages, self.returns) = (Some(advantages), returns);
        Ok(())
    }

    /// The sequences.
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// Scores of the sequences, `[B]` each.
    pub fn scores(&self) -> &CompletionScores {
        &self.scores
    }

    /// Log-probs and entropies of the policy that sampled, `[n]` each.
    ///
    /// # Errors
    /// If the log-probs were not added yet.
    pub fn policy(&self) -> Result<&PolicyLogProbs, ExperienceError> {
        let policy = self.policy.as_ref();
        policy.ok_or(ExperienceError::Missing("log-probs of the policy"))
    }

    /// Log-probs of the reference over the whole vocabulary, `[n]`; `None` if the KL has no weight.
    pub fn reference_log_probs(&self) -> Option<&[f32]> {
        self.reference_log_probs.as_deref()
    }

    /// The critic's values before the update, `[n]`; `None` without a critic.
    pub fn values(&self) -> Option<&[f32]> {
        self.values.as_deref()
    }

    /// Advantages, `[n]`.
    ///
    /// # Errors
    /// If the advantages were not added yet.
    pub fn advantages(&self) -> Result<&[f64], ExperienceError> {
        let advantages = self.advantages.as_deref();
        advantages.ok_or(ExperienceError::Missing("advantages"))
    }

    /// Returns, `[n]`; `None` without a critic.
    pub fn returns(&self) -> Option<&[f64]> {
        self.returns.as_deref()
    }

    /// The layout of the per-token quantities.
    ///
    /// # Errors
    /// None for a value of [`Self::new`].
    pub fn rows(&self) -> Result<RaggedRows<'_>, RlhfError> {
        RaggedRows::new(&self.offsets)
    }

    /// Range of sequence `index` in the per-token quantities.
    pub fn tokens_of(&self, index: usize) -> Range<usize> {
        self.offsets[index]..self.offsets[index + 1]
    }

    /// Number of generated tokens of all sequences.
    pub fn token_count(&self) -> usize {
        self.offsets[self.sequences.len()]
    }

    /// The log-probs and entropies that the generator recorded.
    pub fn recorded(&self) -> PolicyLogProbs {
        let all = |of: fn(&Sequence) -> &[f32]| {
            let parts: Vec<&[f32]> = self.sequences.iter().map(of).collect();
            parts.concat()
        };
        PolicyLogProbs {
            log_probs: all(|s| &s.log_probs),
            whole_log_probs: all(Sequence::whole_log_probs),
            entropies: all(|s| &s.entropies),
        }
    }
}

fn check(what: impl Into<String>, found: usize, expected: usize) -> Result<(), ExperienceError> {
    match found == expected {
        true => Ok(()),
        false => Err(ExperienceError::Length {
            what: what.into(),
            found,
            expected,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(generated: &[(usize, usize)], count: usize) -> Sequence {
        Sequence {
            key: 0,
            sample: 0,
            ids: vec![1; 6],
            generated: generated.iter().map(|&(a, b)| a..b).collect(),
            log_probs: vec![0.0; count],
            whole_log_probs: Vec::new(),
            entropies: Vec::new(),
            kept: vec![None; count],
            finished: true,
            states: None,
        }
    }

    fn experience(sequences: Vec<Sequence>) -> Result<Experience, ExperienceError> {
        let scores = CompletionScores {
            total: vec![0.5; sequences.len()],
            components: Vec::new(),
        };
        Experience::new(sequences, scores)
    }

    #[test]
    fn shapes_of_sequences_are_checked() {
        let good = vec![sequence(&[(1, 3), (5, 6)], 3), sequence(&[(2, 6)], 4)];
        let good = experience(good).unwrap();
        assert_eq!(good.token_count(), 7);
        assert_eq!(good.tokens_of(1), 3..7);
        for bad in [
            sequence(&[(0, 3)], 3),
            sequence(&[(2, 7)], 5),
            sequence(&[(3, 5), (4, 6)], 4),
            sequence(&[(1, 3)], 3),
            sequence(&[], 0),
        ] {
            assert!(experience(vec![bad]).is_err());
        }
    }

    #[test]
    fn a_cut_sequence_has_log_probs_over_the_whole_vocabulary() {
        let cut = Sequence {
            kept: vec![Some([1].into()), None],
            log_probs: vec![0.0, -1.0],
            whole_log_probs: vec![-2.0, -1.0],
            ..sequence(&[(1, 3)], 2)
        };
        let without = Sequence {
            whole_log_probs: Vec::new(),
            ..cut.clone()
        };
        assert!(experience(vec![without]).is_err());
        let uncut = Sequence {
            log_probs: vec![-3.0, -4.0],
            ..sequence(&[(1, 3)], 2)
        };
        let recorded = experience(vec![cut, uncut]).unwrap().recorded();
        assert_eq!(recorded.log_probs, [0.0, -1.0, -3.0, -4.0]);
        assert_eq!(recorded.whole_log_probs, [-2.0, -1.0, -3.0, -4.0]);
    }

    #[test]
    fn a_quantity_of_the_wrong_length_is_refused_where_it_is_added() {
        let scores = CompletionScores::default();
        let error = Experience::new(vec![sequence(&[(1, 3)], 2)], scores).unwrap_err();
        assert!(error.to_string().starts_with("scores has 0"), "{error}");
        let scores = CompletionScores {
            total: vec![0.5],
            components: vec![("short".to_owned(), Vec::new())],
        };
        let error = Experience::new(vec![sequence(&[(1, 3)], 2)], scores).unwrap_err();
        assert!(
            error.to_string().starts_with("reward `short` has 0"),
            "{error}"
        );

        let mut two = experience(vec![sequence(&[(1, 3)], 2)]).unwrap();
        assert!(two.policy().is_err() && two.advantages().is_err());
        let policy = |entropies| PolicyLogProbs {
            log_probs: vec![0.0; 2],
            whole_log_probs: vec![0.0; 2],
            entropies,
        };
        for (refused, what) in [
            (two.set_policy(policy(Vec::new())), "entropies"),
            (two.set_reference(vec![0.0]), "log-probs of the reference"),
            (two.set_values(vec![0.0; 3]), "values"),
            (two.set_advantages(vec![0.0], None), "advantages"),
            (two.set_advantages(vec![0.0; 2], Some(vec![])), "returns"),
        ] {
            let message = refused.unwrap_err().to_string();
            assert!(message.starts_with(what), "{message}");
        }
        two.set_policy(policy(vec![0.0; 2])).unwrap();
        two.set_advantages(vec![1.0, 2.0], None).unwrap();
        assert_eq!(two.advantages().unwrap(), [1.0, 2.0]);
        assert!(two.policy().is_ok() && two.values().is_none() && two.returns().is_none());
    }

    #[test]
    fn values_and_returns_come_together() {
        let mut two = experience(vec![sequence(&[(1, 3)], 2)]).unwrap();
        let advantages = || vec![1.0, 2.0];
        let without_values = two.set_advantages(advantages(), Some(vec![0.0; 2]));
        assert!(
            without_values
                .unwrap_err()
                .to_string()
                .contains("no values")
        );
        two.set_values(vec![0.0; 2]).unwrap();
        let without_returns = two.set_advantages(advantages(), None);
        assert!(
            without_returns
                .unwrap_err()
                .to_string()
                .contains("no returns")
        );
        two.set_advantages(advantages(), Some(vec![0.0; 2]))
            .unwrap();
    }
}
