//! Right-hand sides of products as tasks read them.

use std::ops::Range;

use super::lanes::{LANES, Line};
use super::matrix::Matrix;
use super::panel_layout::PanelLayout;

/// A right-hand side `[rows, columns]`, or a window of one.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    source: FactorSource<'a>,
    rows: usize,
    columns: usize,
}

/// Elements of a right-hand side.
#[derive(Clone, Copy)]
pub enum FactorSource<'a> {
    /// Packed panels.
    Packed {
        /// Lines from the first panel on.
        panels: &'a [Line],
        layout: PanelLayout,
        /// Lines from one panel to the next.
        lines: usize,
    },
    /// A matrix that is not packed; only the matrix unit reads it. Parts are half as large again as
    /// the numbers. If all of them are needed once, two processors that each split the matrix are
    /// faster than one that sends its parts to the other.
    Unpacked(Matrix<'a>),
}

impl<'a> Factor<'a> {
    /// A packed factor of `rows` rows and `columns` columns.
    ///
    /// # Panics
    /// If there are fewer panels: a bug of the caller.
    pub(super) fn packed(
        panels: &'a [Line],
        layout: PanelLayout,
        rows: usize,
        columns: usize,
    ) -> Self {
        let lines = layout.lines(rows);
        assert!(
            columns.div_ceil(LANES) * lines <= panels.len(),
            "panels of a factor are too few"
        );
        Self {
            source: FactorSource::Packed {
                panels,
                layout,
                lines,
            },
            rows,
            columns,
        }
    }

    /// A factor that tasks read from the matrix itself.
    pub(super) fn unpacked(b: Matrix<'a>) -> Self {
        Self {
            source: FactorSource::Unpacked(b),
            rows: b.height(),
            columns: b.width(),
        }
    }

    /// Number of rows: the inputs of the product.
    pub(super) fn height(&self) -> usize {
        self.rows
    }

    /// Number of columns: the outputs of the product; they may end inside the last panel.
    pub(super) fn width(&self) -> usize {
        self.columns
    }

    /// The elements.
    pub(super) fn source(&self) -> FactorSource<'a> {
        self.source
    }

    /// Lines from the first panel on, and the lines from one panel to the next.
    ///
    /// # Panics
    /// If the factor is not packed in lines: a bug of the caller.
    pub(super) fn lines(&self) -> (&'a [Line], usize) {
        match self.source {
            FactorSource::Packed {
                panels,
                layout: PanelLayout::Lines,
                lines,
            } => (panels, lines),
            _ => panic!("chains read panels of lines"),
        }
    }

    /// The window of the rows `rows`.
    ///
    /// # Panics
    /// If there are fewer rows, or the factor is not packed in lines: a bug of the caller.
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.end <= self.rows, "rows of a factor out of bounds");
        let (panels, lines) = self.lines();
        let panels = &panels[rows.start.min(panels.len())..];
        Self {
            source: FactorSource::Packed {
                panels,
                layout: PanelLayout::Lines,
                lines,
            },
            rows: rows.len(),
            ..self
        }
    }

    /// The window of the columns `columns`; a packed factor may be read to the end of its last
    /// panel, where columns are zero.
    ///
    /// # Panics
    /// If there are fewer columns, or the window begins inside a panel: a bug of the caller.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        let room = self.columns.next_multiple_of(LANES);
        assert!(
            columns.start.is_multiple_of(LANES) && columns.end <= room,
            "columns of a factor out of bounds"
        );
        let source = match self.source {
            FactorSource::Packed {
                panels,
                layout,
                lines,
            } => FactorSource::Packed {
                panels: &panels[(columns.start / LANES * lines).min(panels.len())..],
                layout,
                lines,
            },
            FactorSource::Unpacked(b) => FactorSource::Unpacked(b.columns(columns.clone())),
        };
        Self {
            source,
            columns: columns.len(),
            ..self
        }
    }
}
