//! Randomness as a function of a key and two indices; there is no generator state to keep, save or
//! share.
//!
//! A [`Key`] names an endless table of random words. Every draw reads one entry of it, addressed by
//! two indices `(a, b)` whose meaning is the caller's (epoch and position, sample and token, ...),
//! so a draw does not depend on how many were made before it. [`Key::child`] turns an entry into a
//! key of its own, which gives room for more indices.
//!
//! The words are those of Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers:
//! As Easy as 1, 2, 3", SC 2011. It is a counter-based generator that passes BigCrush; it is not a
//! cipher.

use std::f64::consts::TAU;

/// What a draw is for. Draws of different purposes are independent even when all their indices
/// agree.
///
/// The values are part of the format: changing one changes every result that follows from a seed. 5 is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Purpose {
    /// Initial values of parameters.
    Init = 1,
    /// Order of training records.
    Shuffle = 2,
    /// Which data set of a mixture the next record comes from.
    Mixture = 3,
    /// Tokens drawn during rollouts.
    Sample = 4,
    /// Tokens drawn during evaluation.
    Evaluation = 6,
    /// Order of sequences within a PPO epoch.
    PpoShuffle = 7,
    /// Assignment of records to training and held-out sets.
    Split = 8,
    /// Order of the pretraining text that PPO mixes in.
    Ptx = 9,
    /// Seeds of the models that draw for themselves.
    Model = 10,
}

/// A model that must not begin as another one of its kind does, nor read data in the same order: all its draws follow a seed of its
/// own. The values are part of the format, as those of [`Purpose`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Independent {
    /// The judge, which says whether a reward model is right and so must not share its chances.
    Judge = 1,
    /// A critic whose head is drawn, beside a reward model's.
    Critic = 2,
}

impl Independent {
    /// The seed that stands for `seed` in this model's draws.
    pub fn seed(self, seed: u64) -> u64 {
        Key::new(seed, Purpose::Model).bits(self as u64, 0)
    }
}

/// Names a table of random words; see the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u32; 2]);

impl Key {
    /// The table for one purpose of a run with this seed.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        Self(halves(seed)).child(purpose as u64, 0)
    }

    /// A key derived from entry `(a, b)`: the way to address a draw by more than two indices.
    ///
    /// Do not draw from the same entry of a key that you derive from.
    pub fn child(self, a: u64, b: u64) -> Self {
        let word = self.words(a, b);
        // The other half of the entry than the one `bits` returns.
        Self([word[2], word[3]])
    }

    /// 64 random bits: entry `(a, b)`.
    pub fn bits(self, a: u64, b: u64) -> u64 {
        let word = self.words(a, b);
        join(word[0], word[1])
    }

    /// A uniform draw from [0, 1) with 53 bits.
    pub fn uniform(self, a: u64, b: u64) -> f64 {
        unit(self.bits(a, b))
    }

    /// Two independent draws from the standard normal distribution (Box and Muller 1958).
    pub fn normal_pair(self, a: u64, b: u64) -> [f64; 2] {
        let word = self.words(a, b);
        // 1 − u lies in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * (1.0 - unit(join(word[0], word[1]))).ln()).sqrt();
        let (sin, cos) = (TAU * unit(join(word[2], word[3]))).sin_cos();
        [radius * cos, radius * sin]
    }

    /// Fills `out` with standard normal draws; element i comes from entry `(a, i / 2)`.
    pub fn fill_normal(self, a: u64, out: &mut [f64]) {
        for (pair, b) in out.chunks_mut(2).zip(0..) {
            let draws = self.normal_pair(a, b);
            pair.copy_from_slice(&draws[..pair.len()]);
        }
    }

    /// A uniform draw from `0..n`, or 0 when `n` is 0.
    ///
    /// The product's high word is used, so the probabilities are off by at most n / 2⁶⁴.
    pub fn below(self, a: u64, b: u64, n: u64) -> u64 {
        ((u128::from(self.bits(a, b)) * u128::from(n)) >> 64) as u64
    }

    /// A uniformly random order of `0..n` (Fisher-Yates); uses the entries `(a, 1..n)`.
    pub fn permutation(self, a: u64, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for last in (1..n).rev() {
            let other = self.below(a, last as u64, last as u64 + 1) as usize;
            order.swap(last, other);
        }
        order
    }

    fn words(self, a: u64, b: u64) -> [u32; 4] {
        let ([a0, a1], [b0, b1]) = (halves(a), halves(b));
        philox4x32([a0, a1, b0, b1], self.0)
    }
}

/// One block of Philox4x32-10: four random words for a counter and a key.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const ROUNDS: usize = 10;
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85]; // golden ratio, √3 − 1
    for _ in 0..ROUNDS {
        let [low0, high0] = halves(u64::from(MULTIPLIERS[0]) * u64::from(counter[0]));
        let [low1, high1] = halves(u64::from(MULTIPLIERS[1]) * u64::from(counter[2]));
        counter = [
            high1 ^ counter[1] ^ key[0],
            low1,
            high0 ^ counter[3] ^ key[1],
            low0,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The low and the high word.
fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// The top 53 bits as a fraction in [0, 1).
fn unit(bits: u64) -> f64 {
    const STEP: f64 = 1.0 / (1u64 << 53) as f64;
    (bits >> 11) as f64 * STEP
}
