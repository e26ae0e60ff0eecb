//! The critic's keys. With an estimator that has no critic they are refused.

use serde::{Deserialize, Serialize};

use super::{Keys, Training};

/// The keys of the value function in `[ppo]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Critic {
    /// Which weights the critic starts from. When unset: the reward model's if there is one, else the policy's. Filled once read
    /// where there is a critic.
    pub critic_from: Option<CriticFrom>,
    /// Learning rate of the critic; unset takes `learning_rate`.
    pub critic_learning_rate: Option<f64>,
    /// λ of generalised advantage estimation.
    pub lam: f64,
    /// Weight of the value loss: a factor of the critic's gradient, which has an optimizer of its own. AdamW's step does not grow with the
    /// gradient, so the factor acts through what the gradient is compared with alone: the critic's clip is at `max_grad_norm / vf_coef` of
    /// the unweighted norm, and its epsilon is `adam_epsilon / vf_coef`. With 0 only `weight_decay` changes the critic.
    pub vf_coef: f64,
    /// Iterations at the beginning in which the critic alone learns.
    pub critic_warmup: usize,
    /// A value may move this far from the rollout's before its loss is clipped.
    pub cliprange_value: f64,
}

/// Which weights the critic starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CriticFrom {
    /// The reward model's, its head included.
    RewardModel,
    /// The policy's, under a scalar head that is drawn, another than a reward model's first one.
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
    /// Writes down what unset keys take; `scorer` says whether there is a reward model.
    pub(super) fn fill(&mut self, learning_rate: f64, scorer: bool) {
        let start = match scorer {
            true => CriticFrom::RewardModel,
            false => CriticFrom::Policy,
        };
        self.critic_from.get_or_insert(start);
        self.critic_learning_rate.get_or_insert(learning_rate);
    }

    /// Notes values out of range; `training` has what unset ones take.
    pub(super) fn check(&self, training: &Training, keys: &mut Keys<'_, '_>) {
        keys.above("cliprange_value", self.cliprange_value, 0.0, "0.2 is usual");
        keys.not_negative("vf_coef", self.vf_coef, "0.1 is usual");
        keys.between("lam", self.lam, 0.0, 1.0, "0.95 is usual");
        let learning_rate = training.learning_rate;
        let rate = self.critic_learning_rate.unwrap_or(learning_rate);
        // A value copied from another key is blamed there.
        if rate != learning_rate {
            keys.not_negative("critic_learning_rate", rate, "0 trains no critic");
        }
        self.check_warmup(training.max_steps, rate, keys);
    }

    fn check_warmup(&self, steps: usize, rate: f64, keys: &mut Keys<'_, '_>) {
        let warmup = self.critic_warmup;
        if warmup == 0 {
            return;
        }
        if steps > 0 && warmup >= steps {
            let message =
                format!("leaves no iteration of ppo.max_steps = {steps} to the policy; lower it");
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

    /// The keys that someone set. Defaults pass, for the file in a run folder writes them out.
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
