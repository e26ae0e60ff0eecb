//! Log-probabilities and entropies of rows of logits, and their gradients, with the host's bits.

pub use crate::arguments::Columns;
use crate::device::array::{Array, Gpu, Slice, SliceMut};
use crate::device::call::Call;
use crate::device::error::Result;
use crate::device::kernel::Kernel;
use crate::device::launcher::Grid;

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

    /// Adds the targets to the arguments of a call.
    fn of<'a>(&self, call: Call<'a>) -> Call<'a> {
        call.read(self.tokens.slice())
            .read(self.kept.slice())
            .read(self.offsets.slice())
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
    fn check(&self, logits: Slice<f32>) -> Result<()> {
        logits.check("the logits", self.len() * self.vocabulary)
    }
}

/// The results of each target at an inverse temperature: `[targets, columns]`, from logits
/// `[targets, vocabulary]`.
///
/// # Errors
/// If the logits are not those of the targets, and errors of the device.
pub fn forward(
    logits: Slice<f32>,
    targets: &Targets,
    columns: Columns,
    inv_temperature: f32,
) -> Result<Array<f32>> {
    targets.check(logits)?;
    let mut out = logits.gpu().array(targets.len() * columns.count())?;
    let call = Call::new(logits.gpu(), Kernel::LOGITS_FORWARD).read(logits);
    let call = targets
        .of(call)
        .write(&mut out.slice_mut())
        .with(targets.vocabulary)
        .with(columns.count() as u32)
        .with(inv_temperature);
    // SAFETY: the lengths were checked, and the ids where the targets were made.
    unsafe { call.run(targets.grid())? };
    Ok(out)
}

/// Replaces the logits by their gradient, given the gradients of the results of [`forward`].
///
/// # Errors
/// Arrays whose lengths do not fit, and errors of the device.
pub fn backward(
    mut logits: SliceMut<f32>,
    targets: &Targets,
    gradients: Slice<f32>,
    columns: Columns,
    inv_temperature: f32,
) -> Result<()> {
    targets.check(logits.as_slice())?;
    gradients.check("the gradients of targets", targets.len() * columns.count())?;
    let mut scratch = logits.gpu().array::<f32>(targets.kept.len())?;
    let call = Call::new(logits.gpu(), Kernel::LOGITS_BACKWARD).write(&mut logits);
    let call = targets
        .of(call)
        .read(gradients)
        .write(&mut scratch.slice_mut())
        .with(targets.vocabulary)
        .with(columns.count() as u32)
        .with(inv_temperature);
    // SAFETY: the lengths were checked, and the ids where the targets were made.
    unsafe { call.run(targets.grid()) }
}
