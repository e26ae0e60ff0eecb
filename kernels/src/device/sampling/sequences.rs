//! Sequences whose tokens are drawn for several steps without a word from the host.

use crate::device::array::{Array, Gpu, Slice, SliceMut};
use crate::device::call::Call;
use crate::device::error::Result;
use crate::device::kernel::Kernel;
use crate::device::launcher::Grid;

use super::{DrawBatch, Draws, RowDraw, draw};

/// Words of a `DrawnSequence`.
const SEQUENCE: usize = 4;

/// The lengths of a sequence, in generated tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceLimits {
    /// Tokens generated so far.
    pub generated: u32,
    /// Until so many are generated, the draw's suppressed ids are.
    pub least: u32,
    /// The number at which the sequence ends.
    pub most: u32,
}

/// Whether and why a sequence has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceStatus {
    /// The sequence continues.
    Running,
    /// A stop id was drawn.
    Stopped,
    /// The sequence has as many tokens as it may have.
    Full,
    /// A row gave no token; the draw of the step has the fault.
    Faulty,
}

/// Sequences that advance by one token a step. Stop ids, limits, the end of suppression and the
/// indices of random numbers are kept on the device.
///
/// The row of a sequence that has ended is still drawn from, and the result means nothing.
pub struct DrawnSequences {
    batch: DrawBatch,
    /// `[sequences, SEQUENCE]`
    sequences: Array<u32>,
    stops: Array<u32>,
}

impl DrawnSequences {
    /// Sequences on a device, whose tokens come from logits `[rows, vocabulary]`. After each token
    /// the second index of a keyed random number is one more; a [`super::Uniform::Number`] stays.
    /// Drawing one of the `stops` ends a sequence.
    ///
    /// # Panics
    /// If draws and limits differ in number, or a row is not below `rows`.
    ///
    /// # Errors
    /// Errors of [`DrawBatch::new`].
    pub fn new(
        gpu: &Gpu,
        draws: &[RowDraw],
        limits: &[SequenceLimits],
        stops: &[u32],
        [rows, vocabulary]: [usize; 2],
    ) -> Result<Self> {
        assert_eq!(draws.len(), limits.len(), "limits of each sequence");
        let words = |limits: &SequenceLimits| [limits.generated, limits.least, limits.most, 0];
        let sequences: Vec<u32> = limits.iter().flat_map(words).collect();
        Ok(Self {
            batch: DrawBatch::new(gpu, draws, rows, vocabulary)?,
            sequences: gpu.upload(&sequences)?,
            stops: gpu.upload(stops)?,
        })
    }

    /// Draws a token for each sequence, and writes it to `next_ids`, `[sequences]`, where the
    /// sequence has not ended.
    ///
    /// # Errors
    /// Arrays whose lengths do not fit, and errors of the device.
    pub fn step(&mut self, logits: Slice<f32>, mut next_ids: SliceMut<u32>) -> Result<Draws> {
        let count = self.batch.draws;
        next_ids.as_slice().check("the next ids", count)?;
        let draws = draw(logits, &self.batch)?;
        let call = Call::new(logits.gpu(), Kernel::SAMPLE_ADVANCE)
            .read(draws.records.slice())
            .write(&mut self.batch.settings.slice_mut())
            .write(&mut self.sequences.slice_mut())
            .read(self.stops.slice())
            .write(&mut next_ids)
            .with(count)
            .with(self.stops.len());
        // SAFETY: the records, settings, sequences and ids are those of as many draws.
        unsafe { call.run(Grid::over(count as u64))? };
        Ok(draws)
    }

    /// The number of generated tokens and the status of each sequence.
    ///
    /// # Errors
    /// Errors of the device, and of the kernels before.
    pub fn download(&self) -> Result<Vec<(u32, SequenceStatus)>> {
        let words = self.sequences.download()?;
        let sequences = words.chunks(SEQUENCE);
        let status = |word| match word {
            0 => SequenceStatus::Running,
            1 => SequenceStatus::Stopped,
            2 => SequenceStatus::Full,
            _ => SequenceStatus::Faulty,
        };
        Ok(sequences
            .map(|words| (words[0], status(words[3])))
            .collect())
    }
}
