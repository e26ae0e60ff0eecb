//! Scorers of completions: one reward model, or `[[ppo.rewards]]`.

use std::path::{Path, PathBuf};

use super::{CriticFrom, Ppo};
use crate::config::check::{Checker, Keys};
use crate::config::rewards::{self, ModelReward, RewardComponent, RewardKind};
use crate::config::words::word;

impl Ppo {
    pub(super) fn fill_rewards(&mut self, scorer: Option<PathBuf>, checker: &mut Checker<'_>) {
        let mut keys = checker.table("ppo");
        match (&self.reward_model, self.rewards.is_empty()) {
            (Some(folder), false) => {
                let message = "has no effect beside [[ppo.rewards]]; remove it, or name the folder \
                               in one of those tables: type = \"model\", path = …";
                keys.wrong("reward_model", format!("\"{}\"", folder.display()), message);
            }
            (None, false) => rewards::fill(&mut self.rewards, scorer.as_deref(), checker),
            (Some(_), true) => {}
            (None, true) if scorer.is_some() => self.reward_model = scorer,
            (None, true) => {
                let mend = "there is no reward model; set it to a folder, add a [reward] table \
                            that trains one, or add [[ppo.rewards]]";
                keys.missing("reward_model", mend);
            }
        }
    }

    /// Components of the score: `rewards`, or one reward model with weight 1.
    pub fn reward_components(&self) -> Vec<RewardComponent> {
        let model = self.reward_model.iter().map(|path| RewardComponent {
            name: "model".to_owned(),
            ..RewardComponent::new(RewardKind::Model(ModelReward {
                path: path.clone(),
                score_at: self.score_at,
            }))
        });
        model.chain(self.rewards.iter().cloned()).collect()
    }

    /// The folders of the reward models, those of ensembles among them, in order.
    pub fn reward_model_folders(&self) -> Vec<PathBuf> {
        let models = self.reward_models().into_iter();
        models.map(|(_, folder)| folder).collect()
    }

    /// Folders of the reward models, those of ensembles among them, each with the name of its
    /// component.
    pub fn reward_models(&self) -> Vec<(String, PathBuf)> {
        let components = self.reward_components().into_iter();
        let models = components.flat_map(|component| {
            let folders = match component.kind {
                RewardKind::Model(model) => vec![model.path],
                RewardKind::Ensemble(ensemble) => ensemble.paths,
                _ => Vec::new(),
            };
            folders
                .into_iter()
                .map(move |folder| (component.name.clone(), folder))
        });
        models.collect()
    }

    /// Folder of the first reward model among the components.
    pub fn first_reward_model(&self) -> Option<PathBuf> {
        self.reward_model_folders().into_iter().next()
    }

    /// Reports `score_at` without a model that it applies to.
    pub(super) fn check_score_at(&self, keys: &mut Keys<'_, '_>) {
        let (Some(at), None, None) = (self.score_at, &self.reward_model, &self.judge_model) else {
            return;
        };
        let message = "has no effect without reward_model and judge_model; set it in the tables of \
                       [[ppo.rewards]] that are models, or remove it";
        keys.wrong("score_at", format!("{:?}", word(&at)), message);
    }

    pub(super) fn check_critic_start(&self, keys: &mut Keys<'_, '_>) {
        let from_scorer = self.critic.critic_from == Some(CriticFrom::RewardModel);
        if from_scorer && self.first_reward_model().is_none() {
            let message = "needs a reward model; set it to \"policy\", or add one: [[ppo.rewards]] \
                           with type = \"model\" (and weight = 0.0 if it should not score)";
            keys.wrong("critic_from", "\"reward_model\"", message);
        }
    }

    /// Existing files among the commands of reward programs, such as an interpreter's script.
    pub fn reward_programs(&self) -> impl Iterator<Item = &Path> {
        let words = self
            .rewards
            .iter()
            .flat_map(|component| match &component.kind {
                RewardKind::Program(program) => program.command.as_slice(),
                _ => &[],
            });
        words.map(Path::new).filter(|path| path.is_file())
    }
}
