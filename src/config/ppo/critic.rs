//! The critic's keys. With an estimator that has no critic they are refused.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Keys, Training};

/// The keys of the value function in `[ppo]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Critic {
    /// Weights that the critic starts from.
    #[schemars(extend("x-default" = "`reward_model` if there is one, else `policy`"))]
    pub critic_from: Option<CriticFrom>,
    /// Peak learning rate of the critic.
    #[schemars(extend("x-default" = "`learning_rate`"))]
    pub critic_learning_rate: Option<f64>,
    /// λ of generalised advantage estimation, between 0 and 1.
    pub lam: f64,
    /// Weight of the value loss.
    ///
    /// The critic has an optimizer of its own, and AdamW's step does not depend on the scale of the
    /// gradient. So the weight has two effects only: the gradient is clipped where its norm exceeds
    /// `max_grad_norm / vf_coef`, and the effective epsilon is `adam_epsilon / vf_coef`. To make
    /// the critic learn faster or slower, set `critic_learning_rate`. With 0, only `weight_decay`
    /// changes the critic.
    pub vf_coef: f64,
    /// Number of initial iterations that train only the critic.
    pub critic_warmup: usize,
    /// Clip range of the value loss: largest change of a value from the rollout's before it is
    /// clipped.
    pub cliprange_value: f64,
}

/// Weights that the critic starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CriticFrom {
    /// The reward model, its scalar head included.
    RewardModel,
    /// The policy, with a randomly initialised scalar head.
    Policy,
}

impl Default for Critic {
    fn default() -> Self {
        Self {
            critic_from: None,
            critic_learning_rate: None,
            lam: 0.95,
            vf_coef: 0.1,
            critic_warmup: 0,
            cliprange_value: 0.2,
        }
    }
}

impl Critic {
    /// Fills unset keys; `scorer` is true if there is a reward model.
    pub(super) fn fill(&mut self, learning_rate: f64, scorer: bool) {
        let start = match scorer {
            true => CriticFrom::RewardModel,
            false => CriticFrom::Policy,
        };
        self.critic_from.get_or_insert(start);
        self.critic_learning_rate.get_or_insert(learning_rate);
    }

    /// Reports values out of range; `training` has the values of unset keys.
    pub(super) fn check(&self, training: &Training, keys: &mut Keys<'_, '_>) {
        keys.above("cliprange_value", self.cliprange_value, 0.0, "0.2 is usual");
        keys.not_negative("vf_coef", self.vf_coef, "0.1 is usual");
        keys.between("lam", self.lam, 0.0, 1.0, "0.95 is usual");
        let learning_rate = training.learning_rate;
        let rate = self.critic_learning_rate.unwrap_or(learning_rate);
        // A value copied from another key is reported there.
        if rate != learning_rate {
            keys.not_negative("critic_learning_rate", rate, "0 does not train the critic");
        }
        self.check_warmup(training.max_steps, rate, keys);
    }

    fn check_warmup(&self, steps: usize, rate: f64, keys: &mut Keys<'_, '_>) {
        let warmup = self.critic_warmup;
        if warmup == 0 {
            return;
        }
        if steps > 0 && warmup >= steps {
            let message = format!(
                "must be below ppo.max_steps = {steps}, or the policy is never trained; lower it"
            );
            keys.wrong("critic_warmup", warmup, message);
        }
        let still = match (self.vf_coef == 0.0, rate == 0.0) {
            (true, _) => "vf_coef",
            (_, true) => "critic_learning_rate",
            _ => return,
        };
        let message = format!("trains nothing with {still} = 0; raise that, or remove this key");
        keys.wrong("critic_warmup", warmup, message);
    }

    /// Keys that differ from their defaults.
    pub(super) fn set_keys(&self) -> Vec<(&'static str, String)> {
        let usual = Self::default();
        let number = |own: f64, usual: f64| (own != usual).then(|| own.to_string());
        let start = self.critic_from.map(|from| match from {
            CriticFrom::RewardModel => "\"reward_model\"".to_owned(),
            CriticFrom::Policy => "\"policy\"".to_owned(),
        });
        let rate = self.critic_learning_rate.map(|rate| rate.to_string());
        let warmup = (self.critic_warmup > 0).then(|| self.critic_warmup.to_string());
        let typed = [
            ("critic_from", start),
            ("critic_learning_rate", rate),
            ("lam", number(self.lam, usual.lam)),
            ("vf_coef", number(self.vf_coef, usual.vf_coef)),
            ("critic_warmup", warmup),
            (
                "cliprange_value",
                number(self.cliprange_value, usual.cliprange_value),
            ),
        ];
        let set = typed.into_iter();
        set.filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{refused, resolve};

    #[test]
    fn a_warm_up_that_never_ends_or_warms_nothing_is_refused() {
        // The sample has 40 steps.
        refused(
            &["ppo.critic_warmup=40"],
            &["ppo.critic_warmup", "ppo.max_steps = 40"],
        );
        assert_eq!(
            resolve(&["ppo.critic_warmup=39"])
                .unwrap()
                .ppo
                .unwrap()
                .critic
                .critic_warmup,
            39
        );
        for still in ["vf_coef", "critic_learning_rate"] {
            let set = format!("ppo.{still}=0.0");
            refused(
                &["ppo.critic_warmup=2", &set],
                &["ppo.critic_warmup", still],
            );
        }
        let none = [
            "ppo.critic_warmup=2",
            "ppo.advantage_estimator=reinforce_plus_plus",
        ];
        refused(&none, &["ppo.critic_warmup", "has no critic"]);
    }
}
