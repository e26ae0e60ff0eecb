//! `[ppo]`: tuning the policy on a reward model's scores. Names and defaults are TRL's where TRL
//! has them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::check::{Checker, Keys};
use super::generation::Generation;
use super::optim::{LrScheduler, Training};
use super::optional_path;

/// The `[ppo]` table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ppo {
    /// Folder of the policy to start from, which stays the reference. When unset: `sft`'s if the
    /// configuration has that stage, else `pretrain`'s, else `model.from`. Always filled once the
    /// configuration is read.
    pub from: PathBuf,
    /// Folder of the reward model. When unset: the one that `[reward]` trains. Always filled once
    /// read.
    pub reward_model: PathBuf,
    /// Folder of a second reward model that evaluations report and training never sees: they warn
    /// where it falls while the reward rises. When unset: the one that `[judge]` trains, if the
    /// configuration has that table and `eval_prompts`.
    #[serde(default, deserialize_with = "optional_path")]
    pub judge_model: Option<PathBuf>,
    /// Records with `prompt`, to train on. Required.
    pub prompts: PathBuf,
    /// Held-out records with `prompt`, to evaluate on; unset evaluates nothing, and the keys of evaluations are then refused.
    #[serde(default, deserialize_with = "optional_path")]
    pub eval_prompts: Option<PathBuf>,
    /// What the four roles hold in common.
    pub share: Share,
    /// Completions of each prompt in an iteration; divides `batch_size`.
    pub num_samples_per_prompt: usize,
    /// Minibatches (optimizer steps) that an epoch cuts the batch into; divides `batch_size`.
    pub num_mini_batches: usize,
    /// Passes over each batch.
    pub num_ppo_epochs: usize,
    /// Weight of the KL to the reference in the reward.
    pub kl_coef: f64,
    /// Estimator of that KL.
    pub kl_estimator: KlEstimator,
    /// The probability ratio is clipped at 1 − this (and at 1 + this, if `cliprange_high` is
    /// unset).
    pub cliprange: f64,
    /// The probability ratio is clipped at 1 + this.
    pub cliprange_high: Option<f64>,
    /// A value may move this far from the rollout's before its loss is clipped.
    pub cliprange_value: f64,
    /// Weight of the value loss.
    pub vf_coef: f64,
    /// Discount of later rewards.
    pub gamma: f64,
    /// λ of generalised advantage estimation.
    pub lam: f64,
    /// Subtracted from the score of a completion that does not end by itself.
    pub missing_eos_penalty: Option<f64>,
    /// Whether token rewards are scaled to unit variance over the batch.
    pub whiten_rewards: bool,
    /// Whether advantages are shifted and scaled to mean 0 and variance 1 over the batch.
    pub whiten_advantages: bool,
    /// How scores are standardised before they become rewards.
    pub score_normalization: ScoreNormalization,
    /// Standardised scores are clipped to ± this.
    pub score_clip: Option<f64>,
    /// Learning rate of the critic; unset takes `learning_rate`.
    pub critic_learning_rate: Option<f64>,
    /// Most sequences that are generated at once. Results do not depend on it.
    pub rollout_batch: usize,
    /// Most bytes of the key-value cache; when short, sequences wait.
    pub cache_bytes: Option<usize>,
    /// Most tokens of the key-value cache, instead of `cache_bytes`.
    pub cache_tokens: Option<usize>,
    /// Most prompts of one evaluation.
    pub eval_samples: usize,
    /// Seed of the completions in evaluations, the same in each.
    pub eval_seed: u64,
    /// Word list (`word<TAB>valence` a line) whose sum over a completion evaluations report.
    #[serde(default, deserialize_with = "optional_path")]
    pub lexicon: Option<PathBuf>,
    /// How completions are sampled.
    #[serde(flatten)]
    pub generation: Generation,
    /// The keys that every stage has. `batch_size` counts sequences of an iteration, a step is an
    /// iteration.
    #[serde(flatten)]
    pub training: Training,
}

/// What the four roles hold in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// Nothing: actor and critic own all their weights.
    None,
}

/// Estimator of the per-token KL, by Schulman's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KlEstimator {
    /// log π − log π_ref: unbiased.
    K1,
    /// Half its square: never negative, biased.
    K2,
    /// exp(−k1) − 1 + k1: never negative, unbiased.
    K3,
}

/// How scores are standardised before they become rewards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoreNormalization {
    /// They are not.
    None,
    /// By mean and deviation of all scores so far.
    Running,
    /// By mean and deviation of the reference's samples, measured once before training.
    Reference,
}

impl Default for Ppo {
    fn default() -> Self {
        Self {
            from: PathBuf::new(),
            reward_model: PathBuf::new(),
            judge_model: None,
            prompts: PathBuf::new(),
            eval_prompts: None,
            share: Share::None,
            num_samples_per_prompt: 1,
            num_mini_batches: 1,
            num_ppo_epochs: 4,
            kl_coef: 0.05,
            kl_estimator: KlEstimator::K1,
            cliprange: 0.2,
            cliprange_high: None,
            cliprange_value: 0.2,
            vf_coef: 0.1,
            gamma: 1.0,
            lam: 0.95,
            missing_eos_penalty: None,
            whiten_rewards: false,
            whiten_advantages: true,
            score_normalization: ScoreNormalization::None,
            score_clip: None,
            critic_learning_rate: None,
            rollout_batch: 64,
            cache_bytes: None,
            cache_tokens: None,
            eval_samples: 256,
            eval_seed: 0,
            lexicon: None,
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
    /// Prompts of one iteration.
    pub fn prompts_per_iteration(&self) -> usize {
        self.training.batch_size / self.num_samples_per_prompt
    }

    /// Sequences of one minibatch.
    pub fn mini_batch_size(&self) -> usize {
        self.training.batch_size / self.num_mini_batches
    }

    /// The ratio is clipped at 1 + this.
    pub fn cliprange_high(&self) -> f64 {
        self.cliprange_high.unwrap_or(self.cliprange)
    }

    /// Peak learning rate of the critic.
    pub fn critic_learning_rate(&self) -> f64 {
        self.critic_learning_rate
            .unwrap_or(self.training.learning_rate)
    }

    /// Writes down the values that unset keys take: other keys', and the models that `[reward]` and
    /// `[judge]` train.
    pub(super) fn fill(
        &mut self,
        scorer: Option<PathBuf>,
        judge: Option<PathBuf>,
        checker: &mut Checker<'_>,
    ) {
        self.cliprange_high = Some(self.cliprange_high());
        self.critic_learning_rate = Some(self.critic_learning_rate());
        if self.eval_prompts.is_some() {
            self.judge_model = self.judge_model.take().or(judge);
        }
        match (self.reward_model.as_os_str().is_empty(), scorer) {
            (false, _) => {}
            (true, Some(folder)) => self.reward_model = folder,
            (true, None) => {
                let mend = "there is no reward model; set it to a folder, or add a [reward] table that trains one";
                checker.table("ppo").missing("reward_model", mend);
            }
        }
    }

    /// The model folders that the stage reads, by key.
    pub(super) fn models_read(&self) -> Vec<(&'static str, &Path)> {
        let always = [
            ("from", self.from.as_path()),
            ("reward_model", self.reward_model.as_path()),
        ];
        always
            .into_iter()
            .chain(
                self.judge_model
                    .iter()
                    .map(|judge| ("judge_model", judge.as_path())),
            )
            .collect()
    }

    pub(super) fn check(&self, checker: &mut Checker<'_>) {
        let mut keys = checker.table("ppo");
        if self.prompts.as_os_str().is_empty() {
            keys.missing(
                "prompts",
                "name the prompts to train on, for example prompts = \"prompts.jsonl\"",
            );
        }
        self.check_batch(&mut keys);
        self.check_objective(&mut keys);
        self.check_scores(&mut keys);
        self.check_rollout(&mut keys);
        self.check_evaluation(&mut keys);
        self.generation.check(&mut keys);
        self.training.check(&mut keys);
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
    }

    fn check_objective(&self, keys: &mut Keys<'_, '_>) {
        keys.not_negative(
            "kl_coef",
            self.kl_coef,
            "0.05 is usual, 0 leaves the policy free of the reference",
        );
        keys.above("cliprange", self.cliprange, 0.0, "0.2 is usual");
        if self.cliprange >= 1.0 {
            keys.wrong(
                "cliprange",
                self.cliprange,
                "must be below 1, for a ratio is positive; 0.2 is usual",
            );
        }
        // Values copied from another key are blamed there.
        if self.cliprange_high() != self.cliprange {
            keys.above("cliprange_high", self.cliprange_high(), 0.0, "0.2 is usual");
        }
        keys.above("cliprange_value", self.cliprange_value, 0.0, "0.2 is usual");
        keys.not_negative("vf_coef", self.vf_coef, "0.1 is usual");
        keys.between("gamma", self.gamma, 0.0, 1.0, "1.0 is usual");
        keys.between("lam", self.lam, 0.0, 1.0, "0.95 is usual");
        if self.critic_learning_rate() != self.training.learning_rate {
            keys.not_negative(
                "critic_learning_rate",
                self.critic_learning_rate(),
                "0 trains no critic",
            );
        }
    }

    fn check_scores(&self, keys: &mut Keys<'_, '_>) {
        let mend = "it is subtracted; 1.0 is usual";
        keys.not_negative(
            "missing_eos_penalty",
            self.missing_eos_penalty.unwrap_or(0.0),
            mend,
        );
        keys.above(
            "score_clip",
            self.score_clip.unwrap_or(1.0),
            0.0,
            "5.0 is usual; remove it to not clip",
        );
    }

    fn check_rollout(&self, keys: &mut Keys<'_, '_>) {
        keys.at_least("rollout_batch", self.rollout_batch, 1, "64 is usual");
        keys.at_least("eval_samples", self.eval_samples, 1, "256 is usual");
        keys.at_least(
            "cache_bytes",
            self.cache_bytes.unwrap_or(1),
            1,
            "remove it for a cache as large as needed",
        );
        keys.at_least(
            "cache_tokens",
            self.cache_tokens.unwrap_or(1),
            1,
            "remove it for a cache as large as needed",
        );
        if let (Some(bytes), Some(_)) = (self.cache_bytes, self.cache_tokens) {
            keys.wrong(
                "cache_bytes",
                bytes,
                "ppo.cache_tokens limits the cache too; remove one of the two",
            );
        }
        if i64::try_from(self.eval_seed).is_err() {
            keys.wrong(
                "eval_seed",
                self.eval_seed,
                "must be below 2^63; choose a smaller one",
            );
        }
    }

    /// Without `eval_prompts` nothing is evaluated, and what shapes an evaluation was set in vain.
    fn check_evaluation(&self, keys: &mut Keys<'_, '_>) {
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
        let default = Self::default();
        let path = |path: &Option<PathBuf>| Some(format!("\"{}\"", path.as_ref()?.display()));
        let number = |own: u64, usual: u64| (own != usual).then(|| own.to_string());
        let steps = |ppo: &Self| ppo.training.eval_steps as u64;
        let typed = [
            ("judge_model", path(&self.judge_model)),
            ("lexicon", path(&self.lexicon)),
            (
                "eval_samples",
                number(self.eval_samples as u64, default.eval_samples as u64),
            ),
            ("eval_seed", number(self.eval_seed, default.eval_seed)),
            (
                "eval_steps",
                number(steps(self), steps(&default)).filter(|_| steps(self) > 0),
            ),
        ];
        let set = typed.into_iter();
        set.filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// The data files by key.
    pub(super) fn data_files(&self) -> Vec<(&'static str, &Path)> {
        let eval_prompts = self
            .eval_prompts
            .iter()
            .map(|path| ("eval_prompts", path.as_path()));
        let lexicon = self.lexicon.iter().map(|path| ("lexicon", path.as_path()));
        let prompts = [("prompts", self.prompts.as_path())].into_iter();
        prompts.chain(eval_prompts).chain(lexicon).collect()
    }
}
