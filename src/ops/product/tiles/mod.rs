//! Products on the processor's matrix unit (Intel AMX), which multiplies tiles of bfloat16 and adds them up in `f32`.
//!
//! An `f32` is the sum of three bfloat16 ([`split`]), and a product of two is, to less than half a unit of its last place, the sum
//! of six of the nine products of their parts (Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence
//! Datatype For Higher-Precision Computations"). So a product is as accurate as a chain of fused multiply-adds, and takes 6/16 of
//! the time.
//!
//! The order of an element's sums is fixed here too, and by `k` alone: thirty-two inputs at a time, and for these the six pairs of
//! parts in the order of [`PAIRS`]; of each, the unit adds up the even and the odd inputs in a chain each, adds the two, and adds
//! their sum to the element. A row has the same bits alone and in any batch, but not those of the [`super::kernel`].

#[cfg(test)]
pub mod definition;
mod split;
mod unit;

use std::ops::Range;

use super::ahead::NextRows;
use super::factor::Source;
use super::kernel::Task;
use super::lanes::{Avx512, LANES, Line};
use super::layout::Layout;
use super::{Destination, Matrix, Write};
pub use split::split_panels;
use split::{split_lines, split_rows};
pub use unit::is_usable;
use unit::{Job, Shape};

/// Inputs that a tile takes.
const CHUNK: usize = 32;
/// Lines of a tile: its rows.
const TILE: usize = 16;
/// Lines of the three tiles of parts.
const BLOCK: usize = 3 * TILE;
/// Tiles of a job's destination.
const TILES: usize = 4;
/// Inputs that a task works on at once where its rows are many: a round's panels stay in the first-level cache. A multiple of
/// [`CHUNK`], or the order of sums would depend on it.
const DEPTH: usize = 512;
/// Rows that a task works on at once: their parts take a fifth of the second-level cache.
const ROWS: usize = 128;
/// Elements of a right-hand side that are split at once, where it is not packed: a third of the second-level cache.
const UNPACKED: usize = 1 << 17;
/// Rows that are few: their parts are held for all inputs.
const FEW_ROWS: usize = 96;
/// Lines between one that is split and one that is fetched.
const AHEAD: usize = 64;

/// Lines of a panel of parts.
pub fn lines(inputs: usize) -> usize {
    inputs.div_ceil(CHUNK) * BLOCK
}

/// Runs a task; `scratch` holds the parts of its rows and panels.
///
/// # Safety
/// As for [`super::kernel::run`], and [`is_usable`] must have said so.
pub unsafe fn run(task: &Task, scratch: &mut Vec<Line>) {
    task.check();
    let shape = Shape::of(task.a.height());
    let depth = depth(task);
    let [a, b, edge] = divide(scratch, task, shape, depth);
    // SAFETY: the caller's.
    unsafe { unit::configure(shape.tile_rows(task.a.height())) };
    let mut squares = squares(task, depth).peekable();
    let mut split = None;
    while let Some(square) = squares.next() {
        let sweep = Sweep {
            task,
            shape,
            rows: square.rows.len(),
            c: task.c.below(square.rows.start),
            chunks: square.inputs.len().div_ceil(CHUNK),
            inputs: square.inputs.clone(),
        };
        let write = match square.inputs.start {
            0 => task.write,
            _ => Write::Add,
        };
        let tiles = sweep.rows.next_multiple_of(shape.rows() * TILE) / TILE;
        let a = &mut a[..tiles * sweep.chunks * BLOCK];
        // SAFETY: the caller's.
        unsafe {
            if let Source::Unpacked(columns) = task.b.source()
                && split.replace(square.inputs.start) != Some(square.inputs.start)
            {
                let panels = task.b.width().div_ceil(LANES) * sweep.chunks;
                split_panels(
                    columns.t(),
                    0,
                    square.inputs.clone(),
                    &mut b[..panels * BLOCK],
                );
            }
            split_rows(square.of(task.a), square.inputs, a);
            sweep.run(a, b, edge, write, squares.peek());
        }
    }
    // SAFETY: as above.
    unsafe { unit::release() };
}

/// Inputs that a task works on at once.
fn depth(task: &Task) -> usize {
    let (rows, k) = (task.a.height(), task.a.width());
    let times = match task.b.source() {
        Source::Unpacked(columns) => {
            k.div_ceil((UNPACKED / columns.width().max(1)).clamp(64, DEPTH))
        }
        Source::Packed { .. } if rows <= FEW_ROWS => 1,
        Source::Packed { .. } => k.div_ceil(DEPTH),
    };
    k.div_ceil(times.max(1)).next_multiple_of(CHUNK).max(CHUNK)
}

/// Some of a task's rows, and some of their inputs.
struct Square {
    rows: Range<usize>,
    inputs: Range<usize>,
}

impl Square {
    fn of<'a>(&self, rows: Matrix<'a>) -> Matrix<'a> {
        rows.rows(self.rows.start, self.rows.len())
    }
}

/// What a task works on in turn; of each row, inputs in ascending order. A product of no inputs sets its destination too.
///
/// The larger of the two operands that change is gone through once.
fn squares(task: &Task, depth: usize) -> impl Iterator<Item = Square> {
    let (rows, k) = (task.a.height(), task.a.width());
    let by_inputs = matches!(task.b.source(), Source::Unpacked(_)) || k > 2 * rows;
    let [down, along] = [rows.div_ceil(ROWS), k.div_ceil(depth).max(1)];
    (0..down * along).map(move |i| {
        let (row, input) = match by_inputs {
            true => (i % down * ROWS, i / down * depth),
            false => (i / along * ROWS, i % along * depth),
        };
        Square {
            rows: row..rows.min(row + ROWS),
            inputs: input..k.min(input + depth),
        }
    })
}

/// Room for the parts of rows, of a round's panels, and for a job's edges.
fn divide<'a>(
    scratch: &'a mut Vec<Line>,
    task: &Task,
    shape: Shape,
    depth: usize,
) -> [&'a mut [Line]; 3] {
    let tiles = task
        .a
        .height()
        .min(ROWS)
        .next_multiple_of(shape.rows() * TILE)
        / TILE;
    let a = tiles * depth / CHUNK * BLOCK;
    let b = match task.b.source() {
        Source::Unpacked(columns) => columns.width().div_ceil(LANES) * depth / CHUNK * BLOCK,
        Source::Packed { .. } => shape.panels() * shape.turn().max(depth / CHUNK) * BLOCK,
    };
    let edge = (TILES + 1) * TILE;
    if scratch.len() < a + b + edge {
        scratch.resize(a + b + edge, Line::default());
    }
    let (a, rest) = scratch.split_at_mut(a);
    let (b, rest) = rest.split_at_mut(b);
    [a, b, &mut rest[..edge]]
}

/// Some rows of a task against all its panels, for some of the inputs.
struct Sweep<'a> {
    task: &'a Task<'a>,
    shape: Shape,
    rows: usize,
    /// Where the first row goes.
    c: Destination<'a>,
    inputs: Range<usize>,
    chunks: usize,
}

impl Sweep<'_> {
    /// Meanwhile `next` is fetched.
    unsafe fn run(
        &self,
        a: &[Line],
        b: &mut [Line],
        edge: &mut [Line],
        write: Write,
        next: Option<&Square>,
    ) {
        let (size, width) = (self.chunks * BLOCK, self.task.b.width());
        let turn = match self.task.b.source() {
            Source::Packed {
                layout: Layout::Lines,
                ..
            } if self.rows <= FEW_ROWS => self.shape.turn(),
            _ => self.chunks.max(1),
        };
        let across = width.div_ceil(self.shape.panels() * LANES);
        let jobs = across * self.rows.div_ceil(self.shape.rows() * TILE);
        let mut ahead =
            next.map(|next| NextRows::new(next.of(self.task.a), next.inputs.clone(), jobs));
        for column in (0..width).step_by(self.shape.panels() * LANES) {
            let mut write = write;
            for first in (0..self.chunks.max(1)).step_by(turn) {
                let chunks = first..self.chunks.min(first + turn);
                let panels = self.panels(column, &chunks, b);
                for row in (0..self.rows).step_by(self.shape.rows() * TILE) {
                    let mut job = Job::new(chunks.len(), write == Write::Add);
                    for (i, at) in job.a.iter_mut().enumerate().take(self.shape.rows()) {
                        *at = a[(row / TILE + i) * size + first * BLOCK..].as_ptr();
                    }
                    job.b = panels;
                    // SAFETY: the caller's.
                    unsafe {
                        if let Some(ahead) = &mut ahead {
                            ahead.fetch::<Avx512>();
                        }
                        self.multiply(row, column, job, edge, write);
                    }
                }
                write = Write::Add;
            }
        }
    }

    /// The panels of a round from a column on: where they lie, or split in `b`. Past the last the last stands in.
    fn panels(&self, column: usize, chunks: &Range<usize>, b: &mut [Line]) -> [*const Line; TILES] {
        let (size, last) = (chunks.len() * BLOCK, (self.task.b.width() - 1) / LANES);
        let start = self.inputs.start + chunks.start * CHUNK;
        let mut found = [std::ptr::null(); TILES];
        for (j, found) in found.iter_mut().enumerate().take(self.shape.panels()) {
            let panel = (column / LANES + j).min(last);
            *found = match self.task.b.source() {
                Source::Unpacked(_) => b[panel * size..][..size].as_ptr(),
                Source::Packed {
                    panels,
                    layout: Layout::Parts,
                    lines,
                } => panels[panel * lines + start / CHUNK * BLOCK..][..size].as_ptr(),
                Source::Packed { panels, lines, .. } => {
                    let end = self.inputs.end.min(self.inputs.start + chunks.end * CHUNK);
                    let block = &mut b[j * size..][..size];
                    // SAFETY: the unit is there, so are the instructions.
                    unsafe { split_lines(&panels[panel * lines..][start..end], AHEAD, block) };
                    block.as_ptr()
                }
            };
        }
        found
    }

    /// Runs a job on the tiles from a row and a column on.
    unsafe fn multiply(
        &self,
        row: usize,
        column: usize,
        mut job: Job,
        edge: &mut [Line],
        write: Write,
    ) {
        let c = self.c.below(row).right(column);
        let (rows, columns) = (self.rows - row, self.task.b.width() - column);
        {
            use std::arch::x86_64::*;
            let ahead = if rows > 2 * self.shape.rows() * TILE {
                c.below(2 * self.shape.rows() * TILE)
            } else {
                self.c
                    .below(if rows > 32 { 0 } else { 32 })
                    .right(column + self.shape.panels() * LANES)
            };
            for i in 0..self.shape.rows() * TILE {
                for j in 0..self.shape.panels() {
                    unsafe {
                        _mm_prefetch::<_MM_HINT_T1>(
                            ahead.at.wrapping_add(i * c.stride + j * LANES).cast(),
                        )
                    };
                }
            }
        }
        let (edge, aside) = edge.split_at_mut(TILES * TILE);
        job.aside = aside.as_mut_ptr();
        let windows: [Window; TILES] = std::array::from_fn(|t| {
            let (i, j) = (
                t / self.shape.panels() * TILE,
                t % self.shape.panels() * LANES,
            );
            Window {
                at: c.at.wrapping_add(i * c.stride + j),
                stride: c.stride,
                rows: rows.saturating_sub(i).min(TILE),
                columns: columns.saturating_sub(j).min(LANES),
                tile: self.shape.tile_rows(rows),
            }
        });
        for ((t, window), edge) in windows.iter().enumerate().zip(edge.chunks_exact_mut(TILE)) {
            if window.is_whole() {
                (job.c[t], job.stride[t]) = (window.at, window.stride * size_of::<f32>());
                continue;
            }
            // SAFETY: the window lies inside the destination.
            if write == Write::Add {
                unsafe { window.read(edge) };
            }
            (job.c[t], job.stride[t]) = (edge.as_mut_ptr().cast(), size_of::<Line>());
        }
        // SAFETY: the caller's; the tiles lie inside the destination or are edges.
        unsafe { job.run(self.shape) };
        for (window, edge) in windows.iter().zip(edge.chunks_exact(TILE)) {
            if !window.is_whole() {
                // SAFETY: as above.
                unsafe { window.write(edge) };
            }
        }
    }
}

/// The part of a tile that lies inside the destination.
struct Window {
    at: *mut f32,
    stride: usize,
    rows: usize,
    columns: usize,
    /// Rows of the tile.
    tile: usize,
}

impl Window {
    fn is_whole(&self) -> bool {
        self.rows == self.tile && self.columns == LANES
    }

    unsafe fn read(&self, tile: &mut [Line]) {
        for (i, line) in tile.iter_mut().enumerate().take(self.rows) {
            // SAFETY: the caller's.
            let row =
                unsafe { std::slice::from_raw_parts(self.at.add(i * self.stride), self.columns) };
            line.0[..self.columns].copy_from_slice(row);
        }
    }

    unsafe fn write(&self, tile: &[Line]) {
        for (i, line) in tile.iter().enumerate().take(self.rows) {
            // SAFETY: the caller's.
            let row = unsafe {
                std::slice::from_raw_parts_mut(self.at.add(i * self.stride), self.columns)
            };
            row.copy_from_slice(&line.0[..self.columns]);
        }
    }
}
