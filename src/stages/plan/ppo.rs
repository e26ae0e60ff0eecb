//! The stage of four roles.

use std::path::Path;

use anyhow::{Context as _, Result};
use rollout::LastToken;

use super::activations::Pass;
use super::generation::{Prompts, Reserve, panels, reserve};
use super::models::Folders;
use super::roles::{Judge, Models, Role, Start, roles};
use super::{Buffer, Phase, Plan, activations, log_prob_chunk, recompute};
use crate::config::{CriticFrom, Ppo, RewardKind, ScoreNormalization, Stage, TooLong};
use crate::data::example::{Encoder, Limit};
use crate::data::records::{Record, read};
use crate::model::config::{DecoderConfig, Head, TensorSpec};
use crate::model::lora::Lora;
use crate::stages::ppo::{cache_budget, sharing};

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
        longest: prompts.tokens + config.generation.max_new_tokens,
    };
    let mut buffers = sizes.rollout(prompts.tokens)?;
    buffers.extend(sizes.boundary());
    buffers.extend(sizes.update());
    let mut notes = vec![prompts.note];
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

/// Tokens of the longest prompt, and where that is known from.
struct LongestPrompt {
    tokens: usize,
    note: String,
}

impl LongestPrompt {
    fn of(folders: Folders, config: &Ppo, models: &Models) -> Result<Self> {
        if let Some(Longest { tokens, .. }) = longest_prompt(folders, config)? {
            let note = format!("the longest prompt has {tokens} tokens");
            return Ok(Self { tokens, note });
        }
        let scorers = models.rewards.iter().map(|reward| &reward.decoder);
        let contexts = scorers.chain([&models.policy.decoder]);
        let least = contexts
            .map(|decoder| decoder.max_position_embeddings)
            .min();
        let tokens = least
            .unwrap_or(0)
            .saturating_sub(config.generation.max_new_tokens);
        let note = format!(
            "the prompts cannot be counted before their file and the tokenizer are there; taken are {tokens} tokens, all that the context \
             leaves"
        );
        Ok(Self { tokens, note })
    }
}

/// The longest prompt.
pub struct Longest {
    /// Its record.
    pub record: Record,
    /// Its length.
    pub tokens: usize,
}

/// The longest prompt to train or evaluate on, if the files and the tokenizer are there.
///
/// # Errors
/// If a file or the tokenizer cannot be read, or a record is no prompt.
pub fn longest_prompt(folders: Folders, config: &Ppo) -> Result<Option<Longest>> {
    let files: Vec<&Path> = std::iter::once(config.prompts.as_path())
        .chain(config.eval_prompts.as_deref())
        .collect();
    if !files.iter().all(|file| file.exists()) {
        return Ok(None);
    }
    let Some(tokenizer) = folders.tokenizer(&config.from)? else {
        return Ok(None);
    };
    let encoder = Encoder::new(&tokenizer, Limit::none(), TooLong::Error)?;
    let mut longest = None;
    for file in files {
        let records = read(file)?;
        let prompts = encoder.prompts(&records)?.items;
        let lengths = prompts.iter().map(|prompt| prompt.ids.len());
        let found = records.into_iter().zip(lengths);
        let found = found.map(|(record, tokens)| Longest { record, tokens });
        longest = found.chain(longest).max_by_key(|found| found.tokens);
    }
    Ok(longest)
}

/// What buffers are computed from.
struct Sizes<'a> {
    config: &'a Ppo,
    models: &'a Models,
    roles: &'a [Role],
    /// Tokens of the longest sequence.
    longest: usize,
}

impl Sizes<'_> {
    fn role(&self, name: &str) -> Option<&Role> {
        self.roles.iter().find(|role| role.name == name)
    }

    /// The largest cache of those that training and evaluations reserve, and the panels.
    fn rollout(&self, prompt: usize) -> Result<Vec<Buffer>> {
        let (config, policy) = (self.config, &self.models.policy.decoder);
        let (rollout, max_new_tokens) = (&config.rollout, config.generation.max_new_tokens);
        let reserved = |count, samples, last_token| {
            let prompts = Prompts {
                count,
                tokens: prompt,
                samples,
                max_new_tokens,
                last_token,
            };
            let budget = cache_budget(rollout);
            reserve(policy, prompts, rollout.rollout_batch, budget)
        };
        let training = reserved(
            config.prompts_per_iteration(),
            config.num_samples_per_prompt,
            self.last_token(None),
        )?;
        let others = match self.answers_single_prompts() {
            true => reserved(
                rollout.rollout_batch,
                1,
                self.last_token(self.models.judge.as_ref()),
            )?,
            false => training,
        };
        let cache: Reserve = match others.bytes > training.bytes {
            true => others,
            false => training,
        };
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

    /// Whether prompts beyond those of a batch are answered, one sample each.
    fn answers_single_prompts(&self) -> bool {
        let reference = ScoreNormalization::Reference;
        self.config.eval_prompts.is_some() || self.config.scores.score_normalization == reference
    }

    fn panels(&self) -> usize {
        let policy = &self.models.policy.decoder;
        let known = policy.tensors();
        let is_adapter = |spec: &TensorSpec| known.iter().all(|own| own.name != spec.name);
        let actor = self.role("actor").into_iter();
        let own = actor.flat_map(|role| role.tensors.iter().map(|owned| owned.spec.clone()));
        panels(policy, &own.filter(is_adapter).collect::<Vec<_>>())
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

    /// The batch's hidden states at that layer.
    fn boundary(&self) -> Option<Buffer> {
        let (config, policy) = (self.config, &self.models.policy.decoder);
        // Samples of a prompt hold its states in common.
        let generated = config.generation.max_new_tokens.min(self.longest);
        let tokens = config.prompts_per_iteration() * (self.longest - generated)
            + config.training.batch_size * generated;
        self.boundary_layer().map(|_| Buffer {
            name: "boundary buffer".to_owned(),
            bytes: tokens * policy.hidden_size * size_of::<f32>(),
            phase: Phase::Both,
        })
    }

    /// Actor and critic are updated one after the other, so that the larger one's activations count.
    fn update(&self) -> Vec<Buffer> {
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
            recompute: recompute(self.config.training.recompute),
        }
    }

    /// Tokens of a micro-batch.
    fn rows(&self) -> usize {
        let limit = self.config.training.micro_batch_tokens;
        match self.config.update.ptx.is_on() {
            true => limit,
            false => limit.min(self.config.mini_batch_size() * self.longest),
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
    use super::*;
    use crate::model::hf_config::HfConfig;
    use crate::model::lora::{Layers, LoraConfig};
    use crate::roles::Sharing;

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
        let (reward, judge) = models;
        let models = Models {
            critic: None,
            rewards: reward.into_iter().collect(),
            judge,
            policy: start(None),
        };
        let mut config = Ppo::default();
        config.training.batch_size = 4;
        config.num_samples_per_prompt = 2;
        config.generation.max_new_tokens = 8;
        let roles = roles(sharing, &models).unwrap();
        asked(&Sizes {
            config: &config,
            models: &models,
            roles: &roles,
            longest: 20,
        })
    }

    /// The buffer, in numbers a unit of width.
    fn boundary(sharing: &Sharing, reward: Option<Layers>) -> Option<usize> {
        of(sharing, (Some(start(reward)), None), |sizes| {
            let bytes = sizes.boundary().map(|buffer| buffer.bytes);
            bytes.map(|bytes| bytes / sizes.models.policy.decoder.hidden_size / size_of::<f32>())
        })
    }

    #[test]
    fn last_tokens_are_read_where_somebody_scores_from_their_states() {
        let (top, trunk) = (|layers| Layers::Top(layers), Sharing::Trunk { layers: 1 });
        let adapter = Sharing::Adapter(Some(on(top(1))));
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
        assert_eq!(boundary(&Sharing::None, None), None);
        assert_eq!(
            boundary(&Sharing::Trunk { layers: 1 }, None),
            Some(2 * 12 + 4 * 8)
        );
        let top = Sharing::Adapter(Some(on(Layers::Top(1))));
        assert_eq!(boundary(&top, None), Some(2 * 12 + 4 * 8));
        assert_eq!(boundary(&top, Some(Layers::Top(1))), Some(2 * 12 + 4 * 8));
        assert_eq!(boundary(&top, Some(Layers::All)), None);
        assert_eq!(boundary(&Sharing::Adapter(None), None), None);
    }
}
