//! The one forward product: `y = x · Wᵀ`, in training and in decode.
//!
//! Every output element is a single chain of fused multiply-adds over `k` in ascending order, starting from
//! zero. Tiles, panels, threads and the number of rows only choose *which* elements are computed together,
//! never the order inside one, so a row has the same bits alone, in any batch and on any CPU. This is what makes
//! the generator's log-probs equal to the training forward's; the generic `gemm` crate changes its order with the
//! shape. Backward products have no such need and use that crate ([`multiply`]).
//!
//! Weights are packed into panels of [`LANES`] outputs side by side, `panel[p][j] = W[16·i + j][p]`, the layout that
//! the inner loop reads in sequence.

use gemm::Parallelism;
use multiversion::multiversion;
use rayon::prelude::*;

/// Outputs per panel: two AVX2 registers, one AVX-512 register.
pub const LANES: usize = 16;
/// Rows of one register tile: 6 × 16 accumulators fill the AVX2 register file.
const TILE: usize = 6;
/// Rows of one task when the rows are many; a block of `x` this tall stays in the second-level cache.
const ROW_BLOCK: usize = 96;

/// A weight matrix `[n, k]` packed into column panels.
pub struct Panels {
    data: Vec<f32>,
    outputs: usize,
    inputs: usize,
}

impl Panels {
    /// Packs a row-major `[outputs, inputs]` matrix.
    pub fn pack(weight: &[f32], outputs: usize, inputs: usize) -> Self {
        let mut data = vec![0f32; outputs.div_ceil(LANES) * inputs * LANES];
        data.par_chunks_exact_mut((inputs * LANES).max(1))
            .enumerate()
            .for_each(|(i, panel)| {
                let rows = LANES.min(outputs - i * LANES);
                pack_panel(&weight[i * LANES * inputs..], inputs, rows, inputs, panel);
            });
        Self {
            data,
            outputs,
            inputs,
        }
    }

    /// Number of outputs `n`.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs `k`.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    fn panels(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data.chunks_exact((self.inputs * LANES).max(1))
    }
}

/// Packs up to [`LANES`] rows of `k` elements (row stride `stride`) into one panel `[k][LANES]`.
pub(super) fn pack_panel(rows: &[f32], stride: usize, count: usize, k: usize, panel: &mut [f32]) {
    for j in 0..count {
        for (slot, &v) in panel
            .iter_mut()
            .skip(j)
            .step_by(LANES)
            .zip(&rows[j * stride..j * stride + k])
        {
            *slot = v;
        }
    }
}

/// Where a kernel writes: columns `at..at + columns` of a row-major matrix whose rows are `stride` apart.
pub struct Window<'a> {
    data: &'a mut [f32],
    stride: usize,
    at: usize,
    columns: usize,
}

impl<'a> Window<'a> {
    /// `columns` columns from `at` on.
    #[inline(always)]
    pub fn new(data: &'a mut [f32], stride: usize, at: usize, columns: usize) -> Self {
        Self {
            data,
            stride,
            at,
            columns,
        }
    }

    /// The same columns from `row` on.
    #[inline(always)]
    fn below(&mut self, row: usize) -> Window<'_> {
        let data = &mut self.data[row * self.stride..];
        Window::new(data, self.stride, self.at, self.columns)
    }

    /// The window's part of a row.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.stride + self.at..][..self.columns]
    }
}

/// `y[:, at..at+n] = x · Wᵀ`, for `x: [m, k]` and `y: [m, width]`, both row-major.
pub fn product(x: &[f32], panels: &Panels, y: &mut [f32], width: usize, at: usize) {
    let k = panels.inputs;
    if x.len() / k.max(1) <= ROW_BLOCK {
        return few_rows(x, panels, y, width, at);
    }
    y.par_chunks_mut(ROW_BLOCK * width)
        .zip(x.par_chunks(ROW_BLOCK * k))
        .for_each(|(y, x)| {
            for (i, panel) in panels.panels().enumerate() {
                let columns = LANES.min(panels.outputs - i * LANES);
                let window = Window::new(y, width, at + i * LANES, columns);
                panel_product(x, k, panel, window);
            }
        });
}

/// The same for few rows: threads share the panels instead of the rows.
fn few_rows(x: &[f32], panels: &Panels, y: &mut [f32], width: usize, at: usize) {
    let (k, rows) = (panels.inputs, x.len() / panels.inputs.max(1));
    let count = panels.outputs.div_ceil(LANES);
    let mut staged = vec![0f32; count * rows * LANES];
    let work = 2 * rows * k * LANES;
    let least = (1 << 16) / work.max(1) + 1;
    staged
        .par_chunks_exact_mut((rows * LANES).max(1))
        .zip(panels.data.par_chunks_exact((k * LANES).max(1)))
        .with_min_len(least)
        .for_each(|(tile, panel)| {
            panel_product(x, k, panel, Window::new(tile, LANES, 0, LANES));
        });
    for (i, tile) in staged.chunks_exact((rows * LANES).max(1)).enumerate() {
        let (from, columns) = (at + i * LANES, LANES.min(panels.outputs - i * LANES));
        for (row, out) in tile.chunks_exact(LANES).zip(y.chunks_exact_mut(width)) {
            out[from..from + columns].copy_from_slice(&row[..columns]);
        }
    }
}

/// All rows of `x` against one panel.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2+fma", "aarch64+neon"))]
fn panel_product(x: &[f32], k: usize, panel: &[f32], mut y: Window<'_>) {
    let rows = x.len() / k;
    let mut row = 0;
    while row + TILE <= rows {
        put::<TILE>(&x[row * k..], k, panel, y.below(row));
        row += TILE;
    }
    let (x, y) = (&x[row * k..], y.below(row));
    match rows - row {
        1 => put::<1>(x, k, panel, y),
        2 => put::<2>(x, k, panel, y),
        3 => put::<3>(x, k, panel, y),
        4 => put::<4>(x, k, panel, y),
        5 => put::<5>(x, k, panel, y),
        _ => {}
    }
}

#[inline(always)]
fn put<const M: usize>(x: &[f32], k: usize, panel: &[f32], mut y: Window<'_>) {
    let mut acc = [[0f32; LANES]; M];
    chain(x, k, k, panel, &mut acc);
    for (i, row) in acc.iter().enumerate() {
        let out = y.row(i);
        out.copy_from_slice(&row[..out.len()]);
    }
}

/// Continues `M` × [`LANES`] chains: `acc[i][j] += x[i][p] · panel[p][j]` for `p = 0..k` in order, one fused
/// multiply-add each. Rows of `x` are `stride` apart.
#[inline(always)]
pub(super) fn chain<const M: usize>(
    x: &[f32],
    stride: usize,
    k: usize,
    panel: &[f32],
    acc: &mut [[f32; LANES]; M],
) {
    let rows: [&[f32]; M] = std::array::from_fn(|i| &x[i * stride..i * stride + k]);
    let mut local = *acc;
    for (p, b) in panel.as_chunks::<LANES>().0.iter().enumerate().take(k) {
        for i in 0..M {
            let a = rows[i][p];
            for j in 0..LANES {
                local[i][j] = a.mul_add(b[j], local[i][j]);
            }
        }
    }
    *acc = local;
}

/// A view of a row-major matrix inside a slice: `rows × columns`, rows `stride` apart, starting at `at`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A `rows × columns` window whose rows are `stride` elements apart.
    ///
    /// # Panics
    /// If the window reaches past the data: a bug of the caller.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(
            rows == 0 || columns == 0 || (rows - 1) * stride + columns <= data.len(),
            "matrix window out of bounds"
        );
        Self {
            data,
            rows,
            columns,
            row_stride: stride,
            column_stride: 1,
        }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// What a backward product does with what the destination holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Replace it.
    Set,
    /// Add to it.
    Add,
}

/// `c = a · b` or `c += a · b`, rows of `c` being `stride` apart; for backward products only.
///
/// # Panics
/// If the shapes disagree or `c` is too short: a bug of the caller.
pub fn multiply(
    a: Matrix,
    b: Matrix,
    c: &mut [f32],
    stride: usize,
    write: Write,
    parallelism: Parallelism,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "inner sizes of a backward product");
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        (m - 1) * stride + n <= c.len(),
        "destination of a backward product is too short"
    );
    let (alpha, read) = if write == Write::Add {
        (1.0, true)
    } else {
        (0.0, false)
    };
    // SAFETY: `Matrix::new` and the assertion above keep every index that gemm forms inside the three slices, and
    // `c` is borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            stride as isize,
            read,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            alpha,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// All threads of the pool, for a backward product that runs alone.
pub fn all_threads() -> Parallelism {
    Parallelism::Rayon(rayon::current_num_threads())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollout::random::{Key, Purpose};

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let key = Key::new(seed, Purpose::Init);
        (0..n as u64)
            .map(|i| (key.uniform(i, 0) - 0.5) as f32)
            .collect()
    }

    /// The definition: one chain of fused multiply-adds an element.
    fn oracle(x: &[f32], w: &[f32], n: usize, k: usize) -> Vec<f32> {
        x.chunks_exact(k)
            .flat_map(|row| {
                (0..n).map(move |j| {
                    row.iter()
                        .zip(&w[j * k..])
                        .fold(0f32, |acc, (a, b)| a.mul_add(*b, acc))
                })
            })
            .collect()
    }

    #[test]
    fn every_row_count_has_the_bits_of_the_definition() {
        for (n, k) in [(1, 5), (16, 32), (40, 33), (100, 192)] {
            let w = numbers(n * k, 1);
            let panels = Panels::pack(&w, n, k);
            for m in [1, 2, 5, 6, 7, 13, 96, 97, 250] {
                let x = numbers(m * k, 2);
                let mut y = vec![f32::NAN; m * n];
                product(&x, &panels, &mut y, n, 0);
                assert_eq!(y, oracle(&x, &w, n, k), "m={m} n={n} k={k}");
            }
        }
    }

    #[test]
    fn backward_product_adds_to_a_strided_window() {
        let (m, n, k) = (5, 7, 9);
        let (a, b) = (numbers(m * k, 3), numbers(n * k, 4));
        let mut c = vec![1f32; m * 10];
        let at = Matrix::new(&a, m, k, k);
        multiply(
            at,
            Matrix::new(&b, n, k, k).t(),
            &mut c[2..],
            10,
            Write::Add,
            Parallelism::None,
        );
        let expected = oracle(&a, &b, n, k);
        for i in 0..m {
            for j in 0..n {
                assert!((c[i * 10 + 2 + j] - 1.0 - expected[i * n + j]).abs() < 1e-5);
            }
            assert_eq!(c[i * 10], 1.0);
        }
    }
}
