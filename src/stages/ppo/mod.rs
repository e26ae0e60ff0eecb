//! PPO (Schulman et al. 2017; for language models Ziegler et al. 2019 and Ouyang et al. 2022).
//!
//! One step is an iteration: roll out, score, estimate advantages, update for some epochs.
//! Checkpoints are written between iterations. The details follow Huang et al. 2024, "The N+
//! implementation details of RLHF with PPO".

mod advantages;
mod checks;
mod clock;
mod closing_table;
mod collect;
mod evaluation;
mod log_probs;
mod plan;
mod prompts;
mod report;
mod sampler;
mod scoring;
mod setup;
mod shaping;
mod state;
mod update;

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::context::{Context, Finished};
use super::definition::{CommandHelp, StageDefinition};
use super::first_records::RecordReader;
use super::plan::StagePlan;
use super::plan::models::RunModels;
use super::record_report::RecordReports;
use super::stops::stop_where_answers_end;
use crate::config::{Ppo, ScoreNormalization, Share, Stage};
use crate::data::example::Prompt;
use crate::data::tokenizer::Tokenizer;
use crate::ops::profile;
use crate::roles::{Experience, PromptUse, Roles};
use crate::terminal::Phase;
use crate::train::batch_order::steps;
use crate::train::configured::{is_due, never_at_peak, schedule};
use crate::train::metrics::{Metrics, StepLog, names};
use crate::train::run_folder::StageOutcome;
use crate::train::signal::Outcome;
use crate::train::stage_loop::{self, StageLoop, Steps};
use advantages::add_advantages;
use clock::IterationClock;
use collect::Collected;
use evaluation::{EvalResults, Evaluator, Verdict};
use prompts::PromptOrder;
use sampler::Sampler;
use state::{Optimizers, PpoState};
use update::{ActorCriticUpdate, PretrainMix, Rates, UpdateOutcome};

pub(super) use plan::longest_prompt;
pub(super) use prompts::batches;

impl StageDefinition for Ppo {
    fn help(_stage: Stage) -> CommandHelp {
        CommandHelp {
            about: "Tune the policy on the reward model's scores by PPO",
            details: "Needs [ppo] with `prompts`, and a reward model (from [reward], or \
                      `reward_model`) or a weighted sum of other scores ([[ppo.rewards]]). A step \
                      is an iteration: sample, score, update.",
            example: "collimate ppo configs/quickstart.toml --set ppo.kl_coef=0.1 --fresh",
        }
    }

    fn run(&self, context: &Context) -> Result<Option<Finished>> {
        let (seed, mut reports) = (context.config.run.seed, RecordReports::default());
        let tokenizer = context.tokenizer_of(&self.from)?;
        let mut roles = setup::roles(context, self)?;
        stop_where_answers_end(&mut roles.actor, &tokenizer)?;
        let data = (&self.prompts, "prompts");
        let training = PromptUse::Training;
        let prompts = setup::prompts(&tokenizer, self, &roles, training, data, &mut reports)?;
        let evaluator = Evaluator::load(self, &tokenizer, &roles, &mut reports)?;
        let mix = PretrainMix::load(self, &tokenizer, seed, &mut reports)?;
        let mut run = PpoRun::resume(context, self, &tokenizer, &roles, &prompts, evaluator, mix)?;
        run.prepare().context("before the first iteration")?;
        if stage_loop::run(&mut run, context.stop)? == Outcome::Stopped {
            return Ok(None);
        }
        let mut finished = run.finish()?;
        reports.add_to(&mut finished.table);
        Ok(Some(finished))
    }

    fn plan(&self, models: RunModels, _stage: Stage) -> Result<StagePlan> {
        plan::plan(models, self)
    }

    fn check_models(&self, _models: RunModels, _stage: Stage) -> Result<()> {
        checks::check_programs(self)
    }

    fn check_records(&self, reader: &RecordReader) -> Result<()> {
        checks::check_records(reader, self)
    }

    fn calls_user_code(&self) -> bool {
        self.rewards.iter().any(|reward| reward.kind.is_external())
    }

    fn try_user_code(&self, reader: &RecordReader) -> Result<()> {
        checks::try_external_rewards(reader, self)
    }
}

/// A run of the stage: its models, data and state.
struct PpoRun<'a> {
    context: &'a Context<'a>,
    config: &'a Ppo,
    roles: &'a Roles,
    order: PromptOrder<'a>,
    sampler: Sampler<'a>,
    evaluator: Option<Evaluator<'a>>,
    mix: Option<PretrainMix>,
    tokenizer: &'a Tokenizer,
    optimizers: Optimizers,
    stage: StageLoop,
    samples: StepLog,
    state: PpoState,
    iterations: u64,
}

impl Steps for PpoRun<'_> {
    const UNIT: &'static str = "iteration";

    fn done(&self) -> u64 {
        self.state.iteration
    }

    fn continues(&self) -> bool {
        self.state.iteration < self.iterations
    }

    fn step(&mut self) -> Result<()> {
        let iteration = self.state.iteration + 1;
        let mut metrics = Metrics::new(iteration);
        let mut clock = IterationClock::start();

        // 1. Roll out from the actor's current weights, and score the completions.
        let Some(collected) = self.collect(iteration, &mut clock)? else {
            return Ok(());
        };

        // 2. to 4. The experience is dropped here, before an evaluation generates more.
        self.learn(iteration, collected, clock, &mut metrics)?;

        // 5. Evaluate and save.
        if is_due(iteration, self.config.training.eval_steps) || iteration == self.iterations {
            self.state.last = self.evaluate(&mut metrics)?;
        }
        self.stage.log.write(&metrics)?;
        if is_due(iteration, self.config.training.save_steps) || iteration == self.iterations {
            self.save()?;
        }
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        self.samples.sync()?;
        let (roles, optimizers, state) = (self.roles, &self.optimizers, &self.state);
        self.stage.save(state.iteration, |writer| {
            state.save(writer, roles, optimizers)
        })
    }
}

impl<'a> PpoRun<'a> {
    /// Starts from the newest valid checkpoint, or from the beginning.
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
        let order = PromptOrder::new(prompts, config, context.config.run.seed)?;
        let iterations = steps(&config.training, order.batches());
        setup::check_warmup(config, iterations)?;
        let (name, folder) = (context.stage.name(), context.folder);
        let (stage, newest) =
            StageLoop::open(name, Self::UNIT, iterations, folder, &config.training)?;
        // The first checkpoint comes after the first evaluation.
        let samples = stage.open_log(&folder.samples(), evaluator.is_some())?;
        let state = match &newest {
            Some(checkpoint) => PpoState::restore(checkpoint, roles, &mut optimizers)?,
            None => PpoState::new(config)?,
        };
        [
            order.note(iterations),
            mix.as_ref().and_then(|mix| mix.note(&config.update.ptx)),
            setup::frozen_policy(config),
            setup::loose_penalty(config),
            never_at_peak(&config.training, iterations),
        ]
        .into_iter()
        .flatten()
        .for_each(|note| stage.progress.note(&note));
        Ok(Self {
            sampler: Sampler::new(config, tokenizer, roles, context),
            stage,
            samples,
            context,
            config,
            roles,
            order,
            evaluator,
            mix,
            tokenizer,
            optimizers,
            state,
            iterations,
        })
    }

    /// Measures the normaliser of scores and evaluates once before the first iteration.
    fn prepare(&mut self) -> Result<()> {
        if self.state.prepared {
            return Ok(());
        }
        let _phase = Phase::begin("before training");
        self.state.normalizer = shaping::normalizer(
            self.config,
            self.roles,
            &self.sampler,
            self.order.prompts(),
            self.context.config.run.seed,
        )?;
        let mut metrics = Metrics::new(0);
        self.state.before = self.evaluate(&mut metrics)?;
        self.state.last.clone_from(&self.state.before);
        if self.state.before.is_some() {
            self.stage.log.write(&metrics)?;
        }
        self.state.prepared = true;
        // Before the first scores no checkpoint is saved, so that the settings of a reward that
        // fails on its first request can still be changed.
        let normalization = self.config.scores.score_normalization;
        match self.state.before.is_some() || normalization == ScoreNormalization::Reference {
            true => self.save(),
            false => Ok(()),
        }
    }

    /// Learns from the collected experience, and reports it.
    fn learn(
        &mut self,
        iteration: u64,
        mut collected: Collected,
        mut clock: IterationClock,
        metrics: &mut Metrics,
    ) -> Result<()> {
        collected.write(self.config, metrics);

        // 2. Log-probs of the actor and, where the KL has a weight, of the reference; values.
        self.add_log_probs_and_values(&mut collected.experience)?;
        clock.lap(names::TIME_SCORE);

        // 3. Rewards, advantages, returns. The KL controller moves the coefficient for the next
        // iteration.
        let kl_coef = self.state.kl.coef();
        let (experience, baseline) = (&mut collected.experience, collected.baseline.as_ref());
        add_advantages(self.config, &mut self.state, experience, baseline, metrics)?;

        // 4. Update actor and critic.
        self.update(iteration, &collected.experience, kl_coef, metrics)?;
        clock.lap(names::TIME_UPDATE);

        self.state.iteration = iteration;
        self.state.prompts_passed = collected.prompts_passed;
        clock.write(metrics);
        self.report(metrics, &collected)
    }

    fn update(
        &mut self,
        iteration: u64,
        experience: &Experience,
        kl_coef: f64,
        metrics: &mut Metrics,
    ) -> Result<()> {
        let _part = profile::part("update");
        let rates = self.rates(iteration);
        let mut update = ActorCriticUpdate {
            config: self.config,
            run: &self.context.config.run,
            roles: self.roles,
            mix: self.mix.as_ref(),
            optimizers: &mut self.optimizers,
            state: &mut self.state,
            rates,
            kl_coef,
        };
        let outcome = update.epochs(iteration, experience, metrics)?;
        if let UpdateOutcome::RolledBack { approx_kl } = outcome {
            self.stage.progress.note(&format!(
                "iteration {iteration} was rolled back: its update reached an approximate KL of \
                 {approx_kl:.3}, above ppo.target_kl × ppo.rollback_kl_factor; if this happens \
                 often, lower ppo.learning_rate"
            ));
        }
        Ok(())
    }

    fn rates(&self, iteration: u64) -> Rates {
        let training = &self.config.training;
        let at = |peak| schedule(training, self.iterations, peak).lr_at(iteration as usize);
        Rates {
            actor: at(training.learning_rate),
            critic: at(self.config.critic_learning_rate()),
        }
    }

    fn evaluate(&mut self, metrics: &mut Metrics) -> Result<Option<EvalResults>> {
        let Some(evaluator) = &self.evaluator else {
            return Ok(None);
        };
        let _part = profile::part("evaluate");
        let _phase = Phase::begin("evaluating");
        let start = Instant::now();
        let (mut results, samples) =
            evaluator.measure(&self.sampler, self.roles, self.state.iteration)?;
        for sample in &samples {
            self.samples.write(sample)?;
        }
        results.compare_with(self.state.before.as_ref());
        results.write(metrics);
        metrics.set(names::TIME_EVAL, start.elapsed().as_secs_f64());
        let line = format!("iteration {}: {}", self.state.iteration, results.line());
        self.stage.progress.note(&line);
        self.watch(&results, metrics);
        Ok(Some(results))
    }

    /// Warns if the judge's score fell while the reward's rose.
    fn watch(&mut self, results: &EvalResults, metrics: &mut Metrics) {
        let iteration = self.state.iteration;
        let Some(verdict) = self.state.watch.observe(iteration, results) else {
            return;
        };
        let hacked = f64::from(u8::from(verdict != Verdict::Sound));
        metrics.set(names::EVAL_HACKING_WARNING, hacked);
        if let Verdict::Hacked(words) = verdict {
            self.stage.progress.note(&words);
        }
    }

    fn finish(mut self) -> Result<Finished> {
        self.stage.progress.finish();
        self.roles.reward.finish()?;
        if self.optimizers.actor.steps() == 0 {
            self.stage.progress.note(
                "no optimizer step of the policy was kept: all were skipped or rolled back, so the \
                 policy is the one that the stage started from",
            );
        }
        let base = (self.config.sharing.share == Share::Adapter).then(|| self.roles.layout.base());
        self.context
            .write_final(&self.roles.actor, base, self.tokenizer)?;
        let (state, evaluator) = (&self.state, self.evaluator.as_ref());
        let summary = state.last.as_ref().map(EvalResults::summary);
        Ok(Finished {
            done: StageOutcome {
                steps: state.iteration,
                summary: summary.unwrap_or_default(),
            },
            table: closing_table::table(self.config, state, evaluator, self.context.folder),
        })
    }
}
