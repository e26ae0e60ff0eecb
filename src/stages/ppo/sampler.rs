//! Prompts → sequences, by the generator over the actor's current weights.

use kernels::random::Key;

use crate::random::Purpose;
use anyhow::Result;
use rollout::{
    CacheBudget, Decoding, Error, Finish, GenerationProgress, GenerationSettings, LastToken,
    Request, Sampling, SequenceId, StopText, generate,
};

use crate::config::{Ppo, Rollout};
use crate::data::ends::Ends;
use crate::data::example::Prompt;
use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;
use crate::model::boundary::Collector;
use crate::model::generator::Generator;
use crate::roles::{PromptUse, Roles, Sequence};
use crate::stages::context::Context;
use crate::terminal::Phase;
use crate::train::signal::StopRequest;

/// Prompt tokens that the generator prefills in one step.
const PREFILL_TOKENS: usize = 2048;

/// Samples completions by the configured sampling.
pub struct Sampler<'a> {
    config: &'a Ppo,
    tokenizer: &'a Tokenizer,
    ends: Ends,
    /// The layer whose inputs generation records, where the roles share the layers below it.
    boundary: Option<usize>,
    /// Whether a reward model reads the recorded states of a completion's last token.
    last_token: LastToken,
    /// Whether a reward model or the judge reads them, in evaluations.
    judged_token: LastToken,
    seed: u64,
    stop: &'a StopRequest,
}

impl<'a> Sampler<'a> {
    /// A sampler that stops at the policy's stop ids (those of the tokenizer included) and at the
    /// configured ids and texts.
    pub fn new(
        config: &'a Ppo,
        tokenizer: &'a Tokenizer,
        roles: &Roles,
        context: &'a Context,
    ) -> Self {
        let mut ids = roles.actor.config().stop_ids.clone();
        ids.extend(&config.generation.stop_token_ids);
        Self {
            config,
            tokenizer,
            ends: Ends::new(ids, &config.generation.stop, tokenizer),
            boundary: roles.layout.boundary,
            last_token: roles.layout.last_token(PromptUse::Training),
            judged_token: roles.layout.last_token(PromptUse::Evaluation),
            seed: context.config.run.seed,
            stop: context.stop,
        }
    }

    /// The samples of each prompt for training, in order; `None` when a signal requested a stop. A
    /// draw is a function of (seed, purpose, iteration, prompt key, sample, position).
    ///
    /// # Errors
    /// If a prompt does not fit or the model fails.
    pub fn sample(
        &self,
        model: &Decoder,
        prompts: &[(u64, &Prompt)],
        iteration: u64,
    ) -> Result<Option<Vec<Sequence>>> {
        let requests = self.requests(prompts, self.config.num_samples_per_prompt);
        let settings = GenerationSettings {
            iteration,
            entropies: true,
            cancel: Some(self.stop.flag()),
            ..self.settings(Purpose::Sample)
        };
        self.generate(model, &requests, settings)
    }

    /// The greedy completion of each prompt; `None` when a signal requested a stop.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn greedy(
        &self,
        model: &Decoder,
        prompts: &[(u64, &Prompt)],
    ) -> Result<Option<Vec<Sequence>>> {
        let requests = self.requests(prompts, 1);
        let settings = GenerationSettings {
            decoding: Decoding::Greedy,
            cancel: Some(self.stop.flag()),
            ..self.settings(Purpose::Sample)
        };
        self.generate(model, &requests, settings)
    }

    /// One sample of each prompt, for an evaluation or the reference samples. It ignores stop
    /// requests, since part of the samples would measure nothing.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn sample_all(
        &self,
        model: &Decoder,
        prompts: &[(u64, &Prompt)],
        purpose: Purpose,
    ) -> Result<Vec<Sequence>> {
        let requests = self.requests(prompts, 1);
        Ok(self
            .generate(model, &requests, self.settings(purpose))?
            .unwrap_or_default())
    }

    /// Splits the prompts of an evaluation or of the reference samples into runs that are answered
    /// and scored one after the other, so that only one run's recorded states are held at a time.
    /// The split changes no answer, since draws are functions of their keys.
    pub fn runs<'p, 'q>(
        &self,
        prompts: &'q [(u64, &'p Prompt)],
    ) -> std::slice::Chunks<'q, (u64, &'p Prompt)> {
        let length = match self.boundary {
            None => prompts.len().max(1),
            Some(_) => run_length(self.config),
        };
        prompts.chunks(length)
    }

    fn requests(&self, prompts: &[(u64, &Prompt)], samples: usize) -> Vec<Request> {
        let generation = &self.config.generation;
        let request = |(key, prompt): &(u64, &Prompt)| Request {
            key: *key,
            prompt: prompt.ids.clone(),
            max_new_tokens: generation.max_new_tokens,
            min_new_tokens: generation.min_new_tokens,
            samples,
        };
        prompts.iter().map(request).collect()
    }

    fn settings(&self, purpose: Purpose) -> GenerationSettings<'_> {
        let generation = &self.config.generation;
        let (seed, last_token) = match purpose {
            Purpose::Evaluation => (self.config.evaluation.eval_seed, self.judged_token),
            _ => (self.seed, self.last_token),
        };
        GenerationSettings {
            decoding: Decoding::Sample(Sampling {
                temperature: generation.temperature as f32,
                top_k: generation.top_k,
                top_p: generation.top_p as f32,
                min_p: generation.min_p as f32,
            }),
            key: Key::new(seed, purpose),
            last_token,
            max_batch: self.config.rollout.rollout_batch,
            cache: cache_budget(&self.config.rollout),
            prefill_tokens: PREFILL_TOKENS,
            stop_ids: self.ends.ids(),
            ..GenerationSettings::default()
        }
    }

    fn generate(
        &self,
        model: &Decoder,
        requests: &[Request],
        settings: GenerationSettings,
    ) -> Result<Option<Vec<Sequence>>> {
        let completed = |generated: &[u32]| self.ends.completed(self.tokenizer, generated);
        let stop_text: Option<StopText> = self.ends.has_texts().then_some(&completed);
        let mut generator = match self.boundary {
            None => Generator::new(model),
            Some(layer) => Generator::keeping(model, layer),
        };
        let settings = GenerationSettings {
            stop_text,
            ..settings
        };
        let total = requests.iter().map(|request| request.samples).sum();
        let phase = Phase::counted("sampling", total);
        let shown = &mut |now: GenerationProgress| phase.at(now.finished);
        let output = match generate(&mut generator, requests, &settings, shown) {
            Err(Error::Cancelled) => return Ok(None),
            output => output?,
        };
        let mut kept = generator.take_states();
        drop(generator);
        let completions = output.completions.into_iter();
        let sequences = completions.map(|completion| sequence(requests, completion, kept.as_mut()));
        Ok(Some(sequences.collect()))
    }

    /// The completion as text, without the stop text that ended it.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the tokens.
    pub fn text(&self, sequence: &Sequence) -> Result<String> {
        let first = sequence.positions().next().unwrap_or(sequence.ids.len());
        let prompt = &sequence.ids[..first];
        let response = sequence.response();
        Ok(self.ends.text(self.tokenizer, prompt, &response)?)
    }
}

/// Number of prompts in a run of [`Sampler::runs`]: as many sequences as an iteration has, or as
/// are generated at once.
pub fn run_length(config: &Ppo) -> usize {
    let batch = config.training.batch_size;
    batch.max(config.rollout.rollout_batch)
}

/// The configured limit of the generator's cache.
pub fn cache_budget(rollout: &Rollout) -> CacheBudget {
    match (rollout.cache_bytes, rollout.cache_tokens) {
        (Some(bytes), _) => CacheBudget::Bytes(bytes),
        (None, Some(tokens)) => CacheBudget::Tokens(tokens),
        (None, None) => CacheBudget::Unlimited,
    }
}

fn sequence(
    requests: &[Request],
    completion: rollout::Completion,
    kept: Option<&mut Collector>,
) -> Sequence {
    let id = SequenceId {
        request: completion.request,
        sample: completion.sample,
    };
    let request = &requests[completion.request];
    let mut ids = request.prompt.clone();
    ids.extend(&completion.tokens);
    Sequence {
        key: request.key,
        sample: completion.sample,
        generated: std::iter::once(request.prompt.len()..ids.len()).collect(),
        ids,
        log_probs: completion.log_probs,
        whole_log_probs: completion.whole_log_probs,
        entropies: completion.entropies,
        kept: completion.kept,
        finished: completion.finish == Finish::Stop,
        states: kept.and_then(|kept| kept.take(id, request.prompt.len())),
    }
}
