//! The matrix unit's jobs in AVX-512 instructions, for processors without the unit: slow, and with
//! the unit's bits (but for subnormal numbers, which the unit reads and writes as 0).
//!
//! It lets the tests of tiles run on any processor with AVX-512, from splitting to writing the
//! destination; only the instructions of the unit itself are left out.

use std::arch::x86_64::{
    _mm512_add_ps, _mm512_and_si512, _mm512_castsi512_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
    _mm512_storeu_ps,
};

use super::super::lanes::{LANES, Line};
use super::super::parts::{BLOCK, TILE};
use super::unit::{TILES, TileJob, TileShape};

/// Tiles of a block that are multiplied, in the unit's order: low parts are tile 0, high parts tile
/// 2.
const PAIRS: [[usize; 2]; 6] = [[2, 0], [2, 1], [1, 1], [1, 2], [0, 2], [2, 2]];
/// Upper half of a lane: the second input of a pair.
const UPPER: u32 = 0xffff_0000;

impl TileJob {
    /// [`TileJob::run`] without the unit.
    ///
    /// # Safety
    /// The processor must have AVX-512 (F and BW), and the pointers must be valid for tiles of
    /// `chunks` blocks.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn emulate(&self, shape: TileShape, rows: usize) {
        for tile in 0..TILES {
            let (a, b) = match shape {
                TileShape::Square => (self.a[tile / 2], self.b[tile % 2]),
                TileShape::Row => (self.a[0], self.b[tile]),
            };
            for row in 0..rows {
                let at = self.c[tile].wrapping_byte_add(row * self.stride[tile]);
                // SAFETY: the caller keeps this function's contract.
                unsafe { self.emulate_row(a, b, row, at) };
            }
        }
    }

    /// Sixteen elements of one row of a tile, at `c`.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn emulate_row(&self, a: *const Line, b: *const Line, row: usize, c: *mut f32) {
        let upper = _mm512_set1_epi32(UPPER as i32);
        // SAFETY: each chunk is a block of three tiles of sixteen lines, on both sides.
        unsafe {
            let mut sum = match self.adds() {
                true => _mm512_loadu_ps(c),
                false => _mm512_setzero_ps(),
            };
            for chunk in 0..self.chunks {
                let (a, b) = (a.add(chunk * BLOCK), b.add(chunk * BLOCK));
                for [left, right] in PAIRS {
                    let (a, b) = (a.add(left * TILE + row), b.add(right * TILE));
                    let (mut even, mut odd) = (_mm512_setzero_ps(), _mm512_setzero_ps());
                    for pair in 0..LANES {
                        let inputs = a.cast::<u32>().add(pair).read();
                        let [first, second] = [inputs << 16, inputs & UPPER]
                            .map(|x| _mm512_set1_ps(f32::from_bits(x)));
                        let weights = _mm512_loadu_si512(b.add(pair).cast());
                        let of_first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(weights));
                        let of_second = _mm512_castsi512_ps(_mm512_and_si512(weights, upper));
                        even = _mm512_fmadd_ps(first, of_first, even);
                        odd = _mm512_fmadd_ps(second, of_second, odd);
                    }
                    sum = _mm512_add_ps(sum, _mm512_add_ps(even, odd));
                }
            }
            _mm512_storeu_ps(c, sum);
        }
    }
}
