//! `[ppo]`: tuning the policy on scores. Names and defaults are TRL's where TRL has them.
//!
//! The table is flat for the user; here its keys stand in groups: what is maximised ([`Objective`]), the critic's ([`Critic`]), what
//! shapes the update ([`PpoUpdate`], [`Ptx`]), what becomes of scores ([`Scores`]), how responses are drawn ([`Rollout`],
//! [`Generation`]), and what is measured ([`Evaluation`]).

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

use serde::{Deserialize, Serialize};

use super::check::{Checker, Keys};
use super::generation::Generation;
use super::lora::Lora;
use super::optim::{LrScheduler, Training};
use super::optional_path;
use super::records::{RecordKeys, TooLong};
use super::rewards::{self, RewardComponent};
use super::score_at::ScoreAt;
use super::stage::StageTable;
use crate::rlhf::{KlEstimator, LossAggregation};

pub use critic::{Critic, CriticFrom};
pub use evaluation::Evaluation;
pub use objective::{AdvantageEstimator, KlControllerKind, Objective};
pub use ptx::Ptx;
pub use rollout::Rollout;
pub use sampling::keeps_one_of;
pub use scores::{ScoreNormalization, Scores};
pub use sharing::{Share, Sharing};
pub use update::{KlIn, PpoUpdate};

/// The `[ppo]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ppo {
    /// Folder of the policy to start from, which stays the reference. When unset: `sft`'s if the
    /// configuration has that stage, else `pretrain`'s, else `model.from`. Always filled once the
    /// configuration is read.
    pub from: PathBuf,
    /// Folder of the reward model, where one is all that scores. When unset: the one that `[reward]` trains. Filled once read,
    /// unless there are `rewards`; beside them it is refused.
    #[serde(default, deserialize_with = "optional_path")]
    pub reward_model: Option<PathBuf>,
    /// `[[ppo.rewards]]`: what completions are scored by instead of one reward model, as a weighted sum.
    // Read table by table, for each type has keys of its own.
    #[serde(skip_deserializing)]
    pub rewards: Vec<RewardComponent>,
    /// Folder of a second reward model that evaluations report and training never sees: they warn
    /// where it falls while the reward rises. It shares what the roles share if it was trained on
    /// the same trunk or base, else it is held whole. When unset: the one that `[judge]` trains, if
    /// the configuration has that table and `eval_prompts`.
    #[serde(default, deserialize_with = "optional_path")]
    pub judge_model: Option<PathBuf>,
    /// The token at which `reward_model` and `judge_model` are read. When unset, each folder says: the last token, or, where its
    /// padding token ends sequences too, the last one that is not padding. The tables of `rewards` have a key of their own.
    pub score_at: Option<ScoreAt>,
    /// Records with `prompt`, to train on. Required.
    pub prompts: PathBuf,
    /// Held-out records with `prompt`, to evaluate on; unset evaluates nothing, and the keys of evaluations are then refused.
    #[serde(default, deserialize_with = "optional_path")]
    pub eval_prompts: Option<PathBuf>,
    /// Policy for a prompt that leaves no room for its response. `truncate` cuts the prompt's start.
    pub too_long: TooLong,
    /// Columns of the prompts, and bad records.
    #[serde(flatten)]
    pub records: RecordKeys,
    /// What the four roles hold in common.
    #[serde(flatten)]
    pub sharing: Sharing,
    /// Completions of each prompt in an iteration; divides `batch_size`.
    pub num_samples_per_prompt: usize,
    /// Minibatches (optimizer steps) that an epoch cuts the batch into; divides `batch_size`.
    pub num_mini_batches: usize,
    /// Passes over each batch.
    pub num_ppo_epochs: usize,
    /// What is maximised, and how far a step may go.
    #[serde(flatten)]
    pub objective: Objective,
    /// The value function, where the estimator has one.
    #[serde(flatten)]
    pub critic: Critic,
    /// What shapes the update.
    #[serde(flatten)]
    pub update: PpoUpdate,
    /// What becomes of scores before they are rewards.
    #[serde(flatten)]
    pub scores: Scores,
    /// How prompts become a batch.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// What is measured on held-out prompts.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// How completions are sampled.
    #[serde(flatten)]
    pub generation: Generation,
    /// The keys that every stage has. `batch_size` counts sequences of an iteration, a step is an
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
            prompts: PathBuf::new(),
            eval_prompts: None,
            too_long: TooLong::Error,
            records: RecordKeys::default(),
            sharing: Sharing::default(),
            num_samples_per_prompt: 1,
            num_mini_batches: 1,
            num_ppo_epochs: 4,
            objective: Objective::default(),
            critic: Critic::default(),
            update: PpoUpdate::default(),
            scores: Scores::default(),
            rollout: Rollout::default(),
            evaluation: Evaluation::default(),
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
    /// Keys for reading the text of PPO-ptx: its files name their own columns, for the stage's are those of its prompts.
    pub fn ptx_records(&self) -> RecordKeys {
        RecordKeys {
            columns: None,
            ..self.records.clone()
        }
    }

    /// Prompts of one iteration's batch.
    pub fn prompts_per_iteration(&self) -> usize {
        self.training.batch_size / self.num_samples_per_prompt
    }

    /// Sequences of one minibatch.
    pub fn mini_batch_size(&self) -> usize {
        self.training.batch_size / self.num_mini_batches
    }

    /// Estimator of the KL to the reference.
    pub fn kl_estimator(&self) -> KlEstimator {
        let own = self.objective.kl_estimator;
        own.unwrap_or_else(|| PpoUpdate::usual_estimator(self.kl_in()))
    }

    /// The mean that the policy's losses take.
    pub fn loss_aggregation(&self) -> LossAggregation {
        let usual = PpoUpdate::usual_aggregation(self.objective.advantage_estimator);
        self.update.loss_aggregation.unwrap_or(usual)
    }

    /// Where the KL to the reference enters.
    pub fn kl_in(&self) -> KlIn {
        let usual = PpoUpdate::usual_place(self.objective.advantage_estimator);
        self.update.kl_in.unwrap_or(usual)
    }

    /// True if training weighs the KL to the reference, in the rewards or in the loss. Iterations score their samples by the reference
    /// only then. An adaptive weight never starts at 0, for its controller multiplies it.
    pub fn weighs_kl(&self) -> bool {
        self.objective.kl_coef > 0.0
    }

    /// True if anything reads the reference: training, evaluations (`eval/kl`), or the scale of scores. If not, it is not loaded.
    pub fn reads_reference(&self) -> bool {
        let scales = self.scores.score_normalization == ScoreNormalization::Reference;
        self.weighs_kl() || self.eval_prompts.is_some() || scales
    }

    /// Peak learning rate of the critic.
    pub fn critic_learning_rate(&self) -> f64 {
        let own = self.critic.critic_learning_rate;
        own.unwrap_or(self.training.learning_rate)
    }

    /// Whether there is a critic: only one estimator has values.
    pub fn has_critic(&self) -> bool {
        self.objective.advantage_estimator == AdvantageEstimator::Gae
    }

    /// Writes down the values that unset keys take: other keys', and the models that `[reward]` and
    /// `[judge]` train.
    pub(super) fn fill(
        &mut self,
        scorer: Option<PathBuf>,
        judge: Option<PathBuf>,
        checker: &mut Checker<'_>,
    ) {
        if self.eval_prompts.is_some() {
            self.judge_model = self.judge_model.take().or(judge);
        }
        self.fill_rewards(scorer, checker);
        self.objective.fill();
        self.update.kl_in = Some(self.kl_in());
        self.update.loss_aggregation = Some(self.loss_aggregation());
        self.objective.kl_estimator = Some(self.kl_estimator());
        // A minibatch of none is refused by the checks.
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
                    "must divide ppo.batch_size = {batch}; set batch_size = {above}, or change {key}"
                );
                keys.wrong(key, parts, message);
            }
        }
        keys.at_least("num_ppo_epochs", self.num_ppo_epochs, 1, "4 is usual");
        if self.training.dataloader_drop_last {
            let message =
                "is of no use: an iteration always has batch_size sequences; remove this key";
            keys.wrong("dataloader_drop_last", true, message);
        }
        let estimator = self.objective.advantage_estimator;
        if estimator.compares_samples() && self.num_samples_per_prompt == 1 {
            let message = format!(
                "{estimator} compares the samples of a prompt with each other; set it to 2 or more (8 is usual), or choose another \
                 advantage_estimator"
            );
            keys.wrong("num_samples_per_prompt", 1, message);
        }
    }

    /// What shapes a critic was set in vain.
    fn refuse_critic_keys(&self, keys: &mut Keys<'_, '_>) {
        for (key, value) in self.critic.set_keys() {
            let estimator = self.objective.advantage_estimator;
            let message = format!(
                "is of no use with advantage_estimator = \"{estimator}\", which has no critic; remove this key, or set \
                 advantage_estimator = \"gae\""
            );
            keys.wrong(key, value, message);
        }
    }

    /// Without `eval_prompts` nothing is evaluated, and what shapes an evaluation was set in vain.
    fn check_evaluation(&self, keys: &mut Keys<'_, '_>) {
        self.evaluation.check(keys);
        if self.eval_prompts.is_some() {
            return;
        }
        for (key, value) in self.evaluation_keys() {
            let message = "is of no use without eval_prompts; set that to held-out prompts, or remove this key";
            keys.wrong(key, value, message);
        }
    }

    /// The keys of evaluations that someone set. Defaults pass, for the file in a run folder writes them out, and so does
    /// `eval_steps = 0`, which asks for none.
    fn evaluation_keys(&self) -> Vec<(&'static str, String)> {
        let judge = self.judge_model.as_ref();
        let judge = judge.map(|path| ("judge_model", format!("\"{}\"", path.display())));
        let asked = self.training.asked_eval_steps(&Self::default().training);
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
        if self.prompts.as_os_str().is_empty() {
            keys.missing(
                "prompts",
                "name the prompts to train on, for example prompts = \"prompts.jsonl\"",
            );
        }
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

    fn lora(&self) -> Option<&Lora> {
        self.sharing.lora.as_ref()
    }

    fn data_files(&self) -> Vec<(&'static str, &Path)> {
        let eval_prompts = self
            .eval_prompts
            .iter()
            .map(|path| ("eval_prompts", path.as_path()));
        let lexicon = self.evaluation.lexicon.iter();
        let lexicon = lexicon.map(|path| ("lexicon", path.as_path()));
        let prompts = [("prompts", self.prompts.as_path())].into_iter();
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
