//! The stage of four roles.

mod buffers;
mod prompts;

use anyhow::{Context as _, Result};

use super::Plan;
use super::models::Folders;
use super::roles::{Models, Start, roles};
use crate::config::{CriticFrom, Ppo, RewardKind, Stage};
use crate::model::config::Head;
use crate::ops::backend::kernel;
use crate::stages::ppo::{check_sampling, reference, sharing};
use buffers::Sizes;
use prompts::LongestPrompt;

pub use prompts::longest_prompt;

/// The plan of `[ppo]`.
///
/// # Errors
/// If a model's sizes are not known, the prompts cannot be read, or one does not fit.
pub fn ppo(folders: Folders, config: &Ppo) -> Result<Plan> {
    let models = models(folders, config)?;
    let sharing = sharing(config);
    let roles = roles(&sharing, &models).context("ppo")?;
    let prompts = LongestPrompt::of(folders, config, &models)?;
    let sizes = Sizes {
        config,
        models: &models,
        roles: &roles,
        prompts: &prompts,
        kernel: kernel(folders.0.run.arithmetic),
    };
    let mut buffers = sizes.rollout()?;
    buffers.extend(sizes.boundary());
    buffers.extend(sizes.update());
    let mut notes = vec![prompts.note.clone()];
    notes.extend(classifiers(config));
    Ok(Plan {
        stage: Stage::Ppo,
        roles,
        buffers,
        notes,
    })
}

fn models(folders: Folders, config: &Ppo) -> Result<Models> {
    let policy = folders.start(&config.from, Head::LanguageModel)?;
    check_sampling(config, policy.decoder.vocab_size)?;
    folders.adapters(Stage::Ppo, &policy.decoder)?;
    let components = config.reward_components();
    let paths = components.iter().flat_map(|c| match &c.kind {
        RewardKind::Model(model) => std::slice::from_ref(&model.path),
        RewardKind::Ensemble(ensemble) => &ensemble.paths,
        _ => &[],
    });
    let rewards: Vec<Start> = paths
        .map(|path| folders.start(path, Head::Score))
        .collect::<Result<_>>()?;
    let critic = config.has_critic().then(|| {
        let of_reward = config.critic.critic_from == Some(CriticFrom::RewardModel);
        let mut start = rewards
            .first()
            .filter(|_| of_reward)
            .unwrap_or(&policy)
            .clone();
        start.decoder.head = Head::Score;
        start
    });
    let judge = config.judge_model.as_deref();
    let judge = judge.filter(|_| config.eval_prompts.is_some());
    let judge = judge.map(|folder| folders.judge(folder, config));
    Ok(Models {
        critic,
        reference: reference(config),
        rewards,
        judge: judge.transpose()?,
        policy,
    })
}

/// Says what is not counted.
fn classifiers(config: &Ppo) -> Option<String> {
    let is_classifier = |kind: &RewardKind| matches!(kind, RewardKind::Classifier(_));
    let mut components = config.rewards.iter();
    let any = components.any(|component| is_classifier(&component.kind));
    any.then(|| "classifiers among ppo.rewards are not counted".to_owned())
}
