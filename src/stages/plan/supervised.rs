//! Plans of the stages that train one model on examples.

use anyhow::Result;

use super::models::RunModels;
use super::{StagePlan, activations, log_prob_chunk};
use crate::config::{ExampleKeys, Pretrain, Stage, Trainable, Training};
use crate::model::activations::TrainingPass;
use crate::model::config::{DecoderConfig, Head};
use crate::ops::param::Trainability;
use crate::roles::RoleTensors;
use crate::stages::freezing::Frozen;

/// The plan of `[pretrain]`.
///
/// # Errors
/// If the model's sizes are not known.
pub fn pretrain(models: RunModels, config: &Pretrain) -> Result<StagePlan> {
    let decoder = models.scratch()?;
    let batch = config.training.batch_size * (config.context_length - 1);
    let roles = vec![RoleTensors::whole(&decoder, |_| Trainability::Trained)];
    let (stage, training) = (Stage::Pretrain, &config.training);
    Ok(of(stage, &decoder, roles, training, batch))
}

/// The plan of a stage that learns from examples. The reference of DPO is the policy as it starts,
/// of which only log-probs are kept.
///
/// # Errors
/// If the model's sizes are not known, or it cannot have the adapters.
pub fn examples(
    models: RunModels,
    stage: Stage,
    keys: &ExampleKeys,
    head: Head,
) -> Result<StagePlan> {
    let found = models.decoder(keys.from)?;
    let roles = trained(models, &found, head, keys.trainable, stage)?;
    let decoder = DecoderConfig { head, ..found };
    let batch = keys.sequences * keys.training.batch_size * keys.max_length;
    Ok(of(stage, &decoder, roles, keys.training, batch))
}

/// The tensors of the model that a stage trains, or of the adapters on the model that was `found`.
fn trained(
    models: RunModels,
    found: &DecoderConfig,
    head: Head,
    trainable: &Trainable,
    stage: Stage,
) -> Result<Vec<RoleTensors>> {
    if let Some(lora) = models.adapters(stage, found)? {
        return Ok(RoleTensors::adapted(found, head, &lora).into());
    }
    let mut decoder = found.clone();
    decoder.head = head;
    let frozen = Frozen::from(trainable);
    let whole = RoleTensors::whole(&decoder, |spec| frozen.training(spec));
    Ok(vec![whole])
}

/// The plan of a stage whose steps have at most `batch` tokens.
fn of(
    stage: Stage,
    decoder: &DecoderConfig,
    roles: Vec<RoleTensors>,
    training: &Training,
    batch: usize,
) -> StagePlan {
    let layers = decoder.num_hidden_layers;
    let begins = roles.iter().map(|role| role.graph_begins(layers)).min();
    let pass = TrainingPass {
        decoder,
        rows: training.micro_batch_tokens.min(batch),
        first: begins.unwrap_or(layers),
        recompute: training.recompute,
    };
    let mut buffers = vec![activations(pass)];
    if decoder.head == Head::LanguageModel {
        buffers.push(log_prob_chunk(pass.rows, decoder.vocab_size));
    }
    StagePlan {
        stage,
        roles,
        buffers,
        notes: Vec::new(),
    }
}
