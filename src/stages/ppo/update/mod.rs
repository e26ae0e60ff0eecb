//! The epochs over an iteration's experience: minibatches of one optimizer step each, for actor and
//! critic.
//!
//! With `target_kl` the epochs end at the first minibatch whose approximate KL exceeds it; that
//! minibatch takes no step. Spinning Up
//! (<https://spinningup.openai.com/en/latest/algorithms/ppo.html>) and stable-baselines3 do the
//! same, but stop at 1.5 times the value of their key; here the key is the limit itself. CleanRL
//! checks once an epoch, which is late where an epoch has many minibatches.

mod critic;
mod limit;
mod microbatch;
mod policy;
mod ptx;
mod report;

use kernels::random::Key;

use crate::random::Purpose;
use anyhow::{Result, bail};

use super::state::{Optimizers, PpoState};
use crate::config::{KlIn, Ppo, Run};
use crate::model::Decoder;
use crate::ops::work::{self, DeviceWork};
use crate::roles::{Experience, Roles};
use crate::terminal::Phase;
use crate::train::metrics::Metrics;
use crate::train::optimizer::global_norm;
use critic::CriticSums;
use limit::IterationStart;
use microbatch::{Microbatch, microbatches};
use policy::PolicySums;

pub use limit::UpdateOutcome;
pub use ptx::PretrainMix;

/// Learning rates of an iteration.
#[derive(Clone, Copy)]
pub struct Rates {
    /// Learning rate of the actor.
    pub actor: f64,
    /// Learning rate of the critic.
    pub critic: f64,
}

/// The roles that an iteration trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trained {
    /// Actor and critic.
    Both,
    /// The critic alone, during its warm-up.
    Critic,
}

/// How a minibatch ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum MinibatchOutcome {
    /// A loss or gradient was not finite: no optimizer step was taken.
    #[default]
    Skipped,
    /// The optimizer steps were taken.
    Stepped,
    /// The approximate KL exceeded `target_kl`: no step was taken, and the epochs end.
    Stopped,
}

/// Sums and outcome of one minibatch. A role that was not trained has no sums.
#[derive(Default)]
struct Minibatch {
    policy: Option<PolicySums>,
    critic: Option<CriticSums>,
    outcome: MinibatchOutcome,
}

/// The update of actor and critic in one iteration: everything that the epochs read and change
/// beside the experience.
pub struct ActorCriticUpdate<'a> {
    /// The `[ppo]` table.
    pub config: &'a Ppo,
    /// The `[run]` table, for its seed and `max_bad_steps`.
    pub run: &'a Run,
    /// The models; actor and critic are trained.
    pub roles: &'a Roles,
    /// Pretraining text of PPO-ptx, if there is any.
    pub mix: Option<&'a PretrainMix>,
    /// Optimizers of actor and critic.
    pub optimizers: &'a mut Optimizers,
    /// Counters of skipped steps, iterations rolled back, and rows of pretraining text.
    pub state: &'a mut PpoState,
    /// Learning rates.
    pub rates: Rates,
    /// Weight of the KL to the reference in this iteration.
    pub kl_coef: f64,
}

impl ActorCriticUpdate<'_> {
    /// Runs the epochs of an iteration and writes the means over their minibatches.
    ///
    /// # Errors
    /// If a computation fails, or too many steps in a row were not finite.
    pub fn epochs(
        &mut self,
        iteration: u64,
        experience: &Experience,
        metrics: &mut Metrics,
    ) -> Result<UpdateOutcome> {
        let trained = match iteration <= self.config.critic.critic_warmup as u64 {
            true => Trained::Critic,
            false => Trained::Both,
        };
        let limit = self.config.update.rollback_kl();
        let limit = limit.filter(|_| trained == Trained::Both);
        let start = limit.map(|_| IterationStart::of(self)).transpose()?;
        let done = self.minibatches(iteration, experience, trained)?;
        report::write(metrics, &done, self.rates, self.config);
        let mut outcome = match done.last().map(|m| m.outcome) {
            Some(MinibatchOutcome::Stopped) => UpdateOutcome::StoppedEarly,
            _ => UpdateOutcome::Complete,
        };
        if let (Some(limit), Some(start)) = (limit, start) {
            let reached = self.approx_kl_reached(experience, &done)?;
            report::write_reached(metrics, reached);
            if limit::exceeds_or_nan(reached, limit) {
                start.put_back(self)?;
                self.state.rolled_back += 1;
                outcome = UpdateOutcome::RolledBack { approx_kl: reached };
            }
        }
        report::write_counts(metrics, &done, self.config, self.state);
        Ok(outcome)
    }

    /// Runs the minibatches of all epochs, up to the one that ends them early.
    fn minibatches(
        &mut self,
        iteration: u64,
        experience: &Experience,
        trained: Trained,
    ) -> Result<Vec<Minibatch>> {
        let shuffle = Key::new(self.run.seed, Purpose::PpoShuffle);
        let (epochs, sequences) = (
            self.config.num_ppo_epochs as u64,
            experience.sequences().len(),
        );
        let mut done = Vec::new();
        let phase = Phase::counted(
            "updating by minibatches",
            self.config.num_ppo_epochs * self.config.num_mini_batches,
        );
        for epoch in 0..epochs {
            let order = shuffle.permutation(iteration * epochs + epoch, sequences);
            for indices in order.chunks(self.config.mini_batch_size()) {
                let minibatch = self.minibatch(experience, indices, trained)?;
                let outcome = minibatch.outcome;
                done.push(minibatch);
                phase.add(1);
                if outcome == MinibatchOutcome::Stopped {
                    return Ok(done);
                }
            }
        }
        Ok(done)
    }

    /// Computes the gradients of one minibatch, in microbatches of bounded size, and takes its
    /// step.
    fn minibatch(
        &mut self,
        experience: &Experience,
        indices: &[usize],
        trained: Trained,
    ) -> Result<Minibatch> {
        let limit = self.config.training.micro_batch_tokens;
        let longest = self.config.generation.max_new_tokens;
        let parts = microbatches(experience, indices, limit, longest)?;
        let mut minibatch = Minibatch::default();
        if trained == Trained::Both {
            let policy = minibatch.policy.insert(self.policy_gradients(&parts)?);
            if limit::stops(self.config, &policy.stats.ratio) {
                minibatch.outcome = MinibatchOutcome::Stopped;
                return Ok(minibatch);
            }
            policy.ptx = self.ptx_gradients()?;
        }
        minibatch.critic = self.critic_gradients(&parts)?;
        self.check_reached(&minibatch)?;
        self.step(&mut minibatch)?;
        Ok(minibatch)
    }

    /// Weight of the KL in the actor's loss; `None` where the rewards carry the KL, or nothing
    /// does.
    fn loss_kl_coef(&self) -> Option<f64> {
        (self.config.kl_in() == KlIn::Loss && self.kl_coef > 0.0).then_some(self.kl_coef)
    }

    /// Fails if a trained parameter got no gradient.
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

    /// One optimizer step of each role that has gradients, or of none if a loss or gradient is not
    /// finite.
    fn step(&mut self, minibatch: &mut Minibatch) -> Result<()> {
        let _work = work::begin(DeviceWork::Optimizer);
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
        minibatch.outcome = MinibatchOutcome::Stepped;
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
            "{} optimizer steps in a row were not finite ({}), and would be again; lower \
             ppo.learning_rate or set ppo.score_clip, and start the stage over: collimate ppo … \
             --fresh; or raise run.max_bad_steps to skip more such steps",
            self.state.bad_in_row,
            losses.join(", ")
        )
    }
}

impl Minibatch {
    /// Each term of the minibatch's losses by its name.
    fn losses(&self) -> Vec<(&'static str, f64)> {
        let critic = self.critic.iter().map(|c| ("value", c.loss));
        let policy = self.policy.iter().flat_map(PolicySums::losses);
        policy.chain(critic).collect()
    }
}
