//! What the stage of four roles takes beside the roles.

use anyhow::Result;
use rollout::LastToken;

use super::super::activations::Pass;
use super::super::generation::{Prompts, Reserve, panels, reserve, states};
use super::super::roles::{Judge, Models, Role, Start};
use super::super::{Buffer, Phase, activations, log_prob_chunk};
use super::prompts::LongestPrompt;
use crate::config::{AdvantageEstimator, Ppo, ScoreNormalization};
use crate::model::config::{DecoderConfig, TensorSpec};
use crate::model::lora::Lora;
use crate::ops::product::ProductKernel;
use crate::stages::ppo::{REFERENCE_SAMPLES, cache_budget, run_length};

/// What buffers are computed from.
pub(super) struct Sizes<'a> {
    pub config: &'a Ppo,
    pub models: &'a Models,
    pub roles: &'a [Role],
    pub prompts: &'a LongestPrompt,
    /// The kernel that panels are packed for.
    pub kernel: ProductKernel,
}

impl Sizes<'_> {
    fn role(&self, name: &str) -> Option<&Role> {
        self.roles.iter().find(|role| role.name == name)
    }

    /// The largest cache of those that training and evaluations reserve, and the panels.
    pub fn rollout(&self) -> Result<Vec<Buffer>> {
        let (rollout, policy) = (&self.config.rollout, &self.models.policy.decoder);
        let mut cache = Reserve::default();
        for prompts in std::iter::once(self.training()).chain(self.measurements()) {
            let budget = cache_budget(rollout);
            let reserved = reserve(policy, prompts, rollout.rollout_batch, budget)?;
            if reserved.bytes > cache.bytes {
                cache = reserved;
            }
        }
        let buffer = |name, bytes| Buffer {
            name,
            bytes,
            phase: Phase::Rollout,
        };
        Ok(vec![
            buffer(format!("cache of {} tokens", cache.tokens()), cache.bytes),
            buffer("panels for generation".to_owned(), self.panels()),
        ])
    }

    /// A batch's prompts.
    fn training(&self) -> Prompts {
        Prompts {
            count: self.config.prompts_per_iteration(),
            samples: self.config.num_samples_per_prompt,
            ..self.single(usize::MAX, self.last_token(None))
        }
    }

    /// As many prompts, one sample each, as a measurement of `count` answers at once.
    fn single(&self, count: usize, last_token: LastToken) -> Prompts {
        Prompts {
            count: count.min(run_length(self.config)),
            tokens: self.prompts.tokens,
            samples: 1,
            max_new_tokens: self.config.generation.max_new_tokens,
            last_token,
        }
    }

    /// The prompts beyond those of a batch: of an evaluation, and of the reference's samples.
    fn measurements(&self) -> impl Iterator<Item = Prompts> {
        let (config, [to_train, held_out]) = (self.config, self.prompts.counts);
        let judged = self.last_token(self.models.judge.as_ref());
        let evaluated = held_out.min(config.evaluation.eval_samples);
        let evaluated = config.eval_prompts.as_ref().map(|_| (evaluated, judged));
        let scaled = config.scores.score_normalization == ScoreNormalization::Reference;
        let reference = to_train.min(REFERENCE_SAMPLES);
        let reference = scaled.then(|| (reference, self.last_token(None)));
        let counts = evaluated.into_iter().chain(reference);
        counts.map(|(count, last_token)| self.single(count, last_token))
    }

    /// What ReMax holds a batch against: the greedy completions of its prompts.
    fn greedy(&self) -> Option<Prompts> {
        let estimator = self.config.objective.advantage_estimator;
        (estimator == AdvantageEstimator::Remax).then(|| Prompts {
            samples: 1,
            ..self.training()
        })
    }

    /// Tokens of the longest sequence.
    fn longest(&self) -> usize {
        self.prompts.tokens + self.config.generation.max_new_tokens
    }

    fn panels(&self) -> usize {
        let policy = &self.models.policy.decoder;
        let known = policy.tensors();
        let is_adapter = |spec: &TensorSpec| known.iter().all(|own| own.name != spec.name);
        let actor = self.role("actor").into_iter();
        let own = actor.flat_map(|role| role.tensors.iter().map(|owned| owned.spec.clone()));
        let adapters: Vec<TensorSpec> = own.filter(is_adapter).collect();
        panels(policy, &adapters, self.kernel)
    }

    /// The lowest layer that any role trains or adapts, where the roles share what lies below.
    fn boundary_layer(&self) -> Option<usize> {
        let layers = self.models.policy.decoder.num_hidden_layers;
        let trained = self.roles.iter().filter(|role| role.gradients() > 0);
        let trained = trained.map(|role| role.graph_begins(layers));
        let scorers = self
            .models
            .rewards
            .iter()
            .filter_map(|r| r.adapter.as_ref());
        let scorers = scorers.filter(|_| self.role("base").is_some());
        let first = trained
            .chain(scorers.filter_map(Lora::lowest_layer))
            .min()?;
        let shared = self.role("trunk").or(self.role("base")).is_some();
        (shared && first > 0).then_some(first)
    }

    /// Whether a reward model or this judge starts from the states of a completion's last token.
    fn last_token(&self, judge: Option<&Judge>) -> LastToken {
        let on_base = self.role("base").is_some();
        let judge = judge.and_then(Judge::sharing);
        let starts = self.boundary_layer().is_some_and(|layer| {
            let lowest = |start: &Start| start.adapter.as_ref().and_then(Lora::lowest_layer);
            let reads = |start: &Start| !on_base || lowest(start) >= Some(layer);
            self.models.rewards.iter().chain(judge).any(reads)
        });
        match starts {
            true => LastToken::Read,
            false => LastToken::Unread,
        }
    }

    /// The hidden states at that layer: a batch's, which are there until it has been learned from, or those of a larger measurement. A
    /// batch's greedy completions are scored beside it.
    pub fn boundary(&self) -> Option<Buffer> {
        let width = self.models.policy.decoder.hidden_size;
        let kept = |prompts| states(prompts, width);
        let batch = kept(self.training()) + self.greedy().map_or(0, kept);
        let most = self.measurements().map(kept).chain([batch]).max();
        self.boundary_layer().map(|_| Buffer {
            name: "boundary buffer".to_owned(),
            bytes: most.unwrap_or(batch),
            phase: Phase::Both,
        })
    }

    /// Actor and critic are updated one after the other, so that the larger one's activations count.
    pub fn update(&self) -> Vec<Buffer> {
        let (config, policy) = (self.config, &self.models.policy.decoder);
        let rows = self.rows();
        let actor = self.role("actor").map(|role| (role, policy));
        let critic = self.models.critic.as_ref().map(|critic| &critic.decoder);
        let critic = self.role("critic").zip(critic);
        let passes = actor.into_iter().chain(critic);
        let largest = passes
            .map(|(role, decoder)| activations(self.pass(role, decoder, rows)))
            .max_by_key(|buffer| buffer.bytes);
        let mut buffers: Vec<Buffer> = largest.into_iter().collect();
        buffers.push(log_prob_chunk(self.targets(rows), policy.vocab_size));
        if config.update.rollback_kl().is_some() {
            let trained: usize = self.roles.iter().map(Role::gradients).sum();
            buffers.push(Buffer {
                name: "rollback copy".to_owned(),
                bytes: 3 * trained,
                phase: Phase::Update,
            });
        }
        buffers
    }

    fn pass<'a>(&self, role: &Role, decoder: &'a DecoderConfig, rows: usize) -> Pass<'a> {
        Pass {
            decoder,
            rows,
            first: role.graph_begins(decoder.num_hidden_layers),
            recompute: self.config.training.recompute,
        }
    }

    /// Tokens of a micro-batch.
    fn rows(&self) -> usize {
        let limit = self.config.training.micro_batch_tokens;
        match self.config.update.ptx.is_on() {
            true => limit,
            false => limit.min(self.config.mini_batch_size() * self.longest()),
        }
    }

    /// Of `rows` tokens those whose log-probs are asked for: of prompts none.
    fn targets(&self, rows: usize) -> usize {
        let generated = self.config.mini_batch_size() * self.config.generation.max_new_tokens;
        match self.config.update.ptx.is_on() {
            true => rows,
            false => rows.min(generated),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::roles::roles;
    use super::*;
    use crate::model::hf_config::HfConfig;
    use crate::model::lora::{Layers, LoraConfig};
    use crate::roles::{Reference, Sharing};

    fn start(adapter: Option<Layers>) -> Start {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/llama");
        let decoder = HfConfig::read(&folder).unwrap().decoder;
        let adapter = adapter.map(|layers| on(layers).resolve(&decoder).unwrap());
        Start { decoder, adapter }
    }

    fn on(layers: Layers) -> LoraConfig {
        LoraConfig {
            layers_to_transform: layers,
            ..LoraConfig::default()
        }
    }

    /// What `asked` says of 2 samples each of 2 prompts, of up to 12 + 8 tokens.
    fn of<R>(
        sharing: &Sharing,
        models: (Option<Start>, Option<Judge>),
        asked: impl Fn(&Sizes) -> R,
    ) -> R {
        configured(&small(), sharing, models, asked)
    }

    fn small() -> Ppo {
        let mut config = Ppo::default();
        config.training.batch_size = 4;
        config.rollout.rollout_batch = 3;
        config.num_samples_per_prompt = 2;
        config.generation.max_new_tokens = 8;
        config
    }

    fn configured<R>(
        config: &Ppo,
        sharing: &Sharing,
        models: (Option<Start>, Option<Judge>),
        asked: impl Fn(&Sizes) -> R,
    ) -> R {
        let (reward, judge) = models;
        let models = Models {
            critic: None,
            reference: Reference::Read,
            rewards: reward.into_iter().collect(),
            judge,
            policy: start(None),
        };
        asked(&Sizes {
            config,
            models: &models,
            roles: &roles(sharing, &models).unwrap(),
            prompts: &LongestPrompt {
                tokens: 12,
                counts: [9, 5],
                note: String::new(),
            },
            kernel: ProductKernel::Chains,
        })
    }

    /// The buffer, in numbers a unit of width.
    fn rows(sizes: &Sizes) -> Option<usize> {
        let bytes = sizes.boundary().map(|buffer| buffer.bytes);
        bytes.map(|bytes| bytes / sizes.models.policy.decoder.hidden_size / size_of::<f32>())
    }

    #[test]
    fn last_tokens_are_read_where_somebody_scores_from_their_states() {
        let (top, trunk) = (|layers| Layers::Top(layers), Sharing::Trunk { layers: 1 });
        let adapter = Sharing::Adapter(Some(on(top(1)).into()));
        let reads = |sharing: &Sharing, reward: Option<Start>, judge: Option<Judge>| {
            of(sharing, (reward, judge), |sizes| {
                let judge = sizes.models.judge.as_ref();
                [sizes.last_token(None), sizes.last_token(judge)].map(|t| t == LastToken::Read)
            })
        };
        let shared = |layers: Option<Layers>| Some(Judge::Sharing(start(layers)));
        let alone = Some(Judge::Alone(start(None).decoder));
        assert_eq!(reads(&trunk, Some(start(None)), None), [true; 2]);
        assert_eq!(reads(&trunk, None, shared(None)), [false, true]);
        assert_eq!(reads(&trunk, None, alone), [false; 2]);
        assert_eq!(reads(&Sharing::None, Some(start(None)), None), [false; 2]);
        assert_eq!(reads(&adapter, Some(start(Some(top(1)))), None), [true; 2]);
        assert_eq!(
            reads(&adapter, Some(start(None)), shared(Some(top(1)))),
            [false, true]
        );
        assert_eq!(reads(&adapter, None, shared(Some(top(2)))), [false; 2]);
    }

    #[test]
    fn hidden_states_are_kept_where_lower_layers_are_shared() {
        let boundary = |sharing: &Sharing, reward: Option<Layers>| {
            of(sharing, (Some(start(reward)), None), rows)
        };
        assert_eq!(boundary(&Sharing::None, None), None);
        // A reward model on the trunk reads the last of 8 tokens as well, one that stands alone does not.
        let trunk = Sharing::Trunk { layers: 1 };
        assert_eq!(boundary(&trunk, None), Some(2 * 12 + 4 * 8));
        let top = Sharing::Adapter(Some(on(Layers::Top(1)).into()));
        assert_eq!(boundary(&top, None), Some(2 * 12 + 4 * 7));
        assert_eq!(boundary(&top, Some(Layers::Top(1))), Some(2 * 12 + 4 * 8));
        assert_eq!(boundary(&top, Some(Layers::All)), None);
        assert_eq!(boundary(&Sharing::Adapter(None), None), None);
    }

    /// By hand. A batch has 2 prompts of 12 tokens and 4 completions, of 7 tokens that are read, or 8 where a judge reads the last.
    #[test]
    fn the_largest_of_what_is_kept_at_once_counts() {
        let trunk = Sharing::Trunk { layers: 1 };
        let kept = |change: &dyn Fn(&mut Ppo), judge: Option<Judge>| {
            let mut config = small();
            change(&mut config);
            configured(&config, &trunk, (None, judge), rows).unwrap()
        };
        let evaluated = |config: &mut Ppo| config.eval_prompts = Some("held-out.jsonl".into());
        let batch = 2 * 12 + 4 * 7;
        assert_eq!(kept(&|_| {}, None), batch);
        // Of 5 prompts to evaluate on a run has 4, of 64 sequences at once all, of a sample of 3 these.
        assert_eq!(kept(&evaluated, None), 4 * (12 + 7));
        let judge = Some(Judge::Sharing(start(None)));
        assert_eq!(kept(&evaluated, judge), 4 * (12 + 8));
        let wide = |config: &mut Ppo| {
            evaluated(config);
            config.rollout.rollout_batch = 64;
        };
        assert_eq!(kept(&wide, None), 5 * (12 + 7));
        let few = |config: &mut Ppo| {
            wide(config);
            config.evaluation.eval_samples = 3;
        };
        assert_eq!(kept(&few, None), 3 * (12 + 7));
        // The reference answers all 9 prompts to train on.
        let reference = |config: &mut Ppo| {
            few(config);
            config.scores.score_normalization = ScoreNormalization::Reference;
        };
        assert_eq!(kept(&reference, None), 9 * (12 + 7));
        let remax = |config: &mut Ppo| {
            config.objective.advantage_estimator = AdvantageEstimator::Remax;
        };
        assert_eq!(kept(&remax, None), batch + 2 * (12 + 7));
    }
}
