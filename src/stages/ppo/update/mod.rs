//! The epochs over a batch: minibatches of one optimizer step each, for actor and critic.
//!
//! `target_kl` ends them before the first minibatch whose approximate KL exceeds it takes its step, as Spinning Up
//! (<https://spinningup.openai.com/en/latest/algorithms/ppo.html>) and stable-baselines3 do; both allow 1.5 times what they are
//! given, here the key is the limit itself. CleanRL asks once an epoch, which is late where an epoch has many minibatches.

mod critic;
mod limit;
mod micro;
mod policy;
mod ptx;
mod report;

use anyhow::{Result, bail};
use rollout::random::{Key, Purpose};

use super::state::{Optimizers, State};
use super::targets::Targets;
use crate::config::{Ppo, Run};
use crate::model::Decoder;
use crate::roles::{Experience, Roles};
use crate::terminal::Phase;
use crate::train::metrics::Metrics;
use crate::train::optimizer::global_norm;
use critic::CriticSums;
use limit::Start;
use micro::Micro;
use policy::PolicySums;

pub use limit::Outcome;
pub use ptx::{PretrainMix, check_length};

/// Learning rates of an iteration.
#[derive(Clone, Copy)]
pub struct Rates {
    /// The actor's.
    pub actor: f64,
    /// The critic's.
    pub critic: f64,
}

/// A scored batch.
pub struct Batch<'a> {
    /// The sequences.
    pub experience: &'a Experience,
    /// Log-probs of the policy that sampled them, in the distributions that tokens were drawn from.
    pub old_log_probs: &'a [f32],
    /// Log-probs of the reference over the whole vocabulary, where the KL has a weight.
    pub reference_log_probs: Option<&'a [f32]>,
    /// Advantages, and what the critic aims at.
    pub targets: &'a Targets,
}

/// Which roles an iteration trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trained {
    /// Actor and critic.
    Both,
    /// The critic alone: it warms up.
    Critic,
}

/// What became of a minibatch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    /// It was not finite and moved nothing.
    #[default]
    Skipped,
    /// Its optimizer steps were taken.
    Stepped,
    /// Its approximate KL exceeded `target_kl`: no step was taken, nor is one of those that would follow.
    Stopped,
}

/// What one minibatch came to. A role that it did not train has no sums.
#[derive(Default)]
struct Minibatch {
    policy: Option<PolicySums>,
    critic: Option<CriticSums>,
    fate: Fate,
}

/// What the epochs read and change beside their batch.
pub struct Update<'a> {
    /// The stage's settings.
    pub config: &'a Ppo,
    /// The run's, for its seed and how many bad steps it bears.
    pub run: &'a Run,
    /// Whose weights move.
    pub roles: &'a Roles,
    /// Pretraining text to mix in, if there is any.
    pub mix: Option<&'a PretrainMix>,
    /// What moves the weights.
    pub optimizers: &'a mut Optimizers,
    /// Counts skipped steps and the text's rows.
    pub state: &'a mut State,
    /// Learning rates.
    pub rates: Rates,
}

impl Update<'_> {
    /// Runs the epochs of an iteration and writes the means over their minibatches.
    ///
    /// # Errors
    /// If a computation fails, or too many steps in a row were not finite.
    pub fn epochs(
        &mut self,
        iteration: u64,
        batch: &Batch,
        metrics: &mut Metrics,
    ) -> Result<Outcome> {
        let trained = match iteration <= self.config.critic.critic_warmup as u64 {
            true => Trained::Critic,
            false => Trained::Both,
        };
        let limit = self.config.update.rollback_kl();
        let limit = limit.filter(|_| trained == Trained::Both);
        let start = limit.map(|_| Start::of(self)).transpose()?;
        let done = self.minibatches(iteration, batch, trained)?;
        report::write(metrics, &done, self.rates, self.config);
        let mut outcome = match done.last().map(|m| m.fate) {
            Some(Fate::Stopped) => Outcome::StoppedEarly,
            _ => Outcome::Complete,
        };
        if let (Some(limit), Some(start)) = (limit, start) {
            let reached = self.approx_kl_reached(batch, &done)?;
            report::write_reached(metrics, reached);
            if limit::exceeds_or_nan(reached, limit) {
                start.put_back(self)?;
                self.state.rolled_back += 1;
                outcome = Outcome::RolledBack { approx_kl: reached };
            }
        }
        report::write_counts(metrics, &done, self.config, self.state);
        Ok(outcome)
    }

    /// The epochs' minibatches, up to the one that ended them.
    fn minibatches(
        &mut self,
        iteration: u64,
        batch: &Batch,
        trained: Trained,
    ) -> Result<Vec<Minibatch>> {
        let shuffle = Key::new(self.run.seed, Purpose::PpoShuffle);
        let (epochs, sequences) = (
            self.config.num_ppo_epochs as u64,
            batch.experience.sequences().len(),
        );
        let mut done = Vec::new();
        let phase = Phase::counted(
            "updating by minibatches",
            self.config.num_ppo_epochs * self.config.num_mini_batches,
        );
        for epoch in 0..epochs {
            let order = shuffle.permutation(iteration * epochs + epoch, sequences);
            for indices in order.chunks(self.config.mini_batch_size()) {
                let minibatch = self.minibatch(batch, indices, trained)?;
                let fate = minibatch.fate;
                done.push(minibatch);
                phase.add(1);
                if fate == Fate::Stopped {
                    return Ok(done);
                }
            }
        }
        Ok(done)
    }

    /// Gradients of one minibatch, in micro-batches of bounded size, and the step along them.
    fn minibatch(
        &mut self,
        batch: &Batch,
        indices: &[usize],
        trained: Trained,
    ) -> Result<Minibatch> {
        let limit = self.config.training.micro_batch_tokens;
        let longest = self.config.generation.max_new_tokens;
        let cut = micro::cut_minibatch(batch.experience, indices, limit, longest);
        let micros = cut.micros(batch)?;
        let mut minibatch = Minibatch::default();
        if trained == Trained::Both {
            let policy = minibatch.policy.insert(self.policy_gradients(&micros)?);
            if limit::stops(self.config, &policy.stats.ratio) {
                minibatch.fate = Fate::Stopped;
                return Ok(minibatch);
            }
            policy.ptx = self.ptx_gradients()?;
        }
        minibatch.critic = self.critic_gradients(&micros)?;
        self.check_reached(&minibatch)?;
        self.step(&mut minibatch)?;
        Ok(minibatch)
    }

    fn check_reached(&self, minibatch: &Minibatch) -> Result<()> {
        let (policy, critic) = (minibatch.policy.iter(), minibatch.critic.iter());
        let actor = policy.map(|_| ("actor", &self.roles.actor));
        let critic = critic.zip(&self.roles.critic);
        for (role, model) in actor.chain(critic.map(|(_, critic)| ("critic", critic))) {
            if let [first, ..] = model.params().unreached().as_slice() {
                bail!("no gradient reached the {role}'s {first}");
            }
        }
        Ok(())
    }

    /// One optimizer step of the roles that have gradients, or of none when something is not finite.
    fn step(&mut self, minibatch: &mut Minibatch) -> Result<()> {
        let actor = self.roles.actor.params();
        let critic = self.roles.critic.as_ref().map(Decoder::params);
        let critic = critic.filter(|_| minibatch.critic.is_some());
        let policy_norm = minibatch.policy.is_some().then(|| global_norm(actor));
        let critic_norm = critic.map(global_norm);
        let (policy_norm, critic_norm) = (policy_norm.transpose()?, critic_norm.transpose()?);
        let losses = minibatch.losses();
        let norms = policy_norm.iter().chain(&critic_norm);
        if !norms
            .chain(losses.iter().map(|(_, loss)| loss))
            .all(|n| n.is_finite())
        {
            return self.skip(&losses);
        }
        self.state.bad_in_row = 0;
        minibatch.fate = Fate::Stepped;
        let (rates, optimizers) = (self.rates, &mut *self.optimizers);
        if let (Some(sums), Some(norm)) = (&mut minibatch.policy, policy_norm) {
            sums.norm = Some(norm);
            optimizers.actor.step_with(actor, norm, |_| rates.actor)?;
        }
        if let (Some(sums), Some(norm)) = (&mut minibatch.critic, critic_norm)
            && let (Some(critic), Some(optimizer)) = (critic, &mut optimizers.critic)
        {
            sums.norm = Some(norm);
            optimizer.step_with(critic, norm, |_| rates.critic)?;
        }
        Ok(())
    }

    fn skip(&mut self, losses: &[(&str, f64)]) -> Result<()> {
        self.state.skipped += 1;
        self.state.bad_in_row += 1;
        if self.state.bad_in_row < self.run.max_bad_steps.max(1) {
            return Ok(());
        }
        let losses: Vec<String> = losses
            .iter()
            .map(|(name, loss)| format!("{name} loss {loss}"))
            .collect();
        bail!(
            "{} optimizer steps in a row were not finite ({}); lower ppo.learning_rate, or set ppo.score_clip; \
             run again to continue from the last checkpoint",
            self.state.bad_in_row,
            losses.join(", ")
        )
    }
}

impl Minibatch {
    /// Each loss that the minibatch has, by its name.
    fn losses(&self) -> Vec<(&'static str, f64)> {
        let critic = self.critic.iter().map(|c| ("value", c.loss));
        let policy = self.policy.iter().flat_map(PolicySums::losses);
        policy.chain(critic).collect()
    }
}
