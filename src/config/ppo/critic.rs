//! The critic's keys. With an estimator that has no critic they are refused.

use serde::{Deserialize, Serialize};

use super::Keys;

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
    /// Weight of the value loss.
    pub vf_coef: f64,
    /// A value may move this far from the rollout's before its loss is clipped.
    pub cliprange_value: f64,
}

/// Which weights the critic starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CriticFrom {
    /// The reward model's, its head included.
    RewardModel,
    /// The policy's, under a scalar head drawn from the run's seed.
    Policy,
}

impl Default for Critic {
    fn default() -> Self {
        Self {
            critic_from: None,
            critic_learning_rate: None,
            lam: 0.95,
            vf_coef: 0.1,
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

    /// Notes values out of range; `learning_rate` is what an unset rate takes.
    pub(super) fn check(&self, learning_rate: f64, keys: &mut Keys<'_, '_>) {
        keys.above("cliprange_value", self.cliprange_value, 0.0, "0.2 is usual");
        keys.not_negative("vf_coef", self.vf_coef, "0.1 is usual");
        keys.between("lam", self.lam, 0.0, 1.0, "0.95 is usual");
        let rate = self.critic_learning_rate.unwrap_or(learning_rate);
        // A value copied from another key is blamed there.
        if rate != learning_rate {
            keys.not_negative("critic_learning_rate", rate, "0 trains no critic");
        }
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
        let typed = [
            ("critic_from", start),
            ("critic_learning_rate", rate),
            ("lam", number(self.lam, usual.lam)),
            ("vf_coef", number(self.vf_coef, usual.vf_coef)),
            (
                "cliprange_value",
                number(self.cliprange_value, usual.cliprange_value),
            ),
        ];
        let set = typed.into_iter();
        set.filter_map(|(key, value)| Some((key, value?))).collect()
    }
}
