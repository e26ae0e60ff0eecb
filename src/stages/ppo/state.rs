//! What an iteration reads beside data: optimizers, and the state that goes into a checkpoint.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::evaluation::{Measured, Watch};
use crate::config::{Ppo, Training};
use crate::rlhf::{FixedKl, KlController, ScoreNormalizer};
use crate::roles::Roles;
use crate::train::checkpoint::Checkpoints;
use crate::train::optimizer::AdamW;
use crate::train::run_folder::StageFolder;
use crate::train::snapshot;
use crate::train::supervised::adamw;

/// One optimizer for each trained role.
pub struct Optimizers {
    /// The actor's.
    pub actor: AdamW,
    /// The critic's.
    pub critic: AdamW,
}

/// Everything beside weights and moments that an iteration reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Iterations done.
    pub iteration: u64,
    /// Whether the normaliser and the first evaluation are there.
    pub prepared: bool,
    /// The KL coefficient's controller.
    pub kl: KlController,
    /// The scale of scores.
    pub normalizer: ScoreNormalizer,
    /// Optimizer steps skipped because something was not finite.
    pub skipped: u64,
    /// How many of them in a row.
    pub bad_in_row: usize,
    /// The evaluation before training.
    pub before: Option<Measured>,
    /// The newest evaluation.
    pub last: Option<Measured>,
    /// What the evaluations have shown so far.
    #[serde(default)]
    pub watch: Watch,
    actor_steps: u64,
    critic_steps: u64,
}

/// The stage's checkpoints.
pub struct Store {
    checkpoints: Checkpoints,
    keep_last: usize,
    keep_every: u64,
}

const ACTOR: &str = "actor";
const CRITIC: &str = "critic";

impl Optimizers {
    /// Zero moments for both.
    pub fn new(roles: &Roles, training: &Training) -> Result<Self> {
        let config = adamw(training);
        Ok(Self {
            actor: AdamW::new(roles.actor.params(), config)?,
            critic: AdamW::new(roles.critic.params(), config)?,
        })
    }
}

impl State {
    fn new(config: &Ppo) -> Self {
        Self {
            iteration: 0,
            prepared: false,
            kl: KlController::Fixed(FixedKl {
                coef: config.kl_coef,
            }),
            normalizer: ScoreNormalizer::None,
            skipped: 0,
            bad_in_row: 0,
            before: None,
            last: None,
            watch: Watch::default(),
            actor_steps: 0,
            critic_steps: 0,
        }
    }
}

impl Store {
    /// Opens the stage's checkpoints.
    pub fn open(folder: &StageFolder, training: &Training) -> Result<Self> {
        let checkpoints = Checkpoints::open(&folder.checkpoints())?;
        Ok(Self {
            checkpoints,
            keep_last: training.keep_last,
            keep_every: training.keep_every as u64,
        })
    }

    /// The newest valid state, put back into roles and optimizers; and what there is to say about it.
    pub fn restore(
        &self,
        roles: &Roles,
        optimizers: &mut Optimizers,
        config: &Ppo,
    ) -> Result<(State, Vec<String>)> {
        let latest = self.checkpoints.resume()?;
        let damaged = latest
            .passed_over
            .iter()
            .map(|line| format!("damaged checkpoint passed over: {line}"));
        let mut notes: Vec<String> = damaged.collect();
        let Some(checkpoint) = latest.checkpoint else {
            return Ok((State::new(config), notes));
        };
        let state: State = checkpoint.state()?;
        snapshot::restore(
            &checkpoint,
            ACTOR,
            &roles.actor,
            &mut optimizers.actor,
            state.actor_steps,
        )?;
        snapshot::restore(
            &checkpoint,
            CRITIC,
            &roles.critic,
            &mut optimizers.critic,
            state.critic_steps,
        )?;
        notes.push(format!("continues after iteration {}", state.iteration));
        Ok((state, notes))
    }

    /// Saves everything that the next iteration reads.
    pub fn save(&self, roles: &Roles, optimizers: &Optimizers, state: &State) -> Result<()> {
        let mut writer = self.checkpoints.writer(state.iteration)?;
        snapshot::save(&mut writer, ACTOR, &roles.actor, &optimizers.actor)?;
        snapshot::save(&mut writer, CRITIC, &roles.critic, &optimizers.critic)?;
        let (actor_steps, critic_steps) = (optimizers.actor.steps(), optimizers.critic.steps());
        writer.commit(&State {
            actor_steps,
            critic_steps,
            ..state.clone()
        })?;
        Ok(self.checkpoints.prune(self.keep_last, self.keep_every)?)
    }
}
