//! Forward passes of a role over sequences: log-probs and entropies of the generated tokens, values
//! at the positions that predict them.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use kernels::attention::Segments;

use super::experience::Sequence;
use crate::data::packing::{PackedBatch, cut};
use crate::model::boundary::{Boundary, States};
use crate::model::{Decoder, Gradient};
use crate::ops::head::{BothLogProbs, Target, TokenLogProbs};
use crate::terminal::Phase;

/// Sequences packed end to end, each without its last token, which predicts no other.
pub struct PackedSequences {
    ids: Vec<u32>,
    segments: Segments,
    /// Rows that predict generated tokens; the last layer computes only these.
    rows: Arc<[u32]>,
    /// The generated token that each of `rows` predicts.
    targets: Vec<Target>,
    /// Recorded hidden states of each sequence, and the number of its tokens that are packed.
    states: Vec<(Option<States>, usize)>,
}

/// Log-probs and entropies of the generated tokens under the policy that sampled them, `[n]` each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyLogProbs {
    /// Log-prob of each token in the distribution that it was drawn from; the ratio is computed
    /// from these.
    pub log_probs: Vec<f32>,
    /// Log-prob of each token over the whole vocabulary at the same temperature; the KL to the
    /// reference is computed from these.
    pub whole_log_probs: Vec<f32>,
    /// Entropy in nats of the distribution that each token was drawn from.
    pub entropies: Vec<f32>,
}

impl PackedSequences {
    /// Packs sequences in order. If they have recorded states, the model must have the trunk that
    /// computed them.
    pub fn new<'s>(sequences: impl Iterator<Item = &'s Sequence>) -> Self {
        let (mut batch, mut states, mut kept) = (PackedBatch::default(), Vec::new(), Vec::new());
        for s in sequences {
            batch.push(&s.ids, s.positions());
            states.push((s.states.clone(), s.ids.len() - 1));
            kept.extend(s.kept.iter().cloned());
        }
        let targets = batch.targets.into_iter().zip(kept).enumerate();
        Self {
            segments: Segments::from_offsets(&batch.segments),
            ids: batch.ids,
            rows: batch.rows.into(),
            targets: targets
                .map(|(row, (token, kept))| Target { row, token, kept })
                .collect(),
            states,
        }
    }

    /// Last hidden states of the rows that predict generated tokens: `[n, hidden]`.
    fn hidden(&self, model: &Decoder, gradient: Gradient) -> Result<Tensor> {
        let wanted = Some(self.rows.clone());
        let states = self.states.iter();
        let states = states.map(|(states, count)| (states.as_ref(), *count));
        match Boundary::join(states, model.params().device())? {
            None => model.forward_at(&self.ids, &self.segments, wanted, gradient),
            Some(Boundary { layer, hidden }) => {
                model.forward_from(layer, &hidden, &self.segments, wanted, gradient)
            }
        }
    }

    /// Log-probs and entropies of the generated tokens in the distributions that they were drawn
    /// from: `[n]` each.
    ///
    /// # Errors
    /// If the computation fails.
    pub fn log_probs(
        &self,
        model: &Decoder,
        temperature: f32,
        gradient: Gradient,
    ) -> Result<TokenLogProbs> {
        let hidden = self.hidden(model, gradient)?;
        model.log_probs(&hidden, &self.targets, temperature)
    }

    /// [`Self::log_probs`], and the log-probs over the whole vocabulary: `[n]` each.
    ///
    /// # Errors
    /// If the computation fails.
    pub fn both_log_probs(
        &self,
        model: &Decoder,
        temperature: f32,
        gradient: Gradient,
    ) -> Result<BothLogProbs> {
        let hidden = self.hidden(model, gradient)?;
        model.both_log_probs(&hidden, &self.targets, temperature)
    }

    /// Log-probs of the generated tokens over the whole vocabulary: `[n]`.
    fn whole_log_probs(&self, model: &Decoder, temperature: f32) -> Result<Tensor> {
        let hidden = self.hidden(model, Gradient::Skip)?;
        let whole = |target: &Target| Target::whole(target.row, target.token);
        let targets: Vec<Target> = self.targets.iter().map(whole).collect();
        Ok(model.log_probs(&hidden, &targets, temperature)?.log_probs)
    }

    /// Values at the positions that predict the generated tokens: `[n]`.
    ///
    /// # Errors
    /// If the computation fails.
    pub fn values(&self, critic: &Decoder, gradient: Gradient) -> Result<Tensor> {
        critic.scores(&self.hidden(critic, gradient)?)
    }
}

/// Calls `pass` on the sequences in packed runs of at most `limit` tokens.
fn in_packed_runs(
    sequences: &[Sequence],
    limit: usize,
    mut pass: impl FnMut(PackedSequences) -> Result<()>,
) -> Result<()> {
    let phase = Phase::counted("reading sequences", sequences.len());
    for run in cut(
        (0..sequences.len()).collect(),
        |i| sequences[i].ids.len(),
        limit,
    ) {
        pass(PackedSequences::new(run.iter().map(|&i| &sequences[i])))?;
        phase.add(run.len());
    }
    Ok(())
}

/// The results of `pass`, one number a generated token, on the sequences in packed runs of at most
/// `limit` tokens.
fn in_runs(
    sequences: &[Sequence],
    limit: usize,
    pass: impl Fn(&PackedSequences) -> Result<Tensor>,
) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    in_packed_runs(sequences, limit, |packed| {
        all.extend(pass(&packed)?.to_vec1::<f32>()?);
        Ok(())
    })?;
    Ok(all)
}

/// Log-probs and entropies of all generated tokens under `policy`, in order, without a graph.
///
/// # Errors
/// If the computation fails.
pub fn policy_log_probs(
    policy: &Decoder,
    sequences: &[Sequence],
    temperature: f32,
    limit: usize,
) -> Result<PolicyLogProbs> {
    let mut found = PolicyLogProbs::default();
    in_packed_runs(sequences, limit, |packed| {
        let BothLogProbs { kept, whole } =
            packed.both_log_probs(policy, temperature, Gradient::Skip)?;
        found.log_probs.extend(kept.log_probs.to_vec1::<f32>()?);
        found.whole_log_probs.extend(whole.to_vec1::<f32>()?);
        found.entropies.extend(kept.entropy.to_vec1::<f32>()?);
        Ok(())
    })?;
    Ok(found)
}

/// Log-probs of all generated tokens in the distributions that they were drawn from, in order,
/// without a graph.
///
/// # Errors
/// If the computation fails.
pub fn log_probs(
    policy: &Decoder,
    sequences: &[Sequence],
    temperature: f32,
    limit: usize,
) -> Result<Vec<f32>> {
    in_runs(sequences, limit, |packed| {
        Ok(packed
            .log_probs(policy, temperature, Gradient::Skip)?
            .log_probs)
    })
}

/// Log-probs of all generated tokens over the whole vocabulary, in order, without a graph.
///
/// # Errors
/// If the computation fails.
pub fn whole_log_probs(
    model: &Decoder,
    sequences: &[Sequence],
    temperature: f32,
    limit: usize,
) -> Result<Vec<f32>> {
    in_runs(sequences, limit, |packed| {
        packed.whole_log_probs(model, temperature)
    })
}

/// Values at the positions that predict the generated tokens, in order, without a graph.
///
/// # Errors
/// If the computation fails.
pub fn values(critic: &Decoder, sequences: &[Sequence], limit: usize) -> Result<Vec<f32>> {
    in_runs(sequences, limit, |packed| {
        packed.values(critic, Gradient::Skip)
    })
}
