//! Plans of the stages that train one model on examples.

use anyhow::Result;

use super::models::RunModels;
use super::{StagePlan, activations, log_prob_chunk};
use crate::config::{Device, ExampleKeys, Pretrain, Stage, Trainable, Training};
use crate::model::activations::TrainingPass;
use crate::model::config::{DecoderConfig, Head};
use crate::model::lora::Lora;
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
    let device = models.0.run.device;
    Ok(of(stage, (&decoder, None), roles, training, batch, device))
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
    let lora = models.adapters(stage, &found)?;
    let roles = trained(&found, head, keys.trainable, lora.as_ref());
    let decoder = DecoderConfig { head, ..found };
    let batch = keys.sequences * keys.training.batch_size * keys.max_length;
    Ok(of(
        stage,
        (&decoder, lora.as_ref()),
        roles,
        keys.training,
        batch,
        models.0.run.device,
    ))
}

/// The tensors of the model that a stage trains, or of the adapters on the model that was `found`.
fn trained(
    found: &DecoderConfig,
    head: Head,
    trainable: &Trainable,
    lora: Option<&Lora>,
) -> Vec<RoleTensors> {
    if let Some(lora) = lora {
        return RoleTensors::adapted(found, head, lora).into();
    }
    let mut decoder = found.clone();
    decoder.head = head;
    let frozen = Frozen::from(trainable);
    let whole = RoleTensors::whole(&decoder, |spec| frozen.training(spec));
    vec![whole]
}

/// The plan of a stage whose steps have at most `batch` tokens, on a model with or without
/// adapters.
fn of(
    stage: Stage,
    (decoder, lora): (&DecoderConfig, Option<&Lora>),
    roles: Vec<RoleTensors>,
    training: &Training,
    batch: usize,
    device: Device,
) -> StagePlan {
    let layers = decoder.num_hidden_layers;
    let begins = roles.iter().map(|role| role.graph_begins(layers)).min();
    let pass = TrainingPass {
        decoder,
        lora,
        rows: training.micro_batch_tokens.min(batch),
        first: begins.unwrap_or(layers),
        recompute: training.recompute,
    };
    let mut buffers = vec![activations(pass, device)];
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
