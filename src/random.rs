//! The purposes of the engine's random draws, and the seeds of models that draw for themselves.

use kernels::random::Key;
use kernels::random::rand::RngCore;

/// The purpose of a draw. Draws with different purposes are independent even where all indices
/// agree.
///
/// The values are part of the format: another value changes every result that follows from a seed.
/// 5 is not in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Purpose {
    /// Initial values of parameters.
    Init = 1,
    /// Order of training records.
    Shuffle = 2,
    /// Which dataset of a mixture the next record comes from.
    Mixture = 3,
    /// Tokens sampled during rollouts.
    Sample = 4,
    /// Tokens sampled during evaluation.
    Evaluation = 6,
    /// Order of sequences within a PPO epoch.
    PpoShuffle = 7,
    /// Assignment of records to training and held-out sets.
    Split = 8,
    /// Order of the pretraining text that PPO mixes in.
    Ptx = 9,
    /// Seeds of [`Independent`] models.
    Model = 10,
}

impl From<Purpose> for u64 {
    fn from(purpose: Purpose) -> Self {
        purpose as Self
    }
}

/// A model whose draws follow a seed of its own, so that neither its initial values nor its order
/// of records equals another model's. The values are part of the format, like those of [`Purpose`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Independent {
    /// The judge, which measures the reward model and must not repeat its random choices.
    Judge = 1,
    /// A critic whose head is drawn, beside a reward model with a drawn head.
    Critic = 2,
}

impl Independent {
    /// The seed of this model's draws in a run with `seed`.
    pub fn seed(self, seed: u64) -> u64 {
        Key::new(seed, Purpose::Model)
            .stream(self as u64, 0)
            .next_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_have_the_numbers_of_the_format() {
        use Purpose::*;
        let purposes = [
            Init, Shuffle, Mixture, Sample, Evaluation, PpoShuffle, Split, Ptx, Model,
        ];
        assert_eq!(purposes.map(u64::from), [1, 2, 3, 4, 6, 7, 8, 9, 10]);
    }

    /// The seeds are part of the format: another value changes every judge and every drawn critic.
    #[test]
    fn independent_models_have_seeds_of_their_own() {
        let seeds = [Independent::Judge, Independent::Critic].map(|model| model.seed(1));
        assert_ne!(seeds[0], seeds[1]);
        assert!(!seeds.contains(&1));
        assert_ne!(Independent::Judge.seed(2), seeds[0]);
        let order = |seed| Key::new(seed, Purpose::Shuffle).permutation(0, 100);
        let agree = |a: &[usize], b: &[usize]| a.iter().zip(b).filter(|(a, b)| a == b).count();
        let orders = [1, seeds[0], seeds[1]].map(order);
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            // Orders agree in one place of a hundred by chance, in ten with a probability of 1e-7.
            assert!(agree(&orders[a], &orders[b]) < 10, "{orders:?}");
        }
    }
}
