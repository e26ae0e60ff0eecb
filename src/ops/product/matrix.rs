//! Views of matrices inside slices, and panels: the layout that the kernel reads in sequence.

use super::Threads;
use super::lanes::{LANES, Line};
use super::pack::pack;
use crate::ops::pool;

/// A view of a matrix inside a slice; one of its strides is 1.
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

    /// `count` rows from `first` on.
    ///
    /// # Panics
    /// If there are fewer: a bug of the caller.
    pub fn rows(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows, "rows of a matrix out of bounds");
        let empty = count == 0 || self.columns == 0;
        Self {
            data: if empty {
                &[]
            } else {
                &self.data[first * self.row_stride..]
            },
            rows: count,
            ..self
        }
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.columns
    }

    /// The elements from the first on.
    pub(super) fn data(&self) -> &'a [f32] {
        self.data
    }

    /// Distance of neighbours in a column, and in a row.
    pub(super) fn strides(&self) -> [usize; 2] {
        [self.row_stride, self.column_stride]
    }
}

/// A weight matrix `[outputs, inputs]` in panels: sixteen outputs side by side, `panel[p][j] = W[16·i + j][p]`.
pub struct Panels {
    data: Vec<Line>,
    outputs: usize,
    inputs: usize,
}

impl Panels {
    /// Packs a row-major `[outputs, inputs]` matrix.
    pub fn pack(weight: &[f32], outputs: usize, inputs: usize) -> Self {
        let mut data = Vec::new();
        let rows = Matrix::new(weight, outputs, inputs, inputs);
        pack_all(rows, &mut data, Threads::All);
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

    /// Panel after panel, each of `inputs` lines.
    pub(super) fn data(&self) -> &[Line] {
        &self.data
    }
}

/// Packs all rows of `matrix` into panels, at the front of `data`.
pub(super) fn pack_all(matrix: Matrix, data: &mut Vec<Line>, threads: Threads) {
    let (k, count) = (matrix.width(), matrix.height().div_ceil(LANES));
    if data.len() < count * k {
        data.resize(count * k, Line::default());
    }
    let panels = &mut data[..count * k];
    let one = |(i, panel): (usize, &mut [Line])| pack(matrix, i * LANES, 0..k, panel);
    let panels = panels.chunks_exact_mut(k.max(1)).enumerate();
    match threads {
        Threads::Caller => panels.for_each(one),
        Threads::All => pool::for_each(panels, one),
    }
}
