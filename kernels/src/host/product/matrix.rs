//! Views of matrices inside slices.

use std::ops::Range;

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

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// The window of the columns `columns`.
    ///
    /// # Panics
    /// If there are fewer columns: a bug of the caller.
    pub fn columns(self, columns: Range<usize>) -> Self {
        self.t().rows(columns.start, columns.len()).t()
    }

    /// The window of `count` rows from `first` on.
    ///
    /// # Panics
    /// If there are fewer rows: a bug of the caller.
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

    /// The elements of a row.
    ///
    /// # Panics
    /// If the matrix is transposed or has no such row: a bug of the caller.
    pub fn row(&self, row: usize) -> &'a [f32] {
        assert!(self.column_stride == 1, "a row of a transposed matrix");
        &self.data[row * self.row_stride..][..self.columns]
    }

    /// Whether both are the same window of the same data.
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

    /// Elements from the first one on.
    pub(super) fn data(&self) -> &'a [f32] {
        self.data
    }

    /// Elements from one row to the next, and from one column to the next.
    pub(super) fn strides(&self) -> [usize; 2] {
        [self.row_stride, self.column_stride]
    }
}
