//! Sizes and heads of the models that a stage reads, against what the stage asks of them.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::config::{Config, Ppo, RewardKind, Stage, Trainable};
use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;
use crate::stages::context;
use crate::stages::freezing::Frozen;
use crate::stages::plan::models::{Folders, is_model};

/// Checks that the embedding of the model that `stage` starts from has a row for each token.
///
/// # Errors
/// A tokenizer with more tokens than the embedding has rows.
pub fn check_vocabulary(
    folders: Folders,
    stage: Stage,
    tokenizer: &Tokenizer,
    place: &Path,
) -> Result<()> {
    let Some(from) = folders.from(stage) else {
        return Ok(());
    };
    let rows = folders.decoder(from)?.vocab_size;
    context::check_vocabulary(tokenizer, place, rows, from)
}

/// Checks the frozen layers and the heads of the models that `stage` reads.
///
/// # Errors
/// More frozen layers than the model has, a reward model without its head, or a file that cannot be read.
pub fn check(folders: Folders, stage: Stage) -> Result<()> {
    let (config, from) = (folders.0, folders.from(stage));
    if let (Some(from), Some(trainable)) = (from, trainable(config, stage)) {
        let layers = folders.decoder(from)?.num_hidden_layers;
        Frozen::from(trainable).check(stage.name(), from, layers)?;
    }
    let ppo = config.ppo.as_ref().filter(|_| stage == Stage::Ppo);
    let mut scorers = ppo
        .into_iter()
        .flat_map(scorers)
        .filter(|folder| is_model(folder));
    Ok(scorers.try_for_each(Decoder::check_reward_model)?)
}

fn trainable(config: &Config, stage: Stage) -> Option<&Trainable> {
    match stage {
        Stage::Sft => config.sft.as_ref().map(|sft| &sft.trainable),
        Stage::Dpo => config.dpo.as_ref().map(|dpo| &dpo.trainable),
        Stage::Reward => config.reward.as_ref().map(|reward| &reward.trainable),
        Stage::Judge => config.judge.as_ref().map(|judge| &judge.trainable),
        Stage::Pretrain | Stage::Ppo => None,
    }
}

/// Folders of the reward models, those of ensembles among them, and of the judge that evaluations use.
fn scorers(ppo: &Ppo) -> impl Iterator<Item = &Path> {
    let components = ppo
        .rewards
        .iter()
        .flat_map(|component| match &component.kind {
            RewardKind::Model(model) => std::slice::from_ref(&model.path),
            RewardKind::Ensemble(ensemble) => &ensemble.paths,
            _ => &[],
        });
    let judge = ppo.judge_model.iter();
    let judge = judge.filter(|_| ppo.eval_prompts.is_some());
    let folders = ppo.reward_model.iter().chain(components).chain(judge);
    folders.map(PathBuf::as_path)
}
