//! Packed right-hand sides: the layout that the kernels read in sequence.

use super::factor::Factor;
use super::kernel::ProductKernel;
use super::lanes::{LANES, Line};
use super::matrix::Matrix;
use super::panel_layout::PanelLayout;
use super::threads::Threads;
use crate::host::pool;

/// Panels that one task packs.
const GROUP: usize = 4;

/// A weight matrix `[outputs, inputs]` packed in panels: sixteen outputs side by side,
/// `panel[p][j] = W[16·i + j][p]`, or the bfloat16 parts of these for the matrix unit. Only the
/// kernel that they were packed for can read them.
pub struct Panels {
    data: Vec<Line>,
    layout: PanelLayout,
    outputs: usize,
    inputs: usize,
}

impl Panels {
    /// Packs the rows of a matrix `[outputs, inputs]` for `kernel`.
    pub fn pack(kernel: ProductKernel, rows: Matrix) -> Self {
        let (mut data, layout) = (Vec::new(), PanelLayout::of(kernel));
        pack_all(&[rows], layout, &mut data, Threads::All);
        Self {
            data,
            layout,
            outputs: rows.height(),
            inputs: rows.width(),
        }
    }

    /// Bytes of the panels of a matrix `[outputs, inputs]` packed for `kernel`.
    pub fn bytes_of(kernel: ProductKernel, outputs: usize, inputs: usize) -> usize {
        let lines = PanelLayout::of(kernel).lines(inputs);
        outputs.div_ceil(LANES) * lines * size_of::<Line>()
    }

    /// Bytes of these panels.
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

    /// The panels as the right-hand side of a product.
    pub fn factor(&self) -> Factor<'_> {
        Factor::packed(&self.data, self.layout, self.inputs, self.outputs)
    }
}

/// Packs the columns of matrices of one width, stacked one below the other, into panels at the
/// front of `data`.
///
/// # Panics
/// If the layout cannot be cut where one of the matrices ends: a bug of the caller.
pub fn pack_stacked(matrices: &[Matrix], layout: PanelLayout, data: &mut Vec<Line>) {
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

/// Packs all rows of matrices of one width into panels at the front of `data`; each matrix begins a
/// panel of its own.
pub fn pack_all(matrices: &[Matrix], layout: PanelLayout, data: &mut Vec<Line>, threads: Threads) {
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
