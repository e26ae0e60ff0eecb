//! The memory that PPO needs, computed before it runs.

mod buffers;
mod prompts;

use anyhow::Result;

use super::setup::layout;
use crate::config::{Ppo, RewardKind, Stage};
use crate::ops::backend::kernel;
use crate::stages::plan::StagePlan;
use crate::stages::plan::models::RunModels;
use buffers::PpoBuffers;
use prompts::PlannedPrompts;

pub use prompts::longest_prompt;

/// The plan of the stage.
///
/// # Errors
/// If the stage would refuse its models, or the prompts cannot be read or do not fit.
pub fn plan(models: RunModels, config: &Ppo) -> Result<StagePlan> {
    let layout = layout(config, |folder| models.describe(folder))?;
    let prompts = PlannedPrompts::read(models, config, &layout)?;
    let roles = layout.tensors();
    let planned = PpoBuffers {
        config,
        layout: &layout,
        roles: &roles,
        prompts: &prompts,
        kernel: kernel(models.0.run.arithmetic),
        device: models.0.run.device,
    };
    let mut buffers = planned.rollout()?;
    buffers.extend(planned.boundary());
    buffers.extend(planned.update());
    let notes = [prompts.note.clone()]
        .into_iter()
        .chain(classifiers(config))
        .chain(external(config));
    Ok(StagePlan {
        stage: Stage::Ppo,
        notes: notes.collect(),
        roles,
        buffers,
    })
}

/// A note on scorers whose memory is not counted.
fn classifiers(config: &Ppo) -> Option<String> {
    let is_classifier = |kind: &RewardKind| matches!(kind, RewardKind::Classifier(_));
    let mut components = config.rewards.iter();
    let any = components.any(|component| is_classifier(&component.kind));
    any.then(|| "classifiers among ppo.rewards are not counted".to_owned())
}

/// A note on scorers that a plan does not call.
fn external(config: &Ppo) -> Option<String> {
    let any = config
        .rewards
        .iter()
        .any(|reward| reward.kind.is_external());
    any.then(|| {
        "reward programs and endpoints are not tried here; `run` asks each for one score before \
         its first stage"
            .to_owned()
    })
}
