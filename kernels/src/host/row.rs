//! One row of logits: maximum, softmax, log-probability and entropy.
//!
//! The sampler and the training forward both call these functions, and so a sampled token's
//! log-probability is the training forward's bit for bit. To make that hold wherever it runs, the
//! arithmetic is fixed: every sum goes through [`LANES`] partial sums in one order, every
//! multiply-add is an explicit fused one, and the compiler may vectorise but not reorder. The
//! functions are compiled for several instruction sets and the best one is picked at run time; all
//! of them give the same bits.
//!
//! A row is taken at an inverse temperature t > 0: its scores are zᵢ = xᵢ·t, and t = 1 changes no
//! bit. Logits of −∞ are impossible tokens. A row with a NaN, with +∞ or with nothing but −∞ gives
//! a sum that is not finite: ask [`RowStats::is_finite`].
//!
//! Not here: the gradient (the engine's), filters and draws (`sampling`).

use std::ops::Range;

use multiversion::multiversion;

/// Width of the fixed partial sums: element i of a block is added into lane i mod 16.
pub const LANES: usize = 16;

/// Elements that are summed in f32 before the partial sum joins an f64 total.
pub const BLOCK: usize = 256;

/// Maximum and sum of a row's softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowStats {
    /// max zᵢ
    pub max: f32,
    /// Σ exp(zᵢ − max)
    pub sum: f32,
}

impl RowStats {
    /// Whether the row has a finite softmax; false for an empty row.
    pub fn is_finite(&self) -> bool {
        self.sum.is_finite() && self.sum > 0.0
    }

    /// log Σ exp zᵢ
    pub fn log_sum_exp(&self) -> f32 {
        self.max + ln(self.sum)
    }
}

/// Defines public functions compiled for each instruction set that we care about, and for the plain
/// target.
///
/// A kernel must be inlined into them whole, or its multiply-adds are library calls, forty times
/// slower: hence `inline(always)` all the way down, and loops in place of iterators' `fold`.
macro_rules! dispatched {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? = $body:ident;
    )*) => {$(
        $(#[$meta])*
        #[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma"))]
        $vis fn $name($($arg: $type),*) $(-> $ret)? {
            $body($($arg),*)
        }
    )*};
}

dispatched! {
    /// The largest element, NaN ignored; −∞ for an empty row.
    pub fn max(row: &[f32]) -> f32 = max_kernel;

    /// Maximum and normaliser of a row of logits, `[vocab]`.
    pub fn stats(row: &[f32], inv_temperature: f32) -> RowStats = stats_kernel;

    /// Σ exp(zᵢ − max) over each run of [`BLOCK`] elements; `sums` has one place for each. Their
    /// f64 sum in order is the row's.
    pub fn block_sums(row: &[f32], inv_temperature: f32, max: f32, sums: &mut [f32])
        = block_sums_kernel;

    /// Entropy −Σ pᵢ log pᵢ, in nats, of the row that `stats` describes.
    pub fn entropy(row: &[f32], inv_temperature: f32, stats: &RowStats) -> f32 = entropy_kernel;

    /// Probabilities exp(zᵢ − max)/sum into `out`, as long as the row.
    pub fn softmax(row: &[f32], inv_temperature: f32, stats: &RowStats, out: &mut [f32])
        = softmax_kernel;

    /// exp(zᵢ − max) into `out`, as long as the row.
    pub fn weights(row: &[f32], inv_temperature: f32, max: f32, out: &mut [f32]) = weights_kernel;

    /// Replaces the row by exp(zᵢ − max) and returns its [`stats`], bit for bit.
    pub fn weights_in_place(row: &mut [f32], inv_temperature: f32) -> RowStats
        = weights_in_place_kernel;

    /// Replaces each element by its exponential.
    pub fn exp_slice(xs: &mut [f32]) = exp_slice_kernel;
}

/// log p of one token of the row that `stats` describes.
///
/// With the statistics of a kept set ([`gather`]) and the whole row it is the log-probability
/// within that set.
///
/// # Panics
/// If `token` lies outside the row.
pub fn log_prob(row: &[f32], inv_temperature: f32, stats: &RowStats, token: u32) -> f32 {
    row[token as usize].mul_add(inv_temperature, -stats.max) - ln(stats.sum)
}

/// The logits of a kept set, in the order of its ids, which must ascend: a row for the functions
/// above that knows those tokens alone.
///
/// # Panics
/// If an id lies outside the row.
pub fn gather(row: &[f32], kept: &[u32]) -> Vec<f32> {
    let mut gathered = Vec::with_capacity(kept.len());
    runs(kept).for_each(|(ids, _)| gathered.extend_from_slice(&row[ids]));
    gathered
}

/// The places of a kept set's ids in the whole row, and in the set: run by run of neighbours, of
/// which a set that lacks a stop token alone has two.
///
/// The ids must ascend.
pub fn runs(kept: &[u32]) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
    let mut start = 0;
    std::iter::from_fn(move || {
        let first = *kept.get(start)? as usize;
        let length = run_length(&kept[start..]);
        let within = start..start + length;
        start += length;
        Some((first..first + length, within))
    })
}

/// Length of the run of consecutive ids at the start. Ids ascend, so the ids up to index `i` are
/// consecutive if `ids[i]` is `ids[0] + i`.
fn run_length(ids: &[u32]) -> usize {
    let joined = |i: usize| ids[i] as usize == ids[0] as usize + i;
    let mut reach = 1;
    while reach < ids.len() && joined(reach) {
        reach *= 2;
    }
    // The last that is known to be joined lies at half the reach.
    let (mut low, mut high) = (reach / 2, reach.min(ids.len()));
    while low + 1 < high {
        let middle = (low + high) / 2;
        match joined(middle) {
            true => low = middle,
            false => high = middle,
        }
    }
    low + 1
}

/// Natural logarithm, rounded once from double precision.
fn ln(x: f32) -> f32 {
    f64::from(x).ln() as f32
}

/// eˣ to 2 ulp; 0 below −87.33 (no denormals), +∞ above 88.72, NaN for NaN.
///
/// Branch-free, hence a loop over it vectorises where it is inlined into code compiled for a vector
/// instruction set. x = n·ln 2 + r with |r| ≤ ln 2 / 2, then eʳ ≈ 1 + r + r²·q(r), where q is the
/// degree-4 minimax fit (Remez) of the relative error, which is 3.1e-9.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.336_54; // ln of the smallest normal number
    const HIGHEST: f32 = 88.722_83; // ln of the largest finite number
    // 1.5·2²³: adding it leaves the nearest integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = std::f32::consts::LN_2;
    const LN_2_LOW: f32 = -1.904_654_3e-9; // ln 2 − LN_2_HIGH
    const Q: [f32; 5] = [
        0.499_999_94,
        0.166_665_21,
        0.041_668_39,
        0.008_368_716,
        0.001_381_460_2,
    ];
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let q = Q[4].mul_add(r, Q[3]);
    let q = q.mul_add(r, Q[2]).mul_add(r, Q[1]).mul_add(r, Q[0]);
    let mantissa = q.mul_add(r * r, r) + 1.0;
    // n's two's complement, moved into the exponent field, multiplies by 2ⁿ.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) << 23;
    let y = f32::from_bits(mantissa.to_bits().wrapping_add(exponent));
    let y = if x < LOWEST { 0.0 } else { y };
    if x <= HIGHEST { y } else { x + f32::INFINITY } // ∞ above, NaN for NaN
}

#[inline(always)]
fn max_kernel(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    // Written as a comparison, which is one instruction; `f32::max` takes three.
    let most = |most, x| if x > most { x } else { most };
    fold_lanes(row, &mut lanes, most);
    fold_halves(lanes, most)
}

#[inline(always)]
fn stats_kernel(row: &[f32], inv_temperature: f32) -> RowStats {
    let max = max_kernel(row) * inv_temperature;
    let mut sum = 0.0;
    for block in row.chunks(BLOCK) {
        sum += f64::from(block_sum(block, inv_temperature, max));
    }
    RowStats {
        max,
        sum: sum as f32,
    }
}

#[inline(always)]
fn weights_in_place_kernel(row: &mut [f32], inv_temperature: f32) -> RowStats {
    let max = max_kernel(row) * inv_temperature;
    let mut sum = 0.0;
    for block in row.chunks_mut(BLOCK) {
        weigh(block, inv_temperature, max);
        let mut lanes = [0.0; LANES];
        fold_lanes(block, &mut lanes, |sum, weight| sum + weight);
        sum += f64::from(sum_lanes(lanes));
    }
    RowStats {
        max,
        sum: sum as f32,
    }
}

#[inline(always)]
fn weigh(block: &mut [f32], inv_temperature: f32, max: f32) {
    // One loop over all would be unrolled so far that a short row is all remainder.
    let (whole, rest) = block.as_chunks_mut::<LANES>();
    for chunk in whole {
        for x in chunk {
            *x = exp(x.mul_add(inv_temperature, -max));
        }
    }
    for x in rest {
        *x = exp(x.mul_add(inv_temperature, -max));
    }
}

#[inline(always)]
fn block_sums_kernel(row: &[f32], inv_temperature: f32, max: f32, sums: &mut [f32]) {
    for (sum, block) in sums.iter_mut().zip(row.chunks(BLOCK)) {
        *sum = block_sum(block, inv_temperature, max);
    }
}

#[inline(always)]
fn block_sum(block: &[f32], inv_temperature: f32, max: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    fold_lanes(block, &mut lanes, |sum, x| {
        sum + exp(x.mul_add(inv_temperature, -max))
    });
    sum_lanes(lanes)
}

#[inline(always)]
fn entropy_kernel(row: &[f32], inv_temperature: f32, stats: &RowStats) -> f32 {
    // Below this the weight is 0; the bound keeps 0·(−∞) out of the sum.
    const LEAST: f32 = -88.0;
    let mut moment = 0.0f64;
    for block in row.chunks(BLOCK) {
        let mut lanes = [0.0; LANES];
        fold_lanes(block, &mut lanes, |sum, x| {
            let distance = x.mul_add(inv_temperature, -stats.max);
            let distance = if distance < LEAST { LEAST } else { distance };
            exp(distance).mul_add(distance, sum)
        });
        moment += f64::from(sum_lanes(lanes));
    }
    // H = log Σe^z − Σ p z, with z counted from the maximum.
    let sum = f64::from(stats.sum);
    (sum.ln() - moment / sum) as f32
}

#[inline(always)]
fn softmax_kernel(row: &[f32], inv_temperature: f32, stats: &RowStats, out: &mut [f32]) {
    let scale = 1.0 / stats.sum;
    for (p, &x) in out.iter_mut().zip(row) {
        *p = exp(x.mul_add(inv_temperature, -stats.max)) * scale;
    }
}

#[inline(always)]
fn weights_kernel(row: &[f32], inv_temperature: f32, max: f32, out: &mut [f32]) {
    for (weight, &x) in out.iter_mut().zip(row) {
        *weight = exp(x.mul_add(inv_temperature, -max));
    }
}

#[inline(always)]
fn exp_slice_kernel(xs: &mut [f32]) {
    for x in xs {
        *x = exp(*x);
    }
}

/// Folds element i of `xs` into lane i mod 16.
#[inline(always)]
fn fold_lanes(xs: &[f32], lanes: &mut [f32; LANES], step: impl Fn(f32, f32) -> f32) {
    let (whole, rest) = xs.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, x);
    }
}

#[inline(always)]
fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    fold_halves(lanes, |a, b| a + b)
}

/// The lanes as a balanced tree: i with i + 8, then + 4, + 2, + 1.
#[inline(always)]
fn fold_halves(mut lanes: [f32; LANES], step: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = step(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels compiled for the plain target, where a fused multiply-add is a library call,
    /// against the vectorised ones.
    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let row: Vec<f32> = (0..1003u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 * 2e-6 - 16.0)
            .collect();
        for inv_temperature in [1.0, 0.7, 1.9] {
            let plain = stats_kernel(&row, inv_temperature);
            let stats = stats(&row, inv_temperature);
            assert_eq!(stats, plain);
            let found = entropy(&row, inv_temperature, &stats);
            let expected = entropy_kernel(&row, inv_temperature, &plain);
            assert_eq!(found.to_bits(), expected.to_bits());
            let (mut found, mut expected) = (row.clone(), row.clone());
            softmax(&row, inv_temperature, &stats, &mut found);
            softmax_kernel(&row, inv_temperature, &plain, &mut expected);
            assert_eq!(found, expected);
            let (mut found, mut expected) = (row.clone(), row.clone());
            weights(&row, inv_temperature, stats.max, &mut expected);
            assert_eq!(weights_in_place(&mut found, inv_temperature), stats);
            assert_eq!(found, expected);
        }
    }
}
