//! The stages that train one model on examples.

use anyhow::Result;

use super::activations::Pass;
use super::models::Folders;
use super::roles::{Role, adapted, whole};
use super::{Plan, activations, log_prob_chunk};
use crate::config::{ExampleKeys, Pretrain, Stage, Trainable, Training};
use crate::model::config::{DecoderConfig, Head};
use crate::ops::param::Trainability;
use crate::stages::freezing::Frozen;

/// The plan of `[pretrain]`.
///
/// # Errors
/// If the model's sizes are not known.
pub fn pretrain(folders: Folders, config: &Pretrain) -> Result<Plan> {
    let decoder = folders.scratch()?;
    let batch = config.training.batch_size * (config.context_length - 1);
    let roles = whole(&decoder, |_| Trainability::Trained);
    Ok(of(
        Stage::Pretrain,
        &decoder,
        roles,
        &config.training,
        batch,
    ))
}

/// The plan of a stage that learns from examples. DPO's reference is the policy as it starts, of which
/// log-probs alone are kept.
///
/// # Errors
/// If the model's sizes are not known, or it cannot have the adapters.
pub fn examples(folders: Folders, stage: Stage, keys: &ExampleKeys, head: Head) -> Result<Plan> {
    let found = folders.decoder(keys.from)?;
    let roles = trainee(folders, &found, head, keys.trainable, stage)?;
    let mut decoder = found;
    decoder.head = head;
    let batch = keys.sequences * keys.training.batch_size * keys.max_length;
    Ok(of(stage, &decoder, roles, keys.training, batch))
}

/// The model that a stage trains, or its adapters on the model that was `found`.
fn trainee(
    folders: Folders,
    found: &DecoderConfig,
    head: Head,
    trainable: &Trainable,
    stage: Stage,
) -> Result<Vec<Role>> {
    match folders.adapters(stage, found)? {
        Some(lora) => Ok(adapted(found, head, &lora)),
        None => {
            let mut decoder = found.clone();
            decoder.head = head;
            let frozen = Frozen::from(trainable);
            Ok(whole(&decoder, |spec| frozen.training(spec)))
        }
    }
}

/// `batch` is the most tokens that a step can have.
fn of(
    stage: Stage,
    decoder: &DecoderConfig,
    roles: Vec<Role>,
    training: &Training,
    batch: usize,
) -> Plan {
    let layers = decoder.num_hidden_layers;
    let begins = roles.iter().map(|role| role.graph_begins(layers)).min();
    let pass = Pass {
        decoder,
        rows: training.micro_batch_tokens.min(batch),
        first: begins.unwrap_or(layers),
        recompute: training.recompute,
    };
    let mut buffers = vec![activations(pass)];
    if decoder.head == Head::LanguageModel {
        buffers.push(log_prob_chunk(pass.rows, decoder.vocab_size));
    }
    Plan {
        stage,
        roles,
        buffers,
        notes: Vec::new(),
    }
}
