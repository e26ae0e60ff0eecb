//! Some rows of a task against all its panels, for some of the inputs.

use std::ops::Range;

use super::super::ahead::NextRows;
use super::super::destination::{Destination, Write};
use super::super::factor::FactorSource;
use super::super::lanes::{Avx512, LANES, Lanes, Line};
use super::super::matrix::Matrix;
use super::super::panel_layout::PanelLayout;
use super::super::parts::{BLOCK, CHUNK, TILE};
use super::super::task::{FEW_ROWS, ProductTask};
use super::squares::{ROWS, Square};
use super::unit::{TILES, TileJob, TileShape};
use super::window::Window;

/// The regions of a task's buffer.
pub struct TileBuffers<'a> {
    /// Parts of a square's rows.
    pub rows: &'a mut [Line],
    /// Parts of panels that are not packed.
    pub panels: &'a mut [Line],
    /// Stand-ins for the tiles of a job that reach past the destination, and one tile more.
    pub edge: &'a mut [Line],
}

impl<'a> TileBuffers<'a> {
    /// Divides the buffer, and grows it first if the task's squares of `depth` inputs need more.
    /// The parts of rows come first: the next task may use them.
    pub fn divide(
        buffer: &'a mut Vec<Line>,
        task: &ProductTask,
        shape: TileShape,
        depth: usize,
    ) -> Self {
        let chunks = depth / CHUNK;
        let panels = match task.b.source() {
            FactorSource::Unpacked(b) => b.width().div_ceil(LANES) * chunks,
            FactorSource::Packed { .. } => 0,
        };
        let rows = shape.tiles(task.a.height().min(ROWS)) * chunks;
        let [rows, panels, edge] = [rows * BLOCK, panels * BLOCK, (TILES + 1) * TILE];
        if buffer.len() < rows + panels + edge {
            buffer.resize(rows + panels + edge, Line::default());
        }
        let (rows, rest) = buffer.split_at_mut(rows);
        let (panels, rest) = rest.split_at_mut(panels);
        Self {
            rows,
            panels,
            edge: &mut rest[..edge],
        }
    }
}

/// A square of a task's left-hand side against all panels.
pub struct Sweep<'a> {
    task: &'a ProductTask<'a>,
    shape: TileShape,
    rows: usize,
    inputs: Range<usize>,
    chunks: usize,
    /// Destination of the square's first row.
    c: Destination<'a>,
    /// Whether the square's sums replace the destination or are added to it.
    write: Write,
}

impl<'a> Sweep<'a> {
    pub fn new(task: &'a ProductTask<'a>, shape: TileShape, square: &Square) -> Self {
        Self {
            task,
            shape,
            rows: square.rows.len(),
            inputs: square.inputs.clone(),
            chunks: square.inputs.len().div_ceil(CHUNK),
            c: task.c.below(square.rows.start),
            write: match square.inputs.start {
                0 => task.write,
                _ => Write::Add,
            },
        }
    }

    /// Lines of the parts of the square's rows.
    pub fn lines_of_rows(&self) -> usize {
        self.shape.tiles(self.rows) * self.chunks * BLOCK
    }

    /// Multiplies `rows`, the parts of the square; `panels` holds the parts of panels where the
    /// right-hand side is not packed. Prefetches the rows of the next square.
    ///
    /// # Safety
    /// As for [`super::run`]; the tiles must be configured.
    pub unsafe fn run(
        &self,
        rows: &[Line],
        panels: &[Line],
        edge: &mut [Line],
        next: Option<&Square>,
    ) {
        let mut ahead = self.ahead(next);
        for column in (0..self.task.b.width()).step_by(self.shape.panels() * LANES) {
            let b = self.panels(column, panels);
            for row in (0..self.rows).step_by(self.shape.rows() * TILE) {
                let mut job = TileJob::new(self.row_parts(rows, row), b, self.chunks, self.write);
                // SAFETY: the caller keeps this function's contract.
                unsafe {
                    ahead.fetch::<Avx512>();
                    if self.task.a.height() > FEW_ROWS {
                        self.fetch_destination(row, column);
                    }
                    self.multiply(&mut job, row, column, edge);
                }
            }
        }
    }

    /// Prefetches of the next square's elements, in as many shares as there are jobs.
    fn ahead(&self, next: Option<&Square>) -> NextRows {
        let across = self.task.b.width().div_ceil(self.shape.panels() * LANES);
        let jobs = across * self.shape.tiles(self.rows) / self.shape.rows();
        match next {
            Some(next) => NextRows::new(next.of(self.task.a), next.inputs.clone(), jobs),
            None => NextRows::new(Matrix::new(&[], 0, 0, 0), 0..0, 1),
        }
    }

    /// Parts of the rows of a job.
    fn row_parts(&self, rows: &[Line], row: usize) -> [*const Line; 2] {
        let tile = |i: usize| (row / TILE + i) * self.chunks;
        [0, self.shape.rows() - 1].map(|i| rows[tile(i) * BLOCK..].as_ptr())
    }

    /// Parts of the panels of a round from a column on: packed ones, or those in `unpacked`. The
    /// last panel stands in for panels past the end.
    fn panels(&self, column: usize, unpacked: &[Line]) -> [*const Line; TILES] {
        let left = self.task.b.width().div_ceil(LANES) - column / LANES;
        let mut parts = [std::ptr::null(); TILES];
        let count = self.shape.panels().min(left);
        for (j, part) in parts.iter_mut().enumerate().take(count) {
            *part = self.panel(column / LANES + j, unpacked);
        }
        let last = parts[count - 1];
        parts[count..].fill(last);
        parts
    }

    fn panel(&self, number: usize, unpacked: &[Line]) -> *const Line {
        let size = self.chunks * BLOCK;
        match self.task.b.source() {
            FactorSource::Unpacked(_) => unpacked[number * size..][..size].as_ptr(),
            FactorSource::Packed {
                panels,
                layout: PanelLayout::Parts,
                lines,
            } => panels[number * lines + self.inputs.start / CHUNK * BLOCK..][..size].as_ptr(),
            FactorSource::Packed { .. } => panic!("the matrix unit reads panels of parts"),
        }
    }

    /// Prefetches the tiles that the job after the next will write, because they come from memory.
    unsafe fn fetch_destination(&self, row: usize, column: usize) {
        let (height, width) = (self.shape.rows() * TILE, self.shape.panels() * LANES);
        let (row, column) = match row + 2 * height < self.rows {
            true => (row + 2 * height, column),
            false => (
                (row + 2 * height) % self.rows.next_multiple_of(height),
                column + width,
            ),
        };
        let c = self.c.below(row).right(column);
        for i in 0..height {
            for j in (0..width).step_by(LANES) {
                // SAFETY: any address may be prefetched, and the processor has AVX-512.
                unsafe { Avx512::prefetch(c.below(i).right(j).at) };
            }
        }
    }

    /// Runs a job on the tiles that begin at a row and a column.
    unsafe fn multiply(&self, job: &mut TileJob, row: usize, column: usize, edge: &mut [Line]) {
        let windows = self.windows(row, column);
        let (edge, aside) = edge.split_at_mut(TILES * TILE);
        let tile_rows = self.shape.tile_rows(self.rows);
        // SAFETY: the caller's promise for the destination; the windows lie inside it, and
        // stand-ins replace the tiles that do not.
        unsafe {
            for ((t, window), edge) in windows.iter().enumerate().zip(edge.chunks_exact_mut(TILE)) {
                match window.holds(tile_rows) {
                    true => job.set_destination(t, window.c.at, window.c.stride),
                    false => {
                        if job.adds() {
                            window.read(edge);
                        }
                        job.set_destination(t, edge.as_mut_ptr().cast(), LANES);
                    }
                }
            }
            job.run(self.shape, tile_rows, aside);
            for (window, edge) in windows.iter().zip(edge.chunks_exact(TILE)) {
                if !window.holds(tile_rows) {
                    window.write(edge);
                }
            }
        }
    }

    /// The windows of the destination that a job's tiles cover.
    fn windows(&self, row: usize, column: usize) -> [Window<'a>; TILES] {
        std::array::from_fn(|t| {
            let down = row + t / self.shape.panels() * TILE;
            let right = column + t % self.shape.panels() * LANES;
            Window {
                c: self.c.below(down).right(right),
                rows: self.rows.saturating_sub(down).min(TILE),
                columns: self.task.b.width().saturating_sub(right).min(LANES),
            }
        })
    }
}
