//! `[ppo]`: tuning the policy on scores. Names and defaults are TRL's if TRL has the key.
//!
//! The table is flat in the file. Here its keys are grouped: the objective ([`PpoObjective`]), the
//! critic ([`Critic`]), the update ([`PpoUpdate`], [`Ptx`]), scores ([`ScoreShaping`]), sampling
//! ([`Rollout`], [`Generation`]) and evaluations ([`Evaluation`]).

mod critic;
mod evaluation;
mod objective;
mod ptx;
mod reward;
mod rollout;
mod sampling;
mod scores;
mod sharing;
#[cfg(test)]
mod tests;
mod update;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::{Checker, Keys};
use super::data::Data;
use super::generation::Generation;
use super::lora::LoraTable;
use super::optim::{LrScheduler, Training};
use super::optional_path;
use super::records::{RecordKeys, TooLong};
use super::rewards::{self, RewardComponent};
use super::score_at::ScoreAt;
use super::sft::TUNED;
use super::stage::StageTable;
use crate::rlhf::{KlEstimator, LossAggregation};

pub use critic::{Critic, CriticFrom};
pub use evaluation::PpoEvaluation;
pub use objective::{AdvantageEstimator, KlControllerKind, PpoObjective};
pub use ptx::Ptx;
pub use rollout::Rollout;
pub use sampling::keeps_one_of;
pub use scores::{ScoreNormalization, ScoreShaping};
pub use sharing::{Share, Sharing};
pub use update::{KlIn, PpoUpdate};

/// Reinforcement learning on scores: PPO, and its relatives without a critic.
///
/// A step is an iteration: sample completions, score them, update the policy. Names and defaults
/// are TRL's if TRL has the key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ppo {
    /// Folder of the policy to start from, which is also the reference.
    #[schemars(extend("x-type" = "path", "x-default" = TUNED))]
    pub from: PathBuf,
    /// Folder of the reward model.
    ///
    /// Refused beside `[[ppo.rewards]]`.
    #[schemars(extend("x-type" = "path", "x-default" = "what `[reward]` trains"))]
    #[serde(default, deserialize_with = "optional_path")]
    pub reward_model: Option<PathBuf>,
    /// Tables of components whose weighted sum scores completions, instead of one reward model.
    // Read table by table, because each type has its own keys.
    #[schemars(extend("x-type" = "array of tables", "x-default" = "unset"))]
    #[serde(skip_deserializing)]
    pub rewards: Vec<RewardComponent>,
    /// Folder of a second reward model, whose score evaluations report and training never uses.
    ///
    /// Evaluations warn if its score falls while the reward rises. It shares weights with the roles
    /// if it was trained on the same trunk or base.
    #[schemars(extend(
        "x-type" = "path",
        "x-default" = "what `[judge]` trains; used only with `eval_prompts`"
    ))]
    #[serde(default, deserialize_with = "optional_path")]
    pub judge_model: Option<PathBuf>,
    /// Token at which `reward_model` and `judge_model` are read.
    ///
    /// By default it is the last token; in a folder whose padding token also ends sequences, the
    /// last one that is not padding. The tables of `[[ppo.rewards]]` have a key of their own.
    #[schemars(extend("x-default" = "as each folder was trained"))]
    pub score_at: Option<ScoreAt>,
    /// Prompts to train on: records with `prompt`.
    ///
    /// Several files are read as one.
    #[schemars(extend("x-default" = "required"))]
    pub prompts: Data,
    /// Held-out prompts to evaluate on; unset evaluates nothing.
    ///
    /// Without it the other keys of evaluations are refused.
    #[schemars(extend("x-default" = "unset"))]
    pub eval_prompts: Data,
    /// Policy for prompts that leave no room for the response.
    pub too_long: TooLong,
    /// Columns of the prompts, and bad records.
    #[serde(flatten)]
    pub records: RecordKeys,
    /// Weights that the four roles share.
    #[serde(flatten)]
    pub sharing: Sharing,
    /// Number of completions of each prompt in an iteration, a divisor of `batch_size`.
    pub num_samples_per_prompt: usize,
    /// Number of minibatches (optimizer steps) in each epoch over the batch, a divisor of
    /// `batch_size`.
    pub num_mini_batches: usize,
    /// Number of epochs over each iteration's batch.
    pub num_ppo_epochs: usize,
    /// Advantages, the KL to the reference, and the clipping of the ratio.
    #[serde(flatten)]
    pub objective: PpoObjective,
    /// The value function, where the estimator has one.
    #[serde(flatten)]
    pub critic: Critic,
    /// Terms and limits of the update.
    #[serde(flatten)]
    pub update: PpoUpdate,
    /// Shaping of scores into rewards.
    #[serde(flatten)]
    pub scores: ScoreShaping,
    /// Generation of a batch from prompts.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// Evaluations on held-out prompts.
    #[serde(flatten)]
    pub evaluation: PpoEvaluation,
    /// Sampling of completions.
    #[serde(flatten)]
    pub generation: Generation,
    /// The keys of every stage. `batch_size` counts the completions of an iteration; a step is an
    /// iteration.
    #[serde(flatten)]
    pub training: Training,
}

impl Default for Ppo {
    fn default() -> Self {
        Self {
            from: PathBuf::new(),
            reward_model: None,
            rewards: Vec::new(),
            judge_model: None,
            score_at: None,
            prompts: Data::default(),
            eval_prompts: Data::default(),
            too_long: TooLong::Error,
            records: RecordKeys::default(),
            sharing: Sharing::default(),
            num_samples_per_prompt: 1,
            num_mini_batches: 1,
            num_ppo_epochs: 4,
            objective: PpoObjective::default(),
            critic: Critic::default(),
            update: PpoUpdate::default(),
            scores: ScoreShaping::default(),
            rollout: Rollout::default(),
            evaluation: PpoEvaluation::default(),
            generation: Generation::default(),
            training: Training {
                learning_rate: 1e-6,
                lr_scheduler_type: LrScheduler::Constant,
                batch_size: 64,
                save_steps: 10,
                eval_steps: 10,
                ..Training::default()
            },
        }
    }
}

impl Ppo {
    /// The keys of the text of PPO-ptx: without the stage's `columns`, which apply to prompts.
    pub fn ptx_records(&self) -> RecordKeys {
        RecordKeys {
            columns: None,
            ..self.records.clone()
        }
    }

    /// Number of prompts of an iteration's batch.
    pub fn prompts_per_iteration(&self) -> usize {
        self.training.batch_size / self.num_samples_per_prompt
    }

    /// Number of sequences of a minibatch.
    pub fn mini_batch_size(&self) -> usize {
        self.training.batch_size / self.num_mini_batches
    }

    /// Estimator of the KL to the reference.
    pub fn kl_estimator(&self) -> KlEstimator {
        let own = self.objective.kl_estimator;
        own.unwrap_or_else(|| PpoUpdate::usual_estimator(self.kl_in()))
    }

    /// Mean that averages the policy's losses.
    pub fn loss_aggregation(&self) -> LossAggregation {
        let usual = PpoUpdate::usual_aggregation(self.objective.advantage_estimator);
        self.update.loss_aggregation.unwrap_or(usual)
    }

    /// Whether the KL to the reference is in the rewards or in the loss.
    pub fn kl_in(&self) -> KlIn {
        let usual = PpoUpdate::usual_place(self.objective.advantage_estimator);
        self.update.kl_in.unwrap_or(usual)
    }

    /// Whether the KL to the reference has a weight in training. Only then iterations score their
    /// samples with the reference. (An adaptive weight cannot start at 0.)
    pub fn weighs_kl(&self) -> bool {
        self.objective.kl_coef > 0.0
    }

    /// Whether training, evaluations (`eval/kl`) or score normalisation read the reference.
    /// Otherwise it is not loaded.
    pub fn reads_reference(&self) -> bool {
        let scales = self.scores.score_normalization == ScoreNormalization::Reference;
        self.weighs_kl() || self.evaluates() || scales
    }

    /// Whether there are evaluations.
    pub fn evaluates(&self) -> bool {
        !self.eval_prompts.is_empty()
    }

    /// Peak learning rate of the critic.
    pub fn critic_learning_rate(&self) -> f64 {
        let own = self.critic.critic_learning_rate;
        own.unwrap_or(self.training.learning_rate)
    }

    /// Whether the estimator has a critic.
    pub fn has_critic(&self) -> bool {
        self.objective.advantage_estimator == AdvantageEstimator::Gae
    }

    /// Fills unset keys from other keys, and with the models that `[reward]` and `[judge]` train.
    pub(super) fn fill(
        &mut self,
        scorer: Option<PathBuf>,
        judge: Option<PathBuf>,
        checker: &mut Checker<'_>,
    ) {
        if self.evaluates() {
            self.judge_model = self.judge_model.take().or(judge);
        }
        self.fill_rewards(scorer, checker);
        self.objective.fill();
        self.update.kl_in = Some(self.kl_in());
        self.update.loss_aggregation = Some(self.loss_aggregation());
        self.objective.kl_estimator = Some(self.kl_estimator());
        // The checks refuse 0 minibatches.
        let sequences = self.training.batch_size.checked_div(self.num_mini_batches);
        self.update.fill(sequences.unwrap_or(1));
        if self.has_critic() {
            self.critic.fill(
                self.training.learning_rate,
                self.first_reward_model().is_some(),
            );
        }
    }

    fn check_batch(&self, keys: &mut Keys<'_, '_>) {
        let batch = self.training.batch_size;
        for (key, parts) in [
            ("num_mini_batches", self.num_mini_batches),
            ("num_samples_per_prompt", self.num_samples_per_prompt),
        ] {
            keys.at_least(key, parts, 1, "1 is the least");
            if parts > 0 && !batch.is_multiple_of(parts) {
                let above = batch.next_multiple_of(parts);
                let message = format!(
                    "must divide ppo.batch_size = {batch}; set batch_size = {above}, or change \
                     {key}"
                );
                keys.wrong(key, parts, message);
            }
        }
        keys.at_least("num_ppo_epochs", self.num_ppo_epochs, 1, "4 is usual");
        if self.training.dataloader_drop_last {
            let message =
                "has no effect: an iteration always has batch_size sequences; remove this key";
            keys.wrong("dataloader_drop_last", true, message);
        }
        let estimator = self.objective.advantage_estimator;
        if estimator.compares_samples() && self.num_samples_per_prompt == 1 {
            let message = format!(
                "must be 2 or more with advantage_estimator = \"{estimator}\", which compares the \
                 samples of a prompt; 8 is usual"
            );
            keys.wrong("num_samples_per_prompt", 1, message);
        }
    }

    /// Reports keys of the critic that are set without one.
    fn refuse_critic_keys(&self, keys: &mut Keys<'_, '_>) {
        for (key, value) in self.critic.set_keys() {
            let estimator = self.objective.advantage_estimator;
            let message = format!(
                "has no effect with advantage_estimator = \"{estimator}\", which has no critic; \
                 remove this key, or set advantage_estimator = \"gae\""
            );
            keys.wrong(key, value, message);
        }
    }

    /// Reports keys of evaluations that are set without `eval_prompts`.
    fn check_evaluation(&self, keys: &mut Keys<'_, '_>) {
        self.evaluation.check(keys);
        if self.evaluates() {
            return;
        }
        for (key, value) in self.evaluation_keys() {
            let message = "has no effect without eval_prompts; set that to held-out prompts, or \
                           remove this key";
            keys.wrong(key, value, message);
        }
    }

    /// Keys of evaluations that differ from their defaults, other than `eval_steps = 0`.
    fn evaluation_keys(&self) -> Vec<(&'static str, String)> {
        let judge = self.judge_model.as_ref();
        let judge = judge.map(|path| ("judge_model", format!("\"{}\"", path.display())));
        let asked = self.training.changed_eval_steps(&Self::default().training);
        let asked = asked.map(|steps| ("eval_steps", steps.to_string()));
        let mut keys: Vec<_> = judge.into_iter().chain(asked).collect();
        keys.extend(self.evaluation.set_keys());
        keys
    }
}

impl StageTable for Ppo {
    fn training(&self) -> &Training {
        &self.training
    }

    fn check(&self, table: &'static str, checker: &mut Checker<'_>) {
        let mut keys = checker.table(table);
        if self.prompts.is_empty() {
            keys.missing(
                "prompts",
                "name the prompts to train on, for example prompts = \"prompts.jsonl\"",
            );
        }
        self.prompts.check_unweighted("prompts", &mut keys);
        self.eval_prompts
            .check_unweighted("eval_prompts", &mut keys);
        self.records.check(&mut keys);
        self.check_batch(&mut keys);
        self.check_score_at(&mut keys);
        self.sharing.check(&mut keys);
        self.objective.check(&mut keys);
        match self.has_critic() {
            true => {
                self.critic.check(&self.training, &mut keys);
                self.check_critic_start(&mut keys);
            }
            false => self.refuse_critic_keys(&mut keys),
        }
        self.scores.check(self.generation.max_new_tokens, &mut keys);
        self.rollout.check(self.num_samples_per_prompt, &mut keys);
        self.check_evaluation(&mut keys);
        self.update.check(self, &mut keys);
        self.generation.check(&mut keys);
        sampling::check(&self.generation, &mut keys);
        self.training.check(&Self::default().training, &mut keys);
        rewards::check(&self.rewards, checker);
    }

    fn start(&self) -> Option<&Path> {
        Some(&self.from)
    }

    fn start_mut(&mut self) -> Option<&mut PathBuf> {
        Some(&mut self.from)
    }

    fn lora(&self) -> Option<&LoraTable> {
        self.sharing.lora.as_ref()
    }

    fn data_files(&self) -> Vec<(&'static str, &Path)> {
        let prompts = self.prompts.paths().map(|path| ("prompts", path));
        let eval_prompts = self.eval_prompts.paths();
        let eval_prompts = eval_prompts.map(|path| ("eval_prompts", path));
        let lexicon = self.evaluation.lexicon.iter();
        let lexicon = lexicon.map(|path| ("lexicon", path.as_path()));
        let ptx = self.update.ptx.data_files();
        prompts
            .chain(eval_prompts)
            .chain(lexicon)
            .chain(ptx)
            .collect()
    }

    fn models(&self) -> Vec<(&'static str, &Path)> {
        let rewards = self.rewards.iter().flat_map(RewardComponent::folders);
        let from = std::iter::once(("from", self.from.as_path()));
        from.chain(named("reward_model", &self.reward_model))
            .chain(rewards.map(|folder| ("rewards", folder)))
            .chain(named("judge_model", &self.judge_model))
            .collect()
    }

    fn models_mut(&mut self) -> Vec<&mut PathBuf> {
        let mut folders = vec![&mut self.from];
        folders.extend(&mut self.reward_model);
        folders.extend(rewards::folders_mut(&mut self.rewards));
        folders.extend(&mut self.judge_model);
        folders
    }
}

fn named<'a>(
    key: &'static str,
    path: &'a Option<PathBuf>,
) -> impl Iterator<Item = (&'static str, &'a Path)> {
    path.iter().map(move |path| (key, path.as_path()))
}
