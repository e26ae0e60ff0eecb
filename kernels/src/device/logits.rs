//! Log-probabilities and entropies of rows of logits, and their gradients, with the host's bits.

use crate::device::array::{Array, Gpu};
use crate::device::error::Result;
use crate::device::kernel::Kernel;
use crate::device::launcher::{Argument, Grid};

/// Threads of a target's block, as in `logits.cu`.
const THREADS: u32 = 256;
/// Logits that are summed in single precision, as in `logits.cu`.
const SUM_BLOCK: usize = 256;

/// The tokens whose log-probabilities are computed, one for each row of logits, and the sets of
/// ids that cut distributions keep.
pub struct Targets {
    /// Size of the vocabulary, above every id.
    vocabulary: usize,
    tokens: Array<u32>,
    kept: Array<u32>,
    offsets: Array<u64>,
}

impl Targets {
    /// The targets on a device. `kept` has the ascending ids of each target's set; an empty one
    /// stands for the whole vocabulary.
    ///
    /// # Panics
    /// If `tokens` and `kept` differ in number, or an id is not below `vocabulary`.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn new(gpu: &Gpu, tokens: &[u32], kept: &[&[u32]], vocabulary: usize) -> Result<Self> {
        assert_eq!(tokens.len(), kept.len(), "a set for each token");
        let all: Vec<u32> = kept.concat();
        let mut ids = tokens.iter().chain(&all);
        assert!(ids.all(|&id| (id as usize) < vocabulary), "ids of tokens");
        let ends = kept.iter().scan(0, |end, ids| {
            *end += ids.len() as u64;
            Some(*end)
        });
        let offsets: Vec<u64> = std::iter::once(0).chain(ends).collect();
        Ok(Self {
            vocabulary,
            tokens: gpu.upload(tokens)?,
            kept: gpu.upload(&all)?,
            offsets: gpu.upload(&offsets)?,
        })
    }

    fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The arguments of a kernel: `first`, the targets, `arrays`, and the settings.
    fn arguments(
        &self,
        first: &Array<f32>,
        arrays: &[Argument],
        columns: Columns,
        inv_temperature: f32,
    ) -> Vec<Argument> {
        let targets = [
            first.argument(),
            self.tokens.argument(),
            self.kept.argument(),
            self.offsets.argument(),
        ];
        let settings = [
            Argument::U64(self.vocabulary as u64),
            Argument::U32(columns.count() as u32),
            inv_temperature.into(),
        ];
        [&targets, arrays, &settings].concat()
    }

    /// A block for each target, with a partial sum for each part of a row.
    fn grid(&self) -> Grid {
        let sums = self.vocabulary.div_ceil(SUM_BLOCK).max(THREADS as usize);
        Grid {
            blocks: [self.len() as u32, 1, 1],
            threads: THREADS,
            shared_bytes: size_of::<f64>() + sums * size_of::<f32>(),
        }
    }

    /// Checks that `logits` are `[targets, vocabulary]`.
    fn check(&self, logits: &Array<f32>) -> Result<()> {
        logits.check("the logits", self.len() * self.vocabulary)
    }
}

/// The results of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// Log-probability and entropy within the target's distribution.
    Own,
    /// These, and the log-probability in the whole vocabulary.
    OwnAndWhole,
}

impl Columns {
    /// Number of results of a target.
    pub fn count(self) -> usize {
        match self {
            Self::Own => 2,
            Self::OwnAndWhole => 3,
        }
    }
}

/// The results of each target at an inverse temperature: `[targets, columns]`, from logits
/// `[targets, vocabulary]`.
///
/// # Errors
/// If the logits are not those of the targets, and errors of the device.
pub fn forward(
    logits: &Array<f32>,
    targets: &Targets,
    columns: Columns,
    inv_temperature: f32,
) -> Result<Array<f32>> {
    targets.check(logits)?;
    let out = logits.gpu().array(targets.len() * columns.count())?;
    let arrays = [out.argument()];
    let arguments = targets.arguments(logits, &arrays, columns, inv_temperature);
    let grid = targets.grid();
    // SAFETY: the lengths were checked, and the ids where the targets were made.
    unsafe {
        logits
            .gpu()
            .launch(Kernel::LOGITS_FORWARD, grid, &arguments)?
    };
    Ok(out)
}

/// Replaces the logits by their gradient, given the gradients of the results of [`forward`].
///
/// # Errors
/// Arrays whose lengths do not fit, and errors of the device.
pub fn backward(
    logits: &mut Array<f32>,
    targets: &Targets,
    gradients: &Array<f32>,
    columns: Columns,
    inv_temperature: f32,
) -> Result<()> {
    targets.check(logits)?;
    gradients.check("the gradients of targets", targets.len() * columns.count())?;
    let scratch = logits.gpu().array::<f32>(targets.kept.len())?;
    let arrays = [gradients.argument(), scratch.argument()];
    let arguments = targets.arguments(logits, &arrays, columns, inv_temperature);
    let grid = targets.grid();
    // SAFETY: the lengths were checked, and the ids where the targets were made.
    unsafe {
        logits
            .gpu()
            .launch(Kernel::LOGITS_BACKWARD, grid, &arguments)
    }
}
