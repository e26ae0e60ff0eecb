//! Views of matrices inside slices, and panels: the layout that the kernel reads in sequence.

use std::ops::Range;

use super::Threads;
use super::factor::Factor;
use super::lanes::{LANES, Line};
use super::layout::Layout;
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

    /// Whether both are one window of the same data.
    pub(super) fn is_same_window(&self, other: &Self) -> bool {
        let shape = |m: &Self| [m.rows, m.columns, m.row_stride, m.column_stride];
        std::ptr::eq(self.data.as_ptr(), other.data.as_ptr()) && shape(self) == shape(other)
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

/// A weight matrix `[outputs, inputs]` in panels: sixteen outputs side by side, `panel[p][j] = W[16·i + j][p]`, or the parts of these
/// for the matrix unit. Only the arithmetic in which they were packed reads them.
pub struct Panels {
    data: Vec<Line>,
    layout: Layout,
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
        let (mut data, layout) = (Vec::new(), Layout::native());
        pack_all(&[rows], layout, &mut data, Threads::All);
        Self {
            data,
            layout,
            outputs: rows.height(),
            inputs: rows.width(),
        }
    }

    /// Bytes that the panels of a matrix `[outputs, inputs]` would take.
    pub fn bytes_of(outputs: usize, inputs: usize) -> usize {
        let lines = Layout::native().lines(inputs);
        outputs.div_ceil(LANES) * lines * size_of::<Line>()
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.data[..])
    }

    /// Number of outputs `n`.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs `k`.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// As a product's right-hand side.
    pub(super) fn factor(&self) -> Factor<'_> {
        Factor::packed(&self.data, self.layout, self.inputs, self.outputs)
    }
}

/// Packs the columns of matrices of one width, which stand one below the other, into panels at the front of `data`.
///
/// # Panics
/// If the layout cannot be cut where one of them ends: a bug of the caller.
pub(super) fn pack_stacked(matrices: &[Matrix], layout: Layout, data: &mut Vec<Line>) {
    let width = matrices.first().map_or(0, Matrix::width);
    let depth = layout.lines(matrices.iter().map(Matrix::height).sum());
    let total = width.div_ceil(LANES) * depth;
    if data.len() < total {
        data.resize(total, Line::default());
    }
    let panels = data[..total].chunks_mut(depth.max(1)).enumerate();
    pool::for_each(panels, |(i, panel)| {
        let mut rest = panel;
        for matrix in matrices {
            let (part, behind) = rest.split_at_mut(layout.lines(matrix.height()));
            layout.pack(matrix.t(), i * LANES, part);
            rest = behind;
        }
    });
}

/// Packs all rows of matrices of one width into panels, at the front of `data`; those of a matrix begin in a panel of their own.
pub(super) fn pack_all(
    matrices: &[Matrix],
    layout: Layout,
    data: &mut Vec<Line>,
    threads: Threads,
) {
    let lines = |m: &Matrix| m.height().div_ceil(LANES) * layout.lines(m.width());
    let total = matrices.iter().map(lines).sum();
    if data.len() < total {
        data.resize(total, Line::default());
    }
    let (mut groups, mut rest) = (Vec::new(), &mut data[..total]);
    for matrix in matrices {
        let (panels, behind) = rest.split_at_mut(lines(matrix));
        let size = (GROUP * layout.lines(matrix.width())).max(1);
        let chunks = panels.chunks_mut(size).enumerate();
        groups.extend(chunks.map(|(i, panels)| (matrix, i * GROUP * LANES, panels)));
        rest = behind;
    }
    let one = |(matrix, first, panels): (&Matrix, usize, &mut [Line])| {
        layout.pack(*matrix, first, panels);
    };
    match threads {
        Threads::Caller => groups.into_iter().for_each(one),
        Threads::All => pool::for_each(groups, one),
    }
}
