//! PPO (Schulman et al. 2017; for language models Ziegler et al. 2019 and Ouyang et al. 2022).
//!
//! One step is an iteration: roll out, score, turn scores into advantages, update for some epochs. Checkpoints fall between
//! iterations. The recipe's details follow Huang et al. 2024, "The N+ implementation details of RLHF with PPO".

mod batch;
mod clock;
mod evaluation;
mod prompts;
mod report;
mod rewards;
mod rollouts;
mod scores;
mod setup;
mod state;
mod targets;
mod update;

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::context::{Context, Finished};
use super::dataset::steps;
use super::misfits::Misfits;
use super::stops::stop_where_answers_end;
use crate::config::{Ppo, Share, Stage};
use crate::data::example::Prompt;
use crate::data::tokenizer::Tokenizer;
use crate::ops::dispatch::has_kernels;
use crate::ops::profile;
use crate::roles::{self, Experience, Roles, TokenScores};
use crate::terminal::Phase;
use crate::train::configured::{is_due, never_at_peak, rate_of_zero, schedule};
use crate::train::metrics::{Expect, Keep, Metrics, StepLog, names};
use crate::train::progress::Progress;
use crate::train::run_folder::Done;
use batch::Gathered;
use clock::Clock;
use evaluation::{Evaluator, Measured, Verdict};
use prompts::PromptWalk;
use rollouts::Sampler;
use state::{Optimizers, State, Store};
use targets::targets;
use update::{Outcome, PretrainMix};

pub(super) use prompts::batches;
pub(super) use rollouts::{cache_budget, run_length};
pub(super) use scores::REFERENCE_SAMPLES;
pub(super) use setup::{check_sampling, reference, room_in, sharing};
pub(super) use update::check_length;

/// Runs the stage; `None` when a signal stopped it.
///
/// # Errors
/// If data, a model or a file is wrong, or training diverges.
pub fn ppo(context: &Context, config: &Ppo) -> Result<Option<Finished>> {
    let tokenizer = context.tokenizer_of(&config.from)?;
    let mut roles = setup::roles(context, config)?;
    stop_where_answers_end(&mut roles.actor, &tokenizer)?;
    let (seed, mut misfits) = (context.config.run.seed, Misfits::default());
    let file = (config.prompts.as_path(), "prompts");
    let prompts = setup::prompts(&tokenizer, config, &roles, None, file, &mut misfits)?;
    let evaluator = Evaluator::load(config, &tokenizer, &roles, &mut misfits)?;
    let mix = PretrainMix::load(config, &tokenizer, &roles, seed, &mut misfits)?;
    let mut run = Run::resume(
        context, config, &tokenizer, &roles, &prompts, evaluator, mix,
    )?;
    run.prepare().context("before the first iteration")?;
    while run.state.iteration < run.iterations {
        if context.stop.is_requested() {
            run.save()?;
            return Ok(None);
        }
        let iteration = run.state.iteration + 1;
        run.iterate()
            .with_context(|| format!("iteration {iteration}"))?;
    }
    let mut finished = run.finish()?;
    misfits.add_to(&mut finished.table);
    Ok(Some(finished))
}

struct Run<'a> {
    context: &'a Context<'a>,
    config: &'a Ppo,
    roles: &'a Roles,
    walk: PromptWalk<'a>,
    sampler: Sampler<'a>,
    evaluator: Option<Evaluator<'a>>,
    mix: Option<PretrainMix>,
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

/// What the roles say of a batch, token by token.
struct Scored {
    old: TokenScores,
    /// The reference's log-probs over the whole vocabulary, where the KL has a weight.
    reference: Option<Vec<f32>>,
    /// The critic's, where there is a critic.
    values: Option<Vec<f32>>,
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
        mix: Option<PretrainMix>,
    ) -> Result<Self> {
        let mut optimizers = Optimizers::new(roles, &config.training)?;
        let store = Store::open(context.folder, &config.training)?;
        let (state, notes) = store.restore(roles, &mut optimizers, config)?;
        let walk = PromptWalk::new(prompts, config, context.config.run.seed)?;
        let iterations = steps(&config.training, walk.batches());
        setup::check_warmup(config, iterations)?;
        let keep = if state.prepared {
            Keep::UpTo(state.iteration)
        } else {
            Keep::Nothing
        };
        // The first checkpoint comes after the first evaluation.
        let samples = match (evaluator.is_some(), state.prepared) {
            (true, true) => Expect::Some,
            _ => Expect::Nothing,
        };
        let log = StepLog::open(&context.folder.metrics(), keep)?;
        let samples = StepLog::open_expecting(samples, &context.folder.samples(), keep)?;
        let progress = Progress::new(
            Stage::Ppo.name(),
            state.iteration,
            iterations,
            config.training.log_steps as u64,
        );
        let damage = log.damage().into_iter().chain(samples.damage());
        damage.for_each(|line| progress.note(line));
        let uneven = walk.note(iterations);
        let mixed = mix.as_ref().and_then(|mix| mix.note(&config.update.ptx));
        let loose = setup::loose_penalty(config);
        let still = policy_stays(config);
        let short = never_at_peak(&config.training, iterations);
        let notes = notes
            .into_iter()
            .chain(uneven)
            .chain(mixed)
            .chain(still)
            .chain(loose)
            .chain(short);
        notes.for_each(|note| progress.note(&note));
        Ok(Self {
            sampler: Sampler::new(config, tokenizer, roles, context),
            log,
            samples,
            context,
            config,
            roles,
            walk,
            evaluator,
            mix,
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
        let _phase = Phase::begin("before training");
        self.state.normalizer = scores::normalizer(
            self.config,
            self.roles,
            &self.sampler,
            self.walk.prompts(),
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

        // 1. Roll out from the live weights of the actor, and score by the reward model.
        let Some(gathered) = self.gather(iteration, &mut clock)? else {
            return Ok(());
        };

        // 2. to 4. Score by the other roles, aim, update. The batch is gone before an evaluation generates more.
        self.learn(iteration, gathered, clock, &mut metrics)?;

        // 5. Evaluate, save.
        if is_due(iteration, self.config.training.eval_steps) || iteration == self.iterations {
            self.state.last = self.evaluate(&mut metrics)?;
        }
        self.log.write(&metrics)?;
        if is_due(iteration, self.config.training.save_steps) || iteration == self.iterations {
            self.save()?;
        }
        Ok(())
    }

    /// Learns from what was gathered, and reports it.
    fn learn(
        &mut self,
        iteration: u64,
        mut gathered: Gathered,
        mut clock: Clock,
        metrics: &mut Metrics,
    ) -> Result<()> {
        gathered.write(self.config, metrics);
        let experience = Experience::new(std::mem::take(&mut gathered.batch.sequences))?;

        // 2. Score: log-probs of actor and, where the KL has a weight, of the reference; values.
        let Scored {
            old,
            reference,
            values,
        } = self.score(&experience)?;
        clock.lap(names::TIME_SCORE);

        // 3. Rewards, advantages, returns.
        let inputs = targets::Inputs {
            policy: &old.whole_log_probs,
            reference: reference.as_deref(),
            values,
            scores: &gathered.batch.scores.total,
            baseline: gathered.baseline.as_ref(),
        };
        let targets = targets(self.config, &mut self.state, &experience, inputs, metrics)?;

        // 4. Update actor and critic.
        let batch = update::Batch {
            experience: &experience,
            old_log_probs: &old.log_probs,
            reference_log_probs: reference.as_deref(),
            targets: &targets,
        };
        self.update(iteration, &batch, metrics)?;
        clock.lap(names::TIME_UPDATE);

        self.state.iteration = iteration;
        self.state.prompts_passed = gathered.passed;
        clock.write(metrics);
        self.report(metrics, &gathered, &experience, &old);
        Ok(())
    }

    fn score(&self, experience: &Experience) -> Result<Scored> {
        let _part = profile::part("score");
        let _phase = Phase::begin("scoring");
        let (sequences, limit) = (
            experience.sequences(),
            self.config.training.micro_batch_tokens,
        );
        let temperature = self.config.generation.temperature as f32;
        let roles = self.roles;
        let reference = roles.reference.as_ref();
        let reference = reference.filter(|_| self.config.weighs_kl());
        let values = roles.critic.as_ref();
        Ok(Scored {
            old: match self.rescores() {
                true => roles::token_scores(&roles.actor, sequences, temperature, limit)?,
                false => experience.recorded(),
            },
            reference: reference
                .map(|model| roles::whole_log_probs(model, sequences, temperature, limit))
                .transpose()?,
            values: values
                .map(|critic| roles::values(critic, sequences, limit))
                .transpose()?,
        })
    }

    /// Whether the actor reads its samples anew.
    fn rescores(&self) -> bool {
        self.config.rollout.rescore || !has_kernels(self.context.device)
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
            mix: self.mix.as_ref(),
            optimizers: &mut self.optimizers,
            state: &mut self.state,
            rates,
        };
        if let Outcome::RolledBack { approx_kl } = update.epochs(iteration, batch, metrics)? {
            self.progress.note(&format!(
                "iteration {iteration} was taken back: it had moved the policy by an approximate KL of {approx_kl:.3}, beyond ppo.target_kl \
                 × ppo.rollback_kl_factor; should that happen often, lower ppo.learning_rate"
            ));
        }
        Ok(())
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

    fn evaluate(&mut self, metrics: &mut Metrics) -> Result<Option<Measured>> {
        let Some(evaluator) = &self.evaluator else {
            return Ok(None);
        };
        let _part = profile::part("evaluate");
        let _phase = Phase::begin("evaluating");
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
        let _phase = Phase::begin("saving");
        self.log.sync()?;
        self.samples.sync()?;
        self.store.save(self.roles, &self.optimizers, &self.state)?;
        self.saved = Some(self.state.iteration);
        Ok(())
    }

    fn finish(mut self) -> Result<Finished> {
        self.progress.finish();
        self.roles.reward.finish()?;
        if self.optimizers.actor.steps() == 0 {
            self.progress.note(
                "every step of the policy was skipped or taken back: it stays as the stage found it",
            );
        }
        match self.config.sharing.share {
            Share::Adapter => {
                let (actor, base) = (&self.roles.actor, &self.roles.base);
                self.context
                    .write_final_adapter(actor, base, self.tokenizer)?;
            }
            Share::None | Share::Trunk => self
                .context
                .write_final(&self.roles.actor, self.tokenizer)?,
        }
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

/// Words on a policy that has no learning rate.
fn policy_stays(config: &Ppo) -> Option<String> {
    let critic =
        config.has_critic() && config.critic_learning_rate() > 0.0 && config.critic.vf_coef > 0.0;
    rate_of_zero(
        &config.training,
        match critic {
            true => "the critic alone learns, and the policy stays",
            false => "the policy stays",
        },
    )
}
