//! Memory of PPO besides the tensors of the roles.

use anyhow::Result;
use kernels::host::product::ProductKernel;
use rollout::LastToken;

use super::prompts::PlannedPrompts;
use crate::config::{AdvantageEstimator, Device, Ppo, ScoreNormalization};
use crate::model::activations::TrainingPass;
use crate::model::config::DecoderConfig;
use crate::model::lora::Lora;
use crate::roles::{PromptUse, RoleLayout, RoleModel, RoleTensors};
use crate::stages::plan::generation::{CacheReserve, PromptBatch, panels, reserve, states};
use crate::stages::plan::{BufferPhase, PlannedBuffer, activations, log_prob_chunk};
use crate::stages::ppo::sampler::{cache_budget, run_length};
use crate::stages::ppo::shaping::REFERENCE_SAMPLES;

/// The buffers of PPO, from its configuration, roles and prompts.
pub(super) struct PpoBuffers<'a> {
    pub config: &'a Ppo,
    pub layout: &'a RoleLayout,
    pub roles: &'a [RoleTensors],
    pub prompts: &'a PlannedPrompts,
    pub kernel: ProductKernel,
    pub device: Device,
}

impl PpoBuffers<'_> {
    fn policy(&self) -> &DecoderConfig {
        &self.layout.policy.decoder
    }

    /// The largest cache that training or an evaluation reserves, and the panels.
    pub fn rollout(&self) -> Result<Vec<PlannedBuffer>> {
        let rollout = &self.config.rollout;
        let mut cache = CacheReserve::default();
        for prompts in [self.batch()].into_iter().chain(self.measurements()) {
            let budget = cache_budget(rollout);
            let reserved = reserve(
                self.policy(),
                prompts,
                rollout.rollout_batch,
                budget,
                self.device,
            )?;
            if reserved.bytes > cache.bytes {
                cache = reserved;
            }
        }
        let buffer = |name, bytes| PlannedBuffer {
            name,
            bytes,
            phase: BufferPhase::Rollout,
        };
        let cache = buffer(format!("cache of {} tokens", cache.tokens()), cache.bytes);
        if self.device.is_gpu() {
            return Ok(vec![cache]);
        }
        let adapters = self.layout.actor.lora().map(Lora::tensors);
        let panels = panels(self.policy(), &adapters.unwrap_or_default(), self.kernel);
        let panels = buffer("panels for generation".to_owned(), panels);
        Ok(vec![cache, panels])
    }

    /// The prompts of an iteration.
    fn batch(&self) -> PromptBatch {
        PromptBatch {
            count: self.config.prompts_per_iteration(),
            samples: self.config.num_samples_per_prompt,
            ..self.single(usize::MAX, self.layout.last_token(PromptUse::Training))
        }
    }

    /// The prompts, one sample each, that a measurement of `count` answers at once.
    fn single(&self, count: usize, last_token: LastToken) -> PromptBatch {
        PromptBatch {
            count: count.min(run_length(self.config)),
            tokens: self.prompts.tokens,
            samples: 1,
            max_new_tokens: self.config.generation.max_new_tokens,
            last_token,
        }
    }

    /// The prompts that are answered outside iterations: those of an evaluation, and those that the
    /// reference answers for the scale of scores.
    fn measurements(&self) -> impl Iterator<Item = PromptBatch> {
        let (config, prompts) = (self.config, self.prompts);
        let last_token = |prompts| self.layout.last_token(prompts);
        let evaluated = prompts.evaluation.min(config.evaluation.eval_samples);
        let evaluated = config.evaluates().then_some(evaluated);
        let evaluated = evaluated.map(|count| (count, last_token(PromptUse::Evaluation)));
        let scaled = config.scores.score_normalization == ScoreNormalization::Reference;
        let reference = prompts.training.min(REFERENCE_SAMPLES);
        let reference = scaled.then(|| (reference, last_token(PromptUse::Training)));
        let counts = evaluated.into_iter().chain(reference);
        counts.map(|(count, last_token)| self.single(count, last_token))
    }

    /// The greedy completions that are the baseline of ReMax: one a prompt.
    fn greedy(&self) -> Option<PromptBatch> {
        let estimator = self.config.objective.advantage_estimator;
        (estimator == AdvantageEstimator::Remax).then(|| PromptBatch {
            samples: 1,
            ..self.batch()
        })
    }

    /// The hidden states at the boundary, which lie in the CPU's memory: those of an iteration's
    /// batch, held until its update has ended, with those of its greedy completions; or those of a
    /// larger measurement.
    pub fn boundary(&self) -> Option<PlannedBuffer> {
        self.layout.boundary.filter(|_| !self.device.is_gpu())?;
        let width = self.policy().hidden_size;
        let held = |prompts| states(prompts, width);
        let batch = held(self.batch()) + self.greedy().map_or(0, held);
        let largest = self.measurements().map(held).fold(batch, usize::max);
        Some(PlannedBuffer {
            name: "boundary buffer".to_owned(),
            bytes: largest,
            phase: BufferPhase::Both,
        })
    }

    /// The buffers of an update. Actor and critic are updated one after the other, so the larger
    /// activations count.
    pub fn update(&self) -> Vec<PlannedBuffer> {
        let (config, rows) = (self.config, self.rows());
        let trained = [&self.layout.actor].into_iter().chain(&self.layout.critic);
        let passes = trained.map(|role| activations(self.pass(role, rows), self.device));
        let largest = passes.max_by_key(|buffer| buffer.bytes);
        let mut buffers: Vec<PlannedBuffer> = largest.into_iter().collect();
        buffers.push(log_prob_chunk(self.targets(rows), self.policy().vocab_size));
        if config.update.rollback_kl().is_some() && !self.device.is_gpu() {
            let trained: usize = self.roles.iter().map(RoleTensors::gradients).sum();
            buffers.push(PlannedBuffer {
                name: "rollback copy".to_owned(),
                bytes: 3 * trained,
                phase: BufferPhase::Update,
            });
        }
        buffers
    }

    fn pass<'r>(&self, role: &'r RoleModel, rows: usize) -> TrainingPass<'r> {
        let decoder = &role.model.decoder;
        TrainingPass {
            decoder,
            lora: role.lora(),
            rows,
            first: role.named("").graph_begins(decoder.num_hidden_layers),
            recompute: self.config.training.recompute,
        }
    }

    /// Tokens of a micro-batch.
    fn rows(&self) -> usize {
        let limit = self.config.training.micro_batch_tokens;
        let longest = self.prompts.tokens + self.config.generation.max_new_tokens;
        match self.config.update.ptx.is_on() {
            true => limit,
            false => limit.min(self.config.mini_batch_size() * longest),
        }
    }

    /// The tokens of a micro-batch whose log-probs are computed: generated ones and text, no
    /// prompts.
    fn targets(&self, rows: usize) -> usize {
        let generated = self.config.mini_batch_size() * self.config.generation.max_new_tokens;
        match self.config.update.ptx.is_on() {
            true => rows,
            false => rows.min(generated),
        }
    }
}

#[cfg(test)]
mod tests;
