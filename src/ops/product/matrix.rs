//! Views of matrices inside slices, and panels: the layout that the kernel reads in sequence.

use std::ops::Range;

use super::Threads;
use super::lanes::{LANES, Line};
use super::pack::pack;
use crate::ops::pool;

/// Panels that are packed together.
const GROUP: usize = 4;

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

    /// Some of the columns.
    ///
    /// # Panics
    /// If there are fewer: a bug of the caller.
    pub fn columns(self, columns: Range<usize>) -> Self {
        self.t().rows(columns.start, columns.len()).t()
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

    /// The elements of a row, where they are neighbours.
    ///
    /// # Panics
    /// If they are not or there is no such row: a bug of the caller.
    pub fn row(&self, row: usize) -> &'a [f32] {
        assert!(self.column_stride == 1, "a row of a transposed matrix");
        &self.data[row * self.row_stride..][..self.columns]
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
        Self::of(Matrix::new(weight, outputs, inputs, inputs))
    }

    /// Packs the rows of a matrix.
    pub fn of(rows: Matrix) -> Self {
        let mut data = Vec::new();
        pack_all(&[rows], &mut data, Threads::All);
        Self {
            data,
            outputs: rows.height(),
            inputs: rows.width(),
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

/// Packs the columns of matrices of one width, which stand one below the other, into panels at the front of `data`.
pub(super) fn pack_stacked(matrices: &[Matrix], data: &mut Vec<Line>) {
    let width = matrices.first().map_or(0, Matrix::width);
    let depth: usize = matrices.iter().map(Matrix::height).sum();
    let total = width.div_ceil(LANES) * depth;
    if data.len() < total {
        data.resize(total, Line::default());
    }
    let panels = data[..total].chunks_mut(depth.max(1)).enumerate();
    pool::for_each(panels, |(i, panel)| {
        let mut rest = panel;
        for matrix in matrices {
            let (part, behind) = rest.split_at_mut(matrix.height());
            pack(matrix.t(), i * LANES, 0..matrix.height(), part);
            rest = behind;
        }
    });
}

/// Packs all rows of matrices of one width into panels, at the front of `data`; those of a matrix begin in a panel of their own.
pub(super) fn pack_all(matrices: &[Matrix], data: &mut Vec<Line>, threads: Threads) {
    let lines = |m: &Matrix| m.height().div_ceil(LANES) * m.width();
    let total = matrices.iter().map(lines).sum();
    if data.len() < total {
        data.resize(total, Line::default());
    }
    let (mut groups, mut rest) = (Vec::new(), &mut data[..total]);
    for matrix in matrices {
        let (panels, behind) = rest.split_at_mut(lines(matrix));
        let size = (GROUP * matrix.width()).max(1);
        let chunks = panels.chunks_mut(size).enumerate();
        groups.extend(chunks.map(|(i, panels)| (matrix, i * GROUP * LANES, panels)));
        rest = behind;
    }
    let one = |(matrix, first, panels): (&Matrix, usize, &mut [Line])| {
        pack(*matrix, first, 0..matrix.width(), panels);
    };
    match threads {
        Threads::Caller => groups.into_iter().for_each(one),
        Threads::All => pool::for_each(groups, one),
    }
}
