//! Right-hand sides, as tasks read them.

use std::ops::Range;

use super::lanes::{LANES, Line};
use super::matrix::Matrix;
use super::panel_layout::PanelLayout;

/// A matrix `b`, or a window of one.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    source: FactorSource<'a>,
    rows: usize,
    columns: usize,
}

/// Where a task finds a right-hand side.
#[derive(Clone, Copy)]
pub enum FactorSource<'a> {
    /// In panels.
    Packed {
        /// From the first panel on.
        panels: &'a [Line],
        layout: PanelLayout,
        /// Lines from a panel to the next.
        lines: usize,
    },
    /// Where it lies. Only the matrix unit reads it so: parts are half as large again as what they are of, and where all of them are
    /// needed once, splitting them twice takes less than bringing them from one processor to the other.
    Unpacked(Matrix<'a>),
}

impl<'a> Factor<'a> {
    /// What was packed, of so many rows and columns.
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

    pub(super) fn unpacked(b: Matrix<'a>) -> Self {
        Self {
            source: FactorSource::Unpacked(b),
            rows: b.height(),
            columns: b.width(),
        }
    }

    /// Number of rows: inputs of the product.
    pub(super) fn height(&self) -> usize {
        self.rows
    }

    /// Number of columns: outputs of the product; they may end inside the last panel.
    pub(super) fn width(&self) -> usize {
        self.columns
    }

    /// Where it is found.
    pub(super) fn source(&self) -> FactorSource<'a> {
        self.source
    }

    /// The panels from the first on, and the lines from one to the next.
    ///
    /// # Panics
    /// If they are not of lines: a bug of the caller.
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

    /// Some of the rows, of panels of lines.
    ///
    /// # Panics
    /// If there are fewer, or the panels are not of lines: a bug of the caller.
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

    /// Whole panels of columns; past the end of one that is packed they are zero.
    ///
    /// # Panics
    /// If there are fewer, or they begin inside a panel: a bug of the caller.
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
