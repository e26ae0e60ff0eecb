//! The stages that train one model on examples.

use anyhow::Result;

use super::activations::Pass;
use super::models::Folders;
use super::roles::{Role, adapted, whole};
use super::{Plan, activations, log_prob_chunk, recompute};
use crate::config::{Dpo, Pretrain, Reward, Sft, Stage, Trainable, Training};
use crate::model::config::{DecoderConfig, Head};
use crate::ops::param::Training as Trained;
use crate::stages::freezing::Frozen;

/// The plan of `[pretrain]`.
///
/// # Errors
/// If the model's sizes are not known.
pub fn pretrain(folders: Folders, config: &Pretrain) -> Result<Plan> {
    let decoder = folders.scratch()?;
    let batch = config.training.batch_size * (config.context_length - 1);
    let roles = whole(&decoder, |_| Trained::Trained);
    Ok(of(
        Stage::Pretrain,
        &decoder,
        roles,
        &config.training,
        batch,
    ))
}

/// The plan of `[sft]`.
///
/// # Errors
/// If the model's sizes are not known, or it cannot have the adapters.
pub fn sft(folders: Folders, config: &Sft) -> Result<Plan> {
    let decoder = folders.decoder(&config.from)?;
    let (head, trainable) = (Head::LanguageModel, &config.trainable);
    let roles = trainee(folders, &decoder, head, trainable, Stage::Sft)?;
    let batch = config.training.batch_size * config.max_length;
    Ok(of(Stage::Sft, &decoder, roles, &config.training, batch))
}

/// The plan of `[dpo]`. Its reference is the policy as it starts, of which log-probs alone are kept.
///
/// # Errors
/// As [`sft`].
pub fn dpo(folders: Folders, config: &Dpo) -> Result<Plan> {
    let decoder = folders.decoder(&config.from)?;
    let (head, trainable) = (Head::LanguageModel, &config.trainable);
    let roles = trainee(folders, &decoder, head, trainable, Stage::Dpo)?;
    let batch = 2 * config.training.batch_size * config.max_length;
    Ok(of(Stage::Dpo, &decoder, roles, &config.training, batch))
}

/// The plan of `[reward]` or `[judge]`.
///
/// # Errors
/// As [`sft`].
pub fn reward(folders: Folders, config: &Reward, stage: Stage) -> Result<Plan> {
    let found = folders.decoder(&config.from)?;
    let roles = trainee(folders, &found, Head::Score, &config.trainable, stage)?;
    let decoder = scoring(found);
    let batch = 2 * config.training.batch_size * config.max_length;
    Ok(of(stage, &decoder, roles, &config.training, batch))
}

fn scoring(mut decoder: DecoderConfig) -> DecoderConfig {
    decoder.head = Head::Score;
    decoder
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
        recompute: recompute(training.recompute),
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
