//! Sizes and heads of the models that a stage reads, against what the stage asks of them.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::config::{CriticFrom, Ppo, RewardKind, Share, Stage};
use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;
use crate::roles::{self, check_has_adapter};
use crate::stages::context;
use crate::stages::plan::models::{Folders, is_model};
use crate::stages::ppo::check_length;

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

/// Checks the heads of the models that `[ppo]` reads, and that scorers fit the policy.
///
/// # Errors
/// A reward model without its head or with other tokens than the policy, settings of PPO that the
/// policy has no room for, or a file that cannot be read.
pub fn check_ppo(folders: Folders, ppo: &Ppo) -> Result<()> {
    let policy = folders.decoder(&ppo.from)?;
    for folder in scorers(ppo) {
        if is_model(folder) {
            Decoder::check_reward_model(folder)?;
        }
        let rows = folders.decoder(folder)?.vocab_size;
        roles::check_vocabulary(policy.vocab_size, rows, folder)?;
        if let (Some(ours), Some(theirs)) = (folders.origin(&ppo.from), folders.origin(folder)) {
            roles::check_tokens(&ours, (folder, &theirs))?;
        }
    }
    let critic = ppo.first_reward_model();
    let critic = critic.filter(|folder| ppo.has_critic() && is_model(folder));
    let from_reward = ppo.critic.critic_from == Some(CriticFrom::RewardModel);
    if let (Share::Adapter, true, Some(folder)) = (ppo.sharing.share, from_reward, critic) {
        check_has_adapter(&folder)?;
    }
    check_length(&ppo.update.ptx, policy.max_position_embeddings)?;
    let programs = ppo
        .rewards
        .iter()
        .filter_map(|component| match &component.kind {
            RewardKind::Program(program) => program.command.first().map(|name| (component, name)),
            _ => None,
        });
    for (component, program) in programs {
        ensure!(
            is_found(program),
            "reward `{}`: the program `{program}` is not there; check ppo.rewards command and PATH",
            component.name
        );
    }
    Ok(())
}

/// True if a program is a file, or lies in a folder of `PATH`.
fn is_found(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
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
