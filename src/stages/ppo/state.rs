//! The state of a run of PPO: optimizers, and everything else that a checkpoint holds.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::evaluation::{EvalResults, RewardWatch};
use crate::config::{KlControllerKind, Ppo, PpoObjective, Training};
use crate::rlhf::{AdaptiveKl, FixedKl, KlController, RlhfError, ScoreNormalizer};
use crate::roles::Roles;
use crate::train::checkpoint::{Checkpoint, Writer};
use crate::train::configured::adamw;
use crate::train::float;
use crate::train::optimizer::AdamW;
use crate::train::snapshot;

/// The optimizers of the trained roles.
pub struct Optimizers {
    /// Optimizer of the actor.
    pub actor: AdamW,
    /// Optimizer of the critic, if there is a critic.
    pub critic: Option<AdamW>,
}

/// Everything that an iteration reads besides weights and moments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PpoState {
    /// Number of completed iterations.
    pub iteration: u64,
    /// Prompts passed so far. Dynamic sampling passes more of them in an iteration than a batch
    /// holds.
    pub prompts_passed: u64,
    /// Whether the normaliser and the evaluation before training are done.
    pub prepared: bool,
    /// Controller of the KL coefficient.
    pub kl: KlController,
    /// Normaliser of scores.
    pub normalizer: ScoreNormalizer,
    /// Optimizer steps skipped because a loss or gradient was not finite.
    pub skipped: u64,
    /// Skipped steps in a row.
    pub bad_in_row: usize,
    /// Rows of pretraining text passed so far.
    pub ptx_rows: u64,
    /// Iterations rolled back.
    pub rolled_back: u64,
    /// Results of the evaluation before training.
    pub before: Option<EvalResults>,
    /// Results of the newest evaluation.
    pub last: Option<EvalResults>,
    /// Means of the first and of the newest rollout.
    pub rollouts: Option<[RolloutMeans; 2]>,
    /// Best evaluation by the judge, and warnings.
    pub watch: RewardWatch,
    actor_steps: u64,
    critic_steps: u64,
}

/// Means over the completions of one iteration, for the closing table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutMeans {
    /// Score of a completion.
    #[serde(with = "float")]
    pub score: f64,
    /// KL to the reference in nats a sequence; `None` where the KL has no weight.
    #[serde(with = "float::option")]
    pub kl: Option<f64>,
    /// Entropy in nats a token.
    #[serde(with = "float")]
    pub entropy: f64,
    /// Tokens of a completion.
    #[serde(with = "float")]
    pub length: f64,
}

const ACTOR: &str = "actor";
const CRITIC: &str = "critic";

impl Optimizers {
    /// Zero moments for each.
    pub fn new(roles: &Roles, training: &Training) -> Result<Self> {
        let config = adamw(training);
        Ok(Self {
            actor: AdamW::new(roles.actor.params(), config)?,
            critic: roles
                .critic
                .as_ref()
                .map(|critic| AdamW::new(critic.params(), config))
                .transpose()?,
        })
    }
}

impl PpoState {
    /// The state before the first iteration.
    ///
    /// # Errors
    /// If the KL controller's constants are out of range.
    pub fn new(config: &Ppo) -> Result<Self, RlhfError> {
        Ok(Self {
            iteration: 0,
            prompts_passed: 0,
            prepared: false,
            kl: controller(&config.objective)?,
            normalizer: ScoreNormalizer::None,
            skipped: 0,
            bad_in_row: 0,
            ptx_rows: 0,
            rolled_back: 0,
            before: None,
            last: None,
            rollouts: None,
            watch: RewardWatch::default(),
            actor_steps: 0,
            critic_steps: 0,
        })
    }

    /// The state of a checkpoint, whose weights and moments go back into roles and optimizers.
    ///
    /// # Errors
    /// If a file of the checkpoint cannot be read or does not fit.
    pub fn restore(
        checkpoint: &Checkpoint,
        roles: &Roles,
        optimizers: &mut Optimizers,
    ) -> Result<Self> {
        let state: Self = checkpoint.state()?;
        let (actor, steps) = (&mut optimizers.actor, state.actor_steps);
        snapshot::restore(checkpoint, ACTOR, &roles.actor, actor, steps)?;
        if let (Some(critic), Some(optimizer)) = (&roles.critic, &mut optimizers.critic) {
            snapshot::restore(checkpoint, CRITIC, critic, optimizer, state.critic_steps)?;
        }
        Ok(state)
    }

    /// Writes weights and moments into a checkpoint, and returns the state that goes with them.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(
        &self,
        writer: &mut Writer,
        roles: &Roles,
        optimizers: &Optimizers,
    ) -> Result<Self> {
        snapshot::save(writer, ACTOR, &roles.actor, &optimizers.actor)?;
        if let (Some(critic), Some(optimizer)) = (&roles.critic, &optimizers.critic) {
            snapshot::save(writer, CRITIC, critic, optimizer)?;
        }
        Ok(Self {
            actor_steps: optimizers.actor.steps(),
            critic_steps: optimizers.critic.as_ref().map_or(0, AdamW::steps),
            ..self.clone()
        })
    }
}

fn controller(objective: &PpoObjective) -> Result<KlController, RlhfError> {
    let (coef, target, horizon) = (objective.kl_coef, objective.kl_target, objective.kl_horizon);
    Ok(match objective.kl_controller {
        KlControllerKind::Fixed => KlController::Fixed(FixedKl { coef }),
        KlControllerKind::Adaptive => {
            KlController::Adaptive(AdaptiveKl::new(coef, target, horizon)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_keeps_its_counts_and_its_kl_coefficient_to_the_bit() {
        let mut config = Ppo::default();
        config.objective.kl_controller = KlControllerKind::Adaptive;
        let mut state = PpoState::new(&config).unwrap();
        state.kl.update(1.0 / 3.0, 7);
        (state.ptx_rows, state.rolled_back) = (6, 7);
        let json = serde_json::to_string(&state).unwrap();
        let read: PpoState = serde_json::from_str(&json).unwrap();
        assert_eq!((read.ptx_rows, read.rolled_back, read.kl), (6, 7, state.kl));
    }
}
