//! Random draws as functions of a key and two indices. No generator state is kept, saved or shared.
//!
//! A [`Key`] names a table of random words. A draw reads the entry `(a, b)` of the table; the
//! caller gives the indices their meaning (epoch, sample and token, ...), so a draw does not depend
//! on the draws before it. [`Key::stream`] is the random generator of one entry, for the
//! distributions of `rand` and `rand_distr`. [`Key::child`] makes a key from an entry, for draws
//! with more indices.
//!
//! The words are those of Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers:
//! As Easy as 1, 2, 3", SC 2011. It is a counter-based generator that passes BigCrush; it is not a
//! cipher.
//!
//! The versions of `rand` and `rand_distr` are pinned, because another version may turn the same
//! words into other draws.

pub use rand;
pub use rand_distr;

use rand::rand_core::block::{BlockRng, BlockRngCore};
use rand::seq::SliceRandom;
use rand::{Rng, RngCore};

/// The key of a table of random words; see the module documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u32; 2]);

impl Key {
    /// The key of a seed and a purpose. Draws with different purposes are independent even where
    /// all indices agree; callers number their purposes.
    pub fn new(seed: u64, purpose: impl Into<u64>) -> Self {
        Self(halves(seed)).child(purpose.into(), 0)
    }

    /// A key derived from entry `(a, b)`, for draws with more than two indices.
    ///
    /// Do not draw from an entry that a key is derived from.
    pub fn child(self, a: u64, b: u64) -> Self {
        let [_, _, low, high] = philox4x32(counter(a, b), self.0);
        Self([low, high])
    }

    /// The words of the key, as the device's kernels take them.
    pub(crate) fn words(self) -> [u32; 2] {
        self.0
    }

    /// The random generator of entry `(a, b)`. Creating one costs nothing; the first draw computes
    /// one Philox block.
    pub fn stream(self, a: u64, b: u64) -> impl RngCore {
        BlockRng::new(EntryBlocks {
            key: u64::from(self.0[1]) << 32 | u64::from(self.0[0]),
            counter: counter(a, b),
        })
    }

    /// A uniform draw from [0, 1) with 53 bits: the first of entry `(a, b)`.
    pub fn uniform(self, a: u64, b: u64) -> f64 {
        self.stream(a, b).random()
    }

    /// A uniformly random order of `0..n`, from entry `(a, 0)`.
    pub fn permutation(self, a: u64, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        order.shuffle(&mut self.stream(a, 0));
        order
    }
}

/// The random words of one entry: block k of them is Philox of the entry's counter under `key + k`.
struct EntryBlocks {
    key: u64,
    counter: [u32; 4],
}

impl BlockRngCore for EntryBlocks {
    type Item = u32;
    type Results = [u32; 4];

    fn generate(&mut self, block: &mut [u32; 4]) {
        *block = philox4x32(self.counter, halves(self.key));
        self.key = self.key.wrapping_add(1);
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

/// The counter of entry `(a, b)`.
pub(crate) fn counter(a: u64, b: u64) -> [u32; 4] {
    let ([a0, a1], [b0, b1]) = (halves(a), halves(b));
    [a0, a1, b0, b1]
}

/// The low and the high word.
fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}
