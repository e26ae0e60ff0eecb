//! PPO (Schulman et al. 2017; for language models Ziegler et al. 2019 and Ouyang et al. 2022).
//!
//! One step is an iteration: roll out, score, turn scores into advantages, update for some epochs. Checkpoints fall between
//! iterations. The recipe's details follow Huang et al. 2024, "The N+ implementation details of RLHF with PPO".

mod evaluation;
mod rollouts;
mod state;
mod targets;
mod update;

use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use rollout::random::Purpose;

use super::context::{Context, Finished, steps};
use crate::config::{Ppo, Stage, TooLong};
use crate::data::example::{Encoder, Limit, Prompt};
use crate::data::loader::Order;
use crate::data::records::read;
use crate::data::tokenizer::Tokenizer;
use crate::model::Decoder;
use crate::ops::profile;
use crate::rlhf::stats::mean;
use crate::roles::{self, Experience, Roles, TokenScores};
use crate::train::memory::peak_bytes;
use crate::train::metrics::{Keep, Metrics, StepLog, names};
use crate::train::progress::Progress;
use crate::train::run_folder::Done;
use crate::train::supervised::{is_due, schedule};
use evaluation::{Evaluator, Measured, Verdict};
use rollouts::Sampler;
use state::{Optimizers, State, Store};
use targets::Targets;

/// Runs the stage; `None` when a signal stopped it.
///
/// # Errors
/// If data, a model or a file is wrong, or training diverges.
pub fn ppo(context: &Context, config: &Ppo) -> Result<Option<Finished>> {
    let tokenizer = context.tokenizer_of(&config.from)?;
    let roles = Roles::load(&config.from, &config.reward_model, context.device)?;
    let prompts = prompts(&tokenizer, config, &roles, &config.prompts, "prompts")?;
    let evaluator = Evaluator::load(context, config, &tokenizer, &roles)?;
    let mut run = Run::resume(context, config, &tokenizer, &roles, &prompts, evaluator)?;
    run.prepare()?;
    while run.state.iteration < run.iterations {
        if context.stop.is_requested() {
            run.save()?;
            return Ok(None);
        }
        run.iterate()?;
    }
    run.finish().map(Some)
}

/// Reads prompts and leaves room for the response.
fn prompts(
    tokenizer: &Tokenizer,
    config: &Ppo,
    roles: &Roles,
    file: &std::path::Path,
    key: &str,
) -> Result<Vec<Prompt>> {
    let encoder = Encoder::new(tokenizer, room(config, roles), TooLong::Error)?;
    let prompts = encoder
        .prompts(&read(file)?)
        .with_context(|| format!("ppo.{key}"))?
        .items;
    if prompts.is_empty() {
        bail!("ppo.{key}: {} holds no prompt", file.display());
    }
    Ok(prompts)
}

/// What the response leaves for a prompt in the context of policy and reward model.
fn room(config: &Ppo, roles: &Roles) -> Limit {
    let context = |model: &Decoder| model.decoder_config().max_position_embeddings;
    let (actor, reward) = (context(&roles.actor), context(roles.reward.decoder()));
    let (whose, context) = match actor <= reward {
        true => ("the policy's", actor),
        false => ("the reward model's", reward),
    };
    let response = config.generation.max_new_tokens;
    Limit {
        tokens: context.saturating_sub(response),
        words: format!(
            "{whose} context holds {context}, of which the response may take {response}"
        ),
        mend: "lower ppo.max_new_tokens".to_owned(),
    }
}

struct Run<'a> {
    context: &'a Context<'a>,
    config: &'a Ppo,
    roles: &'a Roles,
    prompts: &'a [Prompt],
    order: Order,
    sampler: Sampler<'a>,
    evaluator: Option<Evaluator<'a>>,
    tokenizer: &'a Tokenizer,
    optimizers: Optimizers,
    store: Store,
    log: StepLog,
    samples: StepLog,
    progress: Progress,
    state: State,
    saved: Option<u64>,
    iterations: u64,
}

/// What the roles say of a batch, token by token; scores are raw, one a sequence.
struct Scored {
    old: TokenScores,
    reference: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
}

/// Seconds of an iteration's parts.
struct Clock {
    start: Instant,
    last: Instant,
    laps: Vec<(&'static str, f64)>,
}

impl Clock {
    fn start() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            last: now,
            laps: Vec::new(),
        }
    }

    /// Ends the part that began with the last call.
    fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        self.laps.push((name, (now - self.last).as_secs_f64()));
        self.last = now;
    }

    fn write(&self, metrics: &mut Metrics) {
        for (name, seconds) in &self.laps {
            metrics.set(name, *seconds);
        }
        metrics.set(names::TIME_STEP, self.start.elapsed().as_secs_f64());
    }
}

impl<'a> Run<'a> {
    /// Starts from the newest valid checkpoint, or from nothing.
    fn resume(
        context: &'a Context<'a>,
        config: &'a Ppo,
        tokenizer: &'a Tokenizer,
        roles: &'a Roles,
        prompts: &'a [Prompt],
        evaluator: Option<Evaluator<'a>>,
    ) -> Result<Self> {
        let mut optimizers = Optimizers::new(roles, &config.training)?;
        let store = Store::open(context.folder, &config.training)?;
        let (state, notes) = store.restore(roles, &mut optimizers, config)?;
        // A step takes this many prompts, each of them several times where samples are grouped.
        let iterations = steps(
            &config.training,
            prompts.len(),
            config.prompts_per_iteration(),
        );
        let keep = if state.prepared {
            Keep::UpTo(state.iteration)
        } else {
            Keep::Nothing
        };
        let progress = Progress::new(
            Stage::Ppo.name(),
            state.iteration,
            iterations,
            config.training.log_steps as u64,
        );
        notes.iter().for_each(|note| progress.note(note));
        Ok(Self {
            order: Order::new(prompts.len(), context.config.run.seed, Purpose::Shuffle)?,
            sampler: Sampler::new(config, tokenizer, &roles.actor, context),
            log: StepLog::open(&context.folder.metrics(), keep)?,
            samples: StepLog::open(&context.folder.samples(), keep)?,
            context,
            config,
            roles,
            prompts,
            evaluator,
            tokenizer,
            optimizers,
            store,
            progress,
            saved: state.prepared.then_some(state.iteration),
            state,
            iterations,
        })
    }

    /// Before the first iteration: the scale of scores, and the measures that the end is held against.
    fn prepare(&mut self) -> Result<()> {
        if self.state.prepared {
            return Ok(());
        }
        self.state.normalizer = targets::normalizer(
            self.config,
            self.roles,
            &self.sampler,
            self.prompts,
            self.context.config.run.seed,
        )?;
        let mut metrics = Metrics::new(0);
        self.state.before = self.evaluate(&mut metrics)?;
        self.state.last.clone_from(&self.state.before);
        if self.state.before.is_some() {
            self.log.write(&metrics)?;
        }
        self.state.prepared = true;
        self.save()
    }

    /// One iteration of the recipe.
    fn iterate(&mut self) -> Result<()> {
        let iteration = self.state.iteration + 1;
        let mut metrics = Metrics::new(iteration);
        let mut clock = Clock::start();

        // 1. Roll out from the live weights of the actor.
        let batch = self.batch(iteration);
        let rolled = {
            let _part = profile::part("rollout");
            self.sampler.sample(&self.roles.actor, &batch, iteration)?
        };
        let Some(sequences) = rolled else {
            return Ok(());
        };
        let experience = Experience::new(sequences)?;
        clock.lap(names::TIME_ROLLOUT);

        // 2. Score: actor and reference log-probs, values, rewards.
        let scored = self.score(&experience)?;
        clock.lap(names::TIME_SCORE);

        // 3. Rewards, advantages, returns.
        let targets = self.targets(&experience, &scored, &mut metrics)?;

        // 4. Update actor and critic.
        let batch = update::Batch {
            experience: &experience,
            old_log_probs: &scored.old.log_probs,
            old_values: &scored.values,
            targets: &targets,
        };
        self.update(iteration, &batch, &mut metrics)?;
        clock.lap(names::TIME_UPDATE);

        // 5. Report, evaluate, save.
        self.state.iteration = iteration;
        clock.write(&mut metrics);
        self.report(&mut metrics, &experience, &scored.old);
        if is_due(iteration, self.config.training.eval_steps) || iteration == self.iterations {
            self.state.last = self.evaluate(&mut metrics)?;
        }
        self.log.write(&metrics)?;
        if is_due(iteration, self.config.training.save_steps) || iteration == self.iterations {
            self.save()?;
        }
        Ok(())
    }

    fn score(&self, experience: &Experience) -> Result<Scored> {
        let _part = profile::part("score");
        let (sequences, limit) = (
            experience.sequences(),
            self.config.training.micro_batch_tokens,
        );
        let temperature = self.config.generation.temperature as f32;
        let ids: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
        let roles = self.roles;
        Ok(Scored {
            old: roles::log_probs(&roles.actor, sequences, temperature, limit)?,
            reference: roles::log_probs(&roles.reference, sequences, temperature, limit)?.log_probs,
            values: roles::values(&roles.critic, sequences, limit)?,
            scores: roles.reward.score(&ids, limit)?,
        })
    }

    fn targets(
        &mut self,
        experience: &Experience,
        scored: &Scored,
        metrics: &mut Metrics,
    ) -> Result<Targets> {
        let inputs = targets::Inputs {
            old: &scored.old.log_probs,
            reference: &scored.reference,
            values: &scored.values,
            scores: &scored.scores,
        };
        targets::targets(self.config, &mut self.state, experience, &inputs, metrics)
    }

    fn update(
        &mut self,
        iteration: u64,
        batch: &update::Batch,
        metrics: &mut Metrics,
    ) -> Result<()> {
        let _part = profile::part("update");
        let rates = self.rates(iteration);
        let mut update = update::Update {
            config: self.config,
            run: &self.context.config.run,
            roles: self.roles,
            optimizers: &mut self.optimizers,
            state: &mut self.state,
            rates,
        };
        update.epochs(iteration, batch, metrics)
    }

    /// The prompts of an iteration, each with the place at which training meets it.
    fn batch(&self, iteration: u64) -> Vec<(u64, &'a Prompt)> {
        let count = self.config.prompts_per_iteration() as u64;
        let start = (iteration - 1) * count;
        (start..start + count)
            .map(|place| (place, &self.prompts[self.order.index(place)]))
            .collect()
    }

    fn rates(&self, iteration: u64) -> update::Rates {
        let at = |peak: f64| {
            schedule(&self.config.training, self.iterations, peak).lr_at(iteration as usize)
        };
        update::Rates {
            actor: at(self.config.training.learning_rate),
            critic: at(self.config.critic_learning_rate()),
        }
    }

    /// What the rollout was like, on the terminal too.
    fn report(&mut self, metrics: &mut Metrics, experience: &Experience, old: &TokenScores) {
        let sequences = experience.sequences();
        let (tokens, count) = (experience.token_count() as f64, sequences.len() as f64);
        let recorded = experience.log_probs();
        let gap = recorded
            .iter()
            .zip(&old.log_probs)
            .map(|(a, b)| f64::from((a - b).abs()))
            .fold(0.0, f64::max);
        let finished = sequences.iter().filter(|s| s.finished).count() as f64;
        let seconds = metrics.get(names::TIME_ROLLOUT).unwrap_or(f64::NAN);
        metrics
            .set(names::OBJECTIVE_ENTROPY, mean(&old.entropy))
            .set(names::ROLLOUT_TOKENS_PER_SECOND, tokens / seconds)
            .set(names::ROLLOUT_LENGTH_MEAN, tokens / count)
            .set(names::ROLLOUT_EOS_FRACTION, finished / count)
            .set(names::ROLLOUT_LOG_PROB_MAX_DEV, gap)
            .set(names::TRAIN_SKIPPED_STEPS, self.state.skipped as f64);
        if let Some(bytes) = peak_bytes() {
            metrics.set(names::MEMORY_PEAK_BYTES, bytes as f64);
        }
        let shown = [
            ("score", names::OBJECTIVE_SCORES),
            ("kl", names::OBJECTIVE_KL),
        ]
        .map(|(label, name)| (label, metrics.get(name).unwrap_or(f64::NAN)));
        self.progress.step(self.state.iteration, &shown);
    }

    fn evaluate(&mut self, metrics: &mut Metrics) -> Result<Option<Measured>> {
        let Some(evaluator) = &self.evaluator else {
            return Ok(None);
        };
        let _part = profile::part("evaluate");
        let start = Instant::now();
        let (mut measured, samples) =
            evaluator.measure(&self.sampler, self.roles, self.state.iteration)?;
        samples
            .iter()
            .try_for_each(|sample| self.samples.write(sample))?;
        measured.hold_against(self.state.before.as_ref());
        measured.write(metrics);
        metrics.set(names::TIME_EVAL, start.elapsed().as_secs_f64());
        self.progress.note(&format!(
            "iteration {}: {}",
            self.state.iteration,
            measured.line()
        ));
        self.watch(&measured, metrics);
        Ok(Some(measured))
    }

    /// Says so where the judge fell while the reward rose.
    fn watch(&mut self, measured: &Measured, metrics: &mut Metrics) {
        let iteration = self.state.iteration;
        let Some(verdict) = self.state.watch.observe(iteration, measured) else {
            return;
        };
        let hacked = f64::from(u8::from(verdict != Verdict::Sound));
        metrics.set(names::EVAL_HACKING_WARNING, hacked);
        if let Verdict::Hacked(words) = verdict {
            self.progress.note(&words);
        }
    }

    /// Writes a checkpoint, unless the last one is of this iteration: it holds the same.
    fn save(&mut self) -> Result<()> {
        if self.saved == Some(self.state.iteration) {
            return Ok(());
        }
        let _part = profile::part("save");
        self.log.sync()?;
        self.samples.sync()?;
        self.store.save(self.roles, &self.optimizers, &self.state)?;
        self.saved = Some(self.state.iteration);
        Ok(())
    }

    fn finish(mut self) -> Result<Finished> {
        self.progress.finish();
        self.context
            .write_final(&self.roles.actor, self.tokenizer)?;
        let table = evaluation::table(&self.state, self.evaluator.as_ref(), self.context.folder)?;
        let summary = self
            .state
            .last
            .take()
            .map(|m| m.summary())
            .unwrap_or_default();
        Ok(Finished {
            done: Done {
                steps: self.state.iteration,
                summary,
            },
            table,
        })
    }
}
