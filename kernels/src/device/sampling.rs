//! Draws of tokens from rows of logits, with the host's bits (`rollout::draw_row`).
//!
//! Bytes between host and device of one step of `n` draws: 64·n up, and 4 for each suppressed id;
//! 24·n down. Where draws cut their distributions, the kept sets follow in a second download: 4
//! bytes for each kept id or for each other id, whichever are fewer, after 8·(n + 1) bytes up.

mod batch;
mod sequences;

use crate::device::array::{Array, Slice};
use crate::device::call::Call;
use crate::device::error::Result;
use crate::device::kernel::Kernel;
use crate::device::launcher::Grid;

pub use batch::{Choice, DrawBatch, Filters, RowDraw, Uniform};
pub use sequences::{DrawnSequences, SequenceLimits, SequenceStatus};

/// Threads of a block, as in `distribution.cuh`.
const THREADS: u32 = 256;
/// Threads of a block of `sample_cut` for a large vocabulary.
const CUT_THREADS: u32 = 1024;
/// Logits that are summed in single precision, as in `distribution.cuh`.
const SUM_BLOCK: usize = 256;
/// Logits that a block of threads reads, as in `sampling.cuh`.
const PART: usize = 4096;
/// Words of `Extremes`.
const EXTREMES: usize = 4;
/// Words of `DrawRecord`.
const RECORD: usize = 6;
/// Bytes of `DrawMemory`.
const DRAW_BYTES: usize = 1064;
/// Bytes of `Selection` and of a sum.
const CUT_BYTES: usize = 2088 + size_of::<f64>();

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawnToken {
    /// The token's id.
    pub token: u32,
    /// The token's log-probability in the distribution it was drawn from.
    pub log_prob: f32,
    /// The token's log-probability over the whole vocabulary at the same temperature.
    pub whole_log_prob: f32,
    /// Entropy of the distribution it was drawn from, in nats.
    pub entropy: f32,
    /// The ids that could have been drawn, ascending, where that is not the whole vocabulary.
    pub kept: Option<Vec<u32>>,
}

/// A fault of a row of logits, which gives no token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LogitsFault {
    /// NaN or +∞.
    NotANumber {
        /// The first such token.
        token: usize,
        /// The logit of the token.
        value: f32,
    },
    /// −∞ for each token that is not suppressed.
    Empty,
}

/// The results of draws, on the device.
pub struct Draws {
    vocabulary: usize,
    /// `[draws, RECORD]`
    records: Array<u32>,
    /// The kept sets, where distributions may be cut.
    kept: Option<KeptBits>,
}

/// The kept set of each draw. Those of a draw that does not cut are undefined.
struct KeptBits {
    /// A bit for each token, `[draws, words]`.
    bits: Array<u32>,
    /// Kept tokens of each part, `[draws, parts]`.
    counts: Array<u32>,
}

/// Arrays that describe the kept sets; entries of draws that do not cut are undefined.
struct KeptRows {
    bits: KeptBits,
    /// Kept ids in ascending order, `[draws, vocabulary]`, undefined behind the last.
    ids: Array<u32>,
    /// Sums over the kept ids, `[draws, 2, sums]`.
    sums: Array<f32>,
}

/// Statistics of the rows of a step before draws cut them.
struct RowSums {
    /// The largest logits of each part, `[draws, parts, EXTREMES]`.
    extremes: Array<u32>,
    /// The largest logit that each thread has read, `[draws, parts, THREADS]`.
    maxima: Array<f32>,
    /// Sums over the whole rows, `[draws, 2, sums]`.
    sums: Array<f32>,
}

/// Draws a token for each request from logits `[rows, vocabulary]`.
///
/// # Errors
/// If the logits are not those of the batch, and errors of the device.
pub fn draw(logits: Slice<f32>, batch: &DrawBatch) -> Result<Draws> {
    logits.check("the logits", batch.rows * batch.vocabulary)?;
    let rows = batch.row_sums(logits)?;
    let kept = batch.cuts.then(|| batch.cut(logits, &rows)).transpose()?;
    let mut records = logits.gpu().array(batch.draws * RECORD)?;
    let sets = kept.as_ref();
    let call = batch
        .call(Kernel::SAMPLE_DRAW, logits)
        .read(rows.extremes.slice())
        .read(rows.sums.slice())
        .read_or_null(sets.map(|kept| kept.ids.slice()))
        .read_or_null(sets.map(|kept| kept.bits.counts.slice()))
        .read_or_null(sets.map(|kept| kept.sums.slice()))
        .write(&mut records.slice_mut())
        .with(batch.vocabulary)
        .with(batch.parts() as u32);
    // SAFETY: the lengths are those that the fields' comments state; the batch checked the rows,
    // and has kept sets if any draw cuts.
    unsafe { call.run(batch.grid_of_draws(THREADS, DRAW_BYTES))? };
    Ok(Draws {
        vocabulary: batch.vocabulary,
        records,
        kept: kept.map(|kept| kept.bits),
    })
}

/// A block for each part of each draw's row.
fn grid_of_parts(vocabulary: usize, draws: usize, shared_bytes: usize) -> Grid {
    Grid {
        blocks: [vocabulary.div_ceil(PART) as u32, draws as u32, 1],
        threads: THREADS,
        shared_bytes,
    }
}

impl DrawBatch {
    /// Parts of a row.
    fn parts(&self) -> usize {
        self.vocabulary.div_ceil(PART)
    }

    /// Sums over blocks of a row.
    fn sums(&self) -> usize {
        self.vocabulary.div_ceil(SUM_BLOCK)
    }

    /// A block for each part of each draw's row.
    fn grid_of_parts(&self, shared_bytes: usize) -> Grid {
        grid_of_parts(self.vocabulary, self.draws, shared_bytes)
    }

    /// A block for each draw, with shared memory for the sums of its row.
    fn grid_of_draws(&self, threads: u32, bytes: usize) -> Grid {
        Grid {
            blocks: [self.draws as u32, 1, 1],
            threads,
            shared_bytes: bytes + self.sums() * size_of::<f32>(),
        }
    }

    /// A call whose first arguments are the logits and the settings.
    fn call<'a>(&self, kernel: Kernel, logits: Slice<'a, f32>) -> Call<'a> {
        Call::new(logits.gpu(), kernel)
            .read(logits)
            .read(self.settings.slice())
    }

    fn row_sums(&self, logits: Slice<f32>) -> Result<RowSums> {
        let (gpu, parts) = (logits.gpu(), self.draws * self.parts());
        let mut rows = RowSums {
            extremes: gpu.array(parts * EXTREMES)?,
            maxima: gpu.array(parts * THREADS as usize)?,
            sums: gpu.array(2 * self.draws * self.sums())?,
        };
        let call = self
            .call(Kernel::SAMPLE_EXTREMES, logits)
            .read(self.suppressed.slice())
            .write(&mut rows.extremes.slice_mut())
            .write(&mut rows.maxima.slice_mut())
            .with(self.vocabulary);
        let grid = self.grid_of_parts(THREADS as usize * EXTREMES * size_of::<u32>());
        // SAFETY: the caller checked the logits, and the batch its rows and suppressed ids.
        unsafe { call.run(grid)? };
        let call = self
            .call(Kernel::SAMPLE_SUMS, logits)
            .read(rows.extremes.slice())
            .read_or_null::<u32>(None)
            .read_or_null::<u32>(None)
            .write(&mut rows.sums.slice_mut())
            .with(self.vocabulary);
        // SAFETY: as above.
        unsafe { call.run(self.grid_of_parts(0))? };
        Ok(rows)
    }

    /// The kept sets, and sums over them.
    fn cut(&self, logits: Slice<f32>, rows: &RowSums) -> Result<KeptRows> {
        let gpu = logits.gpu();
        let mut ids = gpu.array(self.draws * self.vocabulary)?;
        let bits = self.mark(logits, rows, &mut ids)?;
        let call = Call::new(gpu, Kernel::SAMPLE_LIST)
            .read(self.settings.slice())
            .read(bits.bits.slice())
            .read(bits.counts.slice())
            .read_or_null::<u64>(None)
            .write(&mut ids.slice_mut())
            .with(self.vocabulary);
        // SAFETY: the lengths are those that the fields' comments state.
        unsafe { call.run(self.grid_of_parts(0))? };
        let mut sums = gpu.array(2 * self.draws * self.sums())?;
        let call = self
            .call(Kernel::SAMPLE_SUMS, logits)
            .read(rows.extremes.slice())
            .read(ids.slice())
            .read(bits.counts.slice())
            .write(&mut sums.slice_mut())
            .with(self.vocabulary);
        // SAFETY: as above.
        unsafe { call.run(self.grid_of_parts(0))? };
        Ok(KeptRows { bits, ids, sums })
    }

    /// Marks the kept tokens. `ids`, `[draws, vocabulary]`, serve as memory.
    fn mark(&self, logits: Slice<f32>, rows: &RowSums, ids: &mut Array<u32>) -> Result<KeptBits> {
        let gpu = logits.gpu();
        let mut leasts = gpu.array::<f32>(self.draws)?;
        let mut keys = gpu.array::<u64>(self.draws)?;
        let call = self
            .call(Kernel::SAMPLE_CUT, logits)
            .read(self.suppressed.slice())
            .read(rows.extremes.slice())
            .read(rows.maxima.slice())
            .read(rows.sums.slice())
            .write(&mut ids.slice_mut())
            .write(&mut leasts.slice_mut())
            .write(&mut keys.slice_mut())
            .with(self.vocabulary)
            .with(self.parts() as u32);
        let threads = match self.parts() {
            0..8 => THREADS,
            _ => CUT_THREADS,
        };
        // SAFETY: the lengths are those that the fields' comments state.
        unsafe { call.run(self.grid_of_draws(threads, CUT_BYTES))? };
        let mut bits = KeptBits {
            bits: gpu.array(self.draws * self.vocabulary.div_ceil(32))?,
            counts: gpu.array(self.draws * self.parts())?,
        };
        let call = self
            .call(Kernel::SAMPLE_KEEP, logits)
            .read(self.suppressed.slice())
            .read(rows.extremes.slice())
            .read(leasts.slice())
            .read(keys.slice())
            .write(&mut bits.bits.slice_mut())
            .write(&mut bits.counts.slice_mut())
            .with(self.vocabulary);
        // SAFETY: as above; a word of shared memory for each warp.
        unsafe { call.run(self.grid_of_parts(THREADS as usize / 32 * size_of::<u32>()))? };
        Ok(bits)
    }
}

/// The words of a `DrawRecord`.
struct Record<'a>(&'a [u32]);

impl Record<'_> {
    fn number(&self, word: usize) -> f32 {
        f32::from_bits(self.0[word])
    }

    fn fault(&self) -> Option<LogitsFault> {
        match self.0[5] {
            0 => None,
            1 => Some(LogitsFault::NotANumber {
                token: self.0[0] as usize,
                value: self.number(1),
            }),
            _ => Some(LogitsFault::Empty),
        }
    }

    fn kept(&self) -> usize {
        self.0[4] as usize
    }

    /// Number of ids by which the kept set is downloaded.
    fn listed(&self, vocabulary: usize) -> usize {
        match self.fault() {
            None => self.kept().min(vocabulary - self.kept()),
            Some(_) => 0,
        }
    }
}

impl Draws {
    /// The results of the draws, on the host.
    ///
    /// # Errors
    /// Errors of the device, and of the kernels before.
    pub fn download(&self) -> Result<Vec<std::result::Result<DrawnToken, LogitsFault>>> {
        let vocabulary = self.vocabulary;
        let words = self.records.download()?;
        let records: Vec<Record> = words.chunks(RECORD).map(Record).collect();
        let ends = records.iter().scan(0, |end, record| {
            *end += record.listed(vocabulary);
            Some(*end as u64)
        });
        let offsets: Vec<u64> = std::iter::once(0).chain(ends).collect();
        let listed = self.listed(&offsets)?;
        let ranges = offsets.windows(2).map(|w| w[0] as usize..w[1] as usize);
        let results = records.iter().zip(ranges);
        Ok(results
            .map(|(record, range)| record.result(&listed[range], vocabulary))
            .collect())
    }

    /// The ids by which the kept sets are downloaded.
    fn listed(&self, offsets: &[u64]) -> Result<Vec<u32>> {
        let total = offsets.last().map_or(0, |&end| end as usize);
        let Some(kept) = self.kept.as_ref().filter(|_| total > 0) else {
            return Ok(Vec::new());
        };
        let gpu = self.records.gpu();
        let (ends, mut ids) = (gpu.upload(offsets)?, gpu.array(total)?);
        let call = Call::new(gpu, Kernel::SAMPLE_LIST)
            .read_or_null::<u32>(None)
            .read(kept.bits.slice())
            .read(kept.counts.slice())
            .read(ends.slice())
            .write(&mut ids.slice_mut())
            .with(self.vocabulary);
        let grid = grid_of_parts(self.vocabulary, offsets.len() - 1, 0);
        // SAFETY: a draw has as many listed ids between its offsets as its counts say, and `ids`
        // holds them all.
        unsafe { call.run(grid)? };
        ids.download()
    }
}

impl Record<'_> {
    fn result(
        &self,
        listed: &[u32],
        vocabulary: usize,
    ) -> std::result::Result<DrawnToken, LogitsFault> {
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        let kept = match self.kept() {
            all if all == vocabulary => None,
            few if few <= vocabulary / 2 => Some(listed.to_vec()),
            _ => Some(others(listed, vocabulary)),
        };
        Ok(DrawnToken {
            token: self.0[0],
            log_prob: self.number(1),
            whole_log_prob: self.number(2),
            entropy: self.number(3),
            kept,
        })
    }
}

/// The ids of a vocabulary that are not among `ids`, which ascend.
fn others(ids: &[u32], vocabulary: usize) -> Vec<u32> {
    let starts = std::iter::once(0).chain(ids.iter().map(|id| id + 1));
    let ends = ids.iter().copied().chain([vocabulary as u32]);
    starts
        .zip(ends)
        .flat_map(|(start, end)| start..end)
        .collect()
}
