//! Log-probs and values of an iteration's samples, before its update.

use anyhow::Result;

use super::PpoRun;
use crate::ops::profile;
use crate::ops::work::{self, DeviceWork};
use crate::roles::{self, Experience};
use crate::terminal::Phase;

impl PpoRun<'_> {
    /// Adds the log-probs of the actor and, where the KL has a weight, of the reference, and the
    /// critic's values.
    ///
    /// # Errors
    /// If a computation fails.
    pub(super) fn add_log_probs_and_values(&self, experience: &mut Experience) -> Result<()> {
        let _part = profile::part("score");
        let _phase = Phase::begin("scoring");
        let (config, roles) = (self.config, self.roles);
        let limit = config.training.micro_batch_tokens;
        let temperature = config.generation.temperature as f32;
        let policy = match self.rescores() {
            true => {
                let _work = work::begin(DeviceWork::Forward("actor"));
                let sequences = experience.sequences();
                roles::policy_log_probs(&roles.actor, sequences, temperature, limit)?
            }
            false => experience.recorded(),
        };
        experience.set_policy(policy)?;
        if let (Some(model), true) = (&roles.reference, config.weighs_kl()) {
            let _work = work::begin(DeviceWork::Forward("reference"));
            let sequences = experience.sequences();
            let reference = roles::whole_log_probs(model, sequences, temperature, limit)?;
            experience.set_reference(reference)?;
        }
        if let Some(critic) = &roles.critic {
            let _work = work::begin(DeviceWork::Forward("critic"));
            let values = roles::values(critic, experience.sequences(), limit)?;
            experience.set_values(values)?;
        }
        Ok(())
    }

    /// Whether the actor computes the log-probs of its samples again, instead of using those that
    /// the generator recorded.
    pub(super) fn rescores(&self) -> bool {
        self.config.rollout.rescore || !self.context.backend.decodes_exactly()
    }
}
