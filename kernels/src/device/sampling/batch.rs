//! Requests for tokens, as the kernels of sampling read them.

use crate::device::array::{Array, Gpu};
use crate::device::error::{KernelError, Result};
use crate::random::{Key, counter};

/// Words of `DrawSettings`.
const SETTINGS: usize = 16;
/// The size at which the masses of a row's tokens could exceed 64 bits.
const VOCABULARY_END: usize = 1 << 20;

/// How the token of a row is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// The most probable token, the lowest id among equals.
    Greedy,
    /// A random token.
    Random {
        /// The filters of the distribution.
        filters: Filters,
        /// The random number.
        uniform: Uniform,
    },
}

/// The distribution that a token is drawn from: `rollout::Sampling` defines them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filters {
    /// Logits are divided by it; above 0.
    pub temperature: f32,
    /// Keeps the k most probable tokens and those equal to the last of them; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most probable tokens until their sum reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the best; 0 keeps all.
    pub min_p: f32,
}

/// A random number in [0, 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Uniform {
    /// This one.
    Number(f64),
    /// [`Key::uniform`], computed on the device.
    Keyed {
        /// The key.
        key: Key,
        /// Indices of the key's entry.
        entry: [u64; 2],
    },
}

/// A request for one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowDraw<'a> {
    /// Row of the logits. Several draws may have the same.
    pub row: usize,
    /// Greedy choice or sampling.
    pub choice: Choice,
    /// Ids that may not be chosen; ids outside the vocabulary are ignored.
    pub suppressed: &'a [u32],
}

/// The requests of one step, on a device.
pub struct DrawBatch {
    /// Rows of the logits, above each row of a draw.
    pub(super) rows: usize,
    pub(super) vocabulary: usize,
    pub(super) draws: usize,
    /// Whether any distribution may be cut.
    pub(super) cuts: bool,
    /// `[draws, SETTINGS]`
    pub(super) settings: Array<u32>,
    /// The lists of suppressed ids, one behind the other.
    pub(super) suppressed: Array<u32>,
}

impl DrawBatch {
    /// Uploads requests for tokens of logits `[rows, vocabulary]`.
    ///
    /// # Panics
    /// If a row is not below `rows`.
    ///
    /// # Errors
    /// A vocabulary of 2²⁰ tokens or more, and errors of the device.
    pub fn new(gpu: &Gpu, draws: &[RowDraw], rows: usize, vocabulary: usize) -> Result<Self> {
        assert!(draws.iter().all(|draw| draw.row < rows), "rows of draws");
        if vocabulary >= VOCABULARY_END {
            return Err(KernelError::Length {
                what: "a vocabulary to draw from",
                found: vocabulary,
                expected: VOCABULARY_END - 1,
            });
        }
        let mut settings = Vec::with_capacity(draws.len() * SETTINGS);
        let mut suppressed = Vec::new();
        let mut last = 0; // start of the newest list, which the draws of one step mostly share
        for draw in draws {
            if !draw.suppressed.is_empty() && suppressed[last..] != *draw.suppressed {
                last = suppressed.len();
                suppressed.extend_from_slice(draw.suppressed);
            }
            settings.extend(draw.words([last, last + draw.suppressed.len()]));
        }
        Ok(Self {
            rows,
            vocabulary,
            draws: draws.len(),
            cuts: draws.iter().any(RowDraw::cuts),
            settings: gpu.upload(&settings)?,
            suppressed: gpu.upload(&suppressed)?,
        })
    }
}

impl RowDraw<'_> {
    /// The layout of `DrawSettings`.
    fn words(&self, suppressed: [usize; 2]) -> [u32; SETTINGS] {
        let (filters, uniform) = match self.choice {
            Choice::Greedy => (Filters::default(), Uniform::Number(0.0)),
            Choice::Random { filters, uniform } => (filters, uniform),
        };
        let (keyed, key, [a, b, c, d]) = match uniform {
            Uniform::Number(number) => (0, [0; 2], counter(number.to_bits(), 0)),
            Uniform::Keyed { key, entry } => (1, key.words(), counter(entry[0], entry[1])),
        };
        [
            self.row as u32,
            u32::from(self.choice == Choice::Greedy),
            filters.temperature.to_bits(),
            (1.0 / filters.temperature).to_bits(),
            u32::try_from(filters.top_k).unwrap_or(u32::MAX),
            filters.top_p.to_bits(),
            filters.min_p.to_bits(),
            suppressed[0] as u32,
            suppressed[1] as u32,
            keyed,
            key[0],
            key[1],
            a,
            b,
            c,
            d,
        ]
    }

    /// Whether the distribution may be a part of the vocabulary.
    fn cuts(&self) -> bool {
        match self.choice {
            Choice::Greedy => false,
            Choice::Random { filters, .. } => !self.suppressed.is_empty() || filters.cut(),
        }
    }
}

impl Filters {
    fn cut(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }
}

impl Default for Filters {
    /// The model's own distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        }
    }
}
