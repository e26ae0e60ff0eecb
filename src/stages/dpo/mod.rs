//! DPO (Rafailov et al. 2023), cDPO, IPO and SimPO: the policy learns from pairs of a better and a
//! worse answer, without a reward model and without sampling. Formulas stand in `rlhf::preference`.
//!
//! The reference is the policy before its first step. Its log-probs are computed once, with the
//! policy's own weights, and kept in the stage's folder, so that there is never a second model in
//! memory. This holds whichever weights are trained: new adapters do not change the output yet, so
//! the reference is their base; adapters of a PEFT folder that are trained further are part of the
//! reference (TRL keeps a second, frozen copy of them in the model).
//!
//! The hidden states above frozen layers are not kept for later passes, as PPO keeps them: most
//! runs read a pair only once after the reference has, and the states of a whole data set,
//! `4 · hidden_size` bytes a token, would fill the memory that freezing saves.

mod reference;

use anyhow::Result;

use super::context::Context;
use super::definition::CommandHelp;
use super::examples::Examples;
use super::language::log_probs;
use super::pairs;
use super::supervised::ExampleStage;
use crate::config::{Dpo, Stage};
use crate::data;
use crate::data::example::{Encoded, Encoder, Pair};
use crate::data::packing::PackedBatch;
use crate::data::records::Record;
use crate::model::{Decoder, Gradient};
use crate::rlhf::RaggedRows;
use crate::rlhf::preference::{
    DirectPreferenceConfig, DirectPreferenceLoss, DirectStats, direct_preference,
};
use crate::train::metrics::names;
use crate::train::objective::{Evaluation, LossShare, Objective};

impl ExampleStage for Dpo {
    type Record = Pair;
    type Objective = DirectPreference;

    fn help(_stage: Stage) -> CommandHelp {
        CommandHelp {
            about: "Tune the policy on pairs of a better and a worse answer, without a reward \
                    model",
            details: "Needs [dpo] with `data`. Minimises DPO's loss, IPO's or SimPO's \
                      (`loss_type`); the log-probs of the reference, which is the start of the \
                      policy, are computed once and kept.",
            example: "collimate dpo configs/dpo.toml --set dpo.loss_type=ipo --fresh",
        }
    }

    fn encode(&self, encoder: &Encoder, records: &[Record]) -> data::Result<Encoded<Pair>> {
        encoder.direct_pairs(records)
    }

    fn split(&self, pairs: Examples<Pair>) -> Examples<ReferencedPair> {
        pairs.map(|pair| ReferencedPair {
            pair,
            reference: None,
        })
    }

    fn objective(
        &self,
        context: &Context,
        model: &Decoder,
        examples: &mut Examples<ReferencedPair>,
    ) -> Result<Option<DirectPreference>> {
        let config = DirectPreferenceConfig {
            loss_type: self.loss_type,
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            simpo_gamma: self.simpo_gamma,
        };
        if config.loss_type.has_reference() {
            let limit = self.training.micro_batch_tokens;
            if !reference::read_or_compute(context, examples, model, limit)? {
                return Ok(None);
            }
        }
        Ok(Some(DirectPreference(config)))
    }
}

/// A pair, with the reference's log-prob of each answer if the loss has a reference.
#[derive(Debug, Clone)]
pub struct ReferencedPair {
    pair: Pair,
    /// The reference's log-probs of the chosen and the rejected answer.
    reference: Option<[f64; 2]>,
}

/// The mean loss of pairs.
pub struct DirectPreference(DirectPreferenceConfig);

/// A batch of pairs, with the reference's log-probs of their answers.
pub struct ReferencedBatch {
    answers: PackedBatch,
    /// Log-prob of each answer as a whole, `[2 × pairs]`; empty where the loss has no reference.
    reference: Vec<f64>,
}

impl DirectPreference {
    fn of(
        &self,
        model: &Decoder,
        batch: &ReferencedBatch,
        pairs: usize,
        gradient: Gradient,
    ) -> Result<DirectPreferenceLoss> {
        let rows = RaggedRows::new(&batch.answers.offsets)?;
        let found = log_probs(model, &batch.answers, gradient)?;
        Ok(direct_preference(
            &found,
            rows,
            &batch.reference,
            &self.0,
            pairs,
        )?)
    }
}

impl Objective for DirectPreference {
    type Example = ReferencedPair;
    type Batch = ReferencedBatch;
    /// Pairs.
    type Total = usize;

    fn tokens(&self, example: &ReferencedPair) -> usize {
        pairs::tokens(&example.pair)
    }

    fn batch(&self, examples: &[&ReferencedPair]) -> Result<ReferencedBatch> {
        let reference = examples.iter().filter_map(|example| example.reference);
        Ok(ReferencedBatch {
            answers: pairs::answers(examples.iter().map(|example| &example.pair)),
            reference: reference.flatten().collect(),
        })
    }

    fn total(&self, batches: &[ReferencedBatch]) -> usize {
        let answers = batches.iter().map(|batch| batch.answers.offsets.len() - 1);
        answers.sum::<usize>() / 2
    }

    fn loss(
        &self,
        model: &Decoder,
        batch: &ReferencedBatch,
        pairs: usize,
        gradient: Gradient,
    ) -> Result<LossShare> {
        let found = self.of(model, batch, pairs, gradient)?;
        Ok(LossShare {
            loss: found.loss,
            measures: measures(&found.stats, pairs),
        })
    }

    fn evaluate(&self, model: &Decoder, batches: &[ReferencedBatch]) -> Result<Evaluation> {
        let total = self.total(batches);
        pairs::evaluate(batches, |batch| {
            let found = self.of(model, batch, total, Gradient::Skip)?;
            Ok((found.value, measures(&found.stats, total)))
        })
    }
}

/// A batch's share of each metric's mean over `pairs` pairs.
fn measures(stats: &DirectStats, pairs: usize) -> Vec<(&'static str, f64)> {
    let log_probs = [
        (names::LOGPS_CHOSEN, stats.chosen_log_probs),
        (names::LOGPS_REJECTED, stats.rejected_log_probs),
    ];
    pairs::rewards(&stats.rewards)
        .into_iter()
        .chain(log_probs)
        .map(|(name, sum)| (name, sum / pairs as f64))
        .collect()
}
