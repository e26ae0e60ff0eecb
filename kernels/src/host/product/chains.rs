//! Products as chains of fused multiply-adds, a register tile at a time.
//!
//! Each element is one chain over `k` in ascending order, whatever the tile, the task and the
//! instruction set.

use std::ops::Range;

use super::ahead::{NextPanels, NextRows, TURN};
use super::destination::{Destination, Write};
use super::lanes::{LANES, Lanes, Line, on_widest};
use super::matrix::Matrix;
use super::pack::{pack_rows, packed_at};
use super::task::{ProductTask, RowPacking};

/// Inputs that a task processes at once, so that its packed rows stay in the second-level cache.
/// Chains continue through memory, which changes no bit.
const DEPTH: usize = 192;

/// Lines of packed rows that fit the second-level cache. With so few, panels, which come from
/// memory, are read from end to end.
pub const FEW: usize = 1 << 12;

on_widest! {
    /// Packs few rows for all tasks that read them.
    ///
    /// # Safety
    /// None: it chooses instructions that the processor has.
    pub unsafe fn pack_few(rows: Matrix, packed: &mut [Line]) = pack_few_on;
}

#[inline(always)]
unsafe fn pack_few_on<L: Lanes>(rows: Matrix, packed: &mut [Line]) {
    // SAFETY: the caller keeps this function's contract.
    unsafe { pack_rows::<L>(rows, 0..rows.width(), packed) }
}

on_widest! {
    /// Runs a task; `scratch` holds its packed rows.
    ///
    /// # Safety
    /// No other thread may access the task's part of the destination; where it is added to, it must
    /// be initialised.
    pub unsafe fn run(task: &ProductTask, scratch: &mut Vec<Line>) = run_on;
}

/// Runs a task with packed rows, or with rows in place.
#[inline(always)]
unsafe fn run_on<L: Lanes>(task: &ProductTask, scratch: &mut Vec<Line>) {
    let k = task.a.width();
    let count = task.a.height().div_ceil(LANES);
    task.check();
    let from = match task.rows {
        RowPacking::OnTheWay => {
            // SAFETY: the caller's, and the panels' number was checked.
            return unsafe { run_packing::<L>(task, count, scratch) };
        }
        RowPacking::Beforehand(packed) => {
            assert!(
                count * k <= packed.len(),
                "packed rows of a product are too few"
            );
            RowSource::packed(packed, k)
        }
        RowPacking::InPlace => RowSource::in_place(task.a),
    };
    // SAFETY: the caller's, and the panels' number was checked.
    unsafe { sweep::<L>(task, 0..k, k..k, task.write, from) }
}

/// Runs a task whose rows it packs, a depth at a time.
#[inline(always)]
unsafe fn run_packing<L: Lanes>(task: &ProductTask, count: usize, scratch: &mut Vec<Line>) {
    let k = task.a.width();
    let most = if count * k <= FEW { k.max(1) } else { DEPTH };
    if scratch.len() < count * most {
        scratch.resize(count * most, Line::default());
    }
    let mut write = task.write;
    // A product without inputs sets its destination too.
    for start in (0..k.max(1)).step_by(most) {
        let end = k.min(start + most);
        let packed = &mut scratch[..count * (end - start)];
        // SAFETY: the caller keeps this function's contract.
        unsafe {
            pack_rows::<L>(task.a, start..end, packed);
            let from = RowSource::packed(packed, end - start);
            sweep::<L>(task, start..end, end..k.min(end + most), write, from);
        }
        write = Write::Add;
    }
}

/// The rows that tiles read.
#[derive(Clone, Copy)]
struct RowSource {
    at: *const f32,
    /// How the rows are arranged in memory.
    arrangement: Arrangement,
}

#[derive(Clone, Copy)]
enum Arrangement {
    /// Packed to this depth.
    Packed(usize),
    /// In a matrix, with this many elements from one input to the next.
    InPlace(usize),
}

impl RowSource {
    fn packed(lines: &[Line], depth: usize) -> Self {
        Self {
            at: lines.as_ptr().cast(),
            arrangement: Arrangement::Packed(depth),
        }
    }

    /// # Panics
    /// If neighbours in a column are not neighbours in memory, or the matrix reaches past its data:
    /// a bug of the caller.
    fn in_place(a: Matrix) -> Self {
        let [row, column] = a.strides();
        assert!(
            row == 1 && (a.width() == 0 || (a.width() - 1) * column + a.height() <= a.data().len()),
            "rows of a product cannot be read in place"
        );
        Self {
            at: a.data().as_ptr(),
            arrangement: Arrangement::InPlace(column),
        }
    }

    /// Address of a tile's first element, and the elements from one input to the next.
    #[inline(always)]
    fn tile<L: Lanes>(&self, first: usize) -> (*const f32, usize) {
        match self.arrangement {
            Arrangement::Packed(depth) => {
                (self.at.wrapping_add(packed_at::<L>(first, depth)), L::GROUP)
            }
            Arrangement::InPlace(step) => (self.at.wrapping_add(first), step),
        }
    }
}

/// Multiplies all rows by all panels, for the inputs `inputs`; `next` are prefetched.
#[inline(always)]
unsafe fn sweep<L: Lanes>(
    task: &ProductTask,
    inputs: Range<usize>,
    next: Range<usize>,
    write: Write,
    from: RowSource,
) {
    let (panels, lines) = task.b.lines();
    let (rows, panel, depth) = (task.a.height(), lines * LANES, inputs.len());
    let (passes, width) = (rows.div_ceil(L::ROWS), task.b.width());
    let rounds = width.div_ceil(L::PANELS * LANES);
    let mut next_rows = NextRows::new(task.a, next, passes * rounds);
    let panels: *const f32 = panels.as_ptr().wrapping_add(inputs.start).cast();
    let mut column = 0;
    while column < width {
        let columns = (width - column).min(round::<L>(width - column) * LANES);
        let b = panels.wrapping_add(column / LANES * panel);
        // After the last round there is nothing to prefetch.
        let passes = match column + columns < width {
            true => passes,
            false => 0,
        };
        let ahead = NextPanels::new(b.wrapping_add(L::PANELS * panel), panel, passes);
        for row in (0..rows).step_by(LANES) {
            let end = rows.min(row + LANES);
            for first in (row..end).step_by(L::ROWS) {
                // SAFETY: packed rows and panels are as long as checked; the caller promises the
                // destination.
                unsafe {
                    next_rows.fetch::<L>();
                    let (a, step) = from.tile::<L>(first);
                    let tile = RegisterTile {
                        a,
                        step,
                        b,
                        panel,
                        depth,
                        c: task.c.below(first).right(column),
                        columns,
                        write,
                        ahead: ahead.after(first / L::ROWS, depth / TURN),
                    };
                    tile.dispatch::<L>((end - first).min(L::ROWS));
                }
            }
        }
        column += columns.next_multiple_of(LANES);
    }
}

/// Panels of the next round when `columns` columns are left. A single panel would not keep the
/// multipliers busy.
#[inline(always)]
fn round<L: Lanes>(columns: usize) -> usize {
    match columns.div_ceil(LANES) {
        left if left == L::PANELS + 1 && left >= 4 => left / 2,
        left => left.min(L::PANELS),
    }
}

/// A register tile: up to `ROWS` rows and `PANELS` panels.
struct RegisterTile<'a> {
    /// Rows side by side: `[depth]` times the tile's rows.
    a: *const f32,
    /// Elements of `a` from one input to the next.
    step: usize,
    /// The first panel: `[depth]` of [`LANES`].
    b: *const f32,
    /// Elements from one panel to the next.
    panel: usize,
    depth: usize,
    c: Destination<'a>,
    columns: usize,
    write: Write,
    ahead: NextPanels,
}

impl RegisterTile<'_> {
    #[inline(always)]
    unsafe fn dispatch<L: Lanes>(&self, rows: usize) {
        // SAFETY: the caller keeps this function's contract.
        unsafe {
            match self.columns.div_ceil(LANES) {
                1 => self.dispatch_rows::<L, 1>(rows),
                2 if L::PANELS >= 2 => self.dispatch_rows::<L, 2>(rows),
                3 if L::PANELS >= 3 => self.dispatch_rows::<L, 3>(rows),
                _ => unreachable!("more panels than a tile takes"),
            }
        }
    }

    #[inline(always)]
    unsafe fn dispatch_rows<L: Lanes, const N: usize>(&self, rows: usize) {
        // SAFETY: the caller keeps this function's contract.
        unsafe {
            match rows {
                1 => self.run::<L, 1, N>(),
                2 => self.run::<L, 2, N>(),
                3 => self.run::<L, 3, N>(),
                4 => self.run::<L, 4, N>(),
                5 if L::ROWS >= 5 => self.run::<L, 5, N>(),
                6 if L::ROWS >= 6 => self.run::<L, 6, N>(),
                7 if L::ROWS >= 7 => self.run::<L, 7, N>(),
                8 if L::ROWS >= 8 => self.run::<L, 8, N>(),
                _ => unreachable!("more rows than a tile takes"),
            }
        }
    }

    /// `c[i][j] (+)= Σₚ a[p][i] · b[p][j]`, p ascending, one fused multiply-add each.
    #[expect(
        clippy::needless_range_loop,
        reason = "plain indices unroll into registers"
    )]
    #[inline(always)]
    unsafe fn run<L: Lanes, const M: usize, const N: usize>(&self) {
        let whole = self.columns == N * LANES;
        let mut edge = [[0f32; LANES]; M];
        // SAFETY: the caller's promise; where the last panel reaches past the columns, `edge`
        // replaces it.
        unsafe {
            let mut acc = [[L::zero(); N]; M];
            if self.write == Write::Add {
                if !whole {
                    self.copy_edge::<M>((N - 1) * LANES, |i, c, n| {
                        edge[i][..n].copy_from_slice(std::slice::from_raw_parts(c, n))
                    });
                }
                for i in 0..M {
                    for j in 0..N {
                        acc[i][j] = L::load(self.place(i, j, N, whole, &mut edge));
                    }
                }
            }
            if self.write == Write::Set {
                self.prefetch_destination::<L, M, N>();
            }
            let turns = self.depth / TURN;
            for turn in 0..turns {
                self.ahead.fetch::<L, N>(turn);
                for p in 0..TURN {
                    self.multiply::<L, M, N>(turn * TURN + p, &mut acc);
                }
            }
            for p in turns * TURN..self.depth {
                self.multiply::<L, M, N>(p, &mut acc);
            }
            for i in 0..M {
                for j in 0..N {
                    acc[i][j].store(self.place(i, j, N, whole, &mut edge));
                }
            }
            if !whole {
                self.copy_edge::<M>((N - 1) * LANES, |i, c, n| {
                    std::slice::from_raw_parts_mut(c, n).copy_from_slice(&edge[i][..n])
                });
            }
        }
    }

    /// One input: `acc[i][j] += a[p][i] · b[p][j]`.
    #[expect(
        clippy::needless_range_loop,
        reason = "plain indices unroll into registers"
    )]
    #[inline(always)]
    unsafe fn multiply<L: Lanes, const M: usize, const N: usize>(
        &self,
        p: usize,
        acc: &mut [[L; N]; M],
    ) {
        // SAFETY: the caller keeps this function's contract.
        unsafe {
            let mut b = [L::zero(); N];
            for j in 0..N {
                b[j] = L::load(self.b.add(j * self.panel + p * LANES));
            }
            for i in 0..M {
                let a = L::splat(self.a.add(p * self.step + i));
                for j in 0..N {
                    acc[i][j] = a.mul_add(b[j], acc[i][j]);
                }
            }
        }
    }

    /// Prefetches the lines of the destination.
    #[inline(always)]
    unsafe fn prefetch_destination<L: Lanes, const M: usize, const N: usize>(&self) {
        for i in 0..M {
            for j in 0..N {
                // SAFETY: any address may be prefetched; the caller has the instruction.
                unsafe {
                    L::prefetch_near(self.c.at.wrapping_add(i * self.c.stride + j * LANES));
                }
            }
        }
    }

    /// Address at which a register is loaded and stored: in the destination, or in its stand-in
    /// `edge`.
    #[inline(always)]
    unsafe fn place<const M: usize>(
        &self,
        i: usize,
        j: usize,
        n: usize,
        whole: bool,
        edge: &mut [[f32; LANES]; M],
    ) -> *mut f32 {
        if !whole && j + 1 == n {
            return edge[i].as_mut_ptr();
        }
        // SAFETY: the caller keeps this function's contract.
        unsafe { self.c.at.add(i * self.c.stride + j * LANES) }
    }

    /// Calls `f` with each row of the destination from `column` on: its index, address and length.
    #[inline(always)]
    unsafe fn copy_edge<const M: usize>(
        &self,
        column: usize,
        mut f: impl FnMut(usize, *mut f32, usize),
    ) {
        for i in 0..M {
            // SAFETY: the caller keeps this function's contract.
            f(
                i,
                unsafe { self.c.at.add(i * self.c.stride + column) },
                self.columns - column,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;
    use crate::host::product::factor::Factor;
    use crate::host::product::lanes::Plain;
    use crate::host::product::panel_layout::PanelLayout;

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run_avx2(task: &ProductTask, scratch: &mut Vec<Line>) {
        // SAFETY: the caller keeps this function's contract.
        unsafe { run_on::<crate::host::product::lanes::Avx2>(task, scratch) }
    }

    /// Runs the same task on every level that this processor has.
    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (m, n, k) = (21usize, 70usize, 300usize);
        let number = |i: usize| ((i * 2_654_435_761) % 1009) as f32 / 1009.0 - 0.5;
        let a: Vec<f32> = (0..m * k).map(number).collect();
        let line = |i: usize| Line(std::array::from_fn(|j| number(i * LANES + j)));
        let panels: Vec<Line> = (0..n.div_ceil(LANES) * k).map(line).collect();
        let results = |run: &dyn Fn(&ProductTask, &mut Vec<Line>)| {
            let mut c = vec![MaybeUninit::new(0.25f32); m * n];
            let task = ProductTask {
                a: Matrix::new(&a, m, k, k),
                rows: RowPacking::OnTheWay,
                b: Factor::packed(&panels, PanelLayout::Lines, k, n),
                c: Destination::new(&mut c, n),
                write: Write::Add,
            };
            run(&task, &mut Vec::new());
            // SAFETY: all elements were initialised.
            c.iter()
                .map(|c| unsafe { c.assume_init() })
                .collect::<Vec<f32>>()
        };
        // SAFETY: the destination is a matrix of the task's size.
        let plain = results(&|task, scratch| unsafe { run_on::<Plain>(task, scratch) });
        assert_eq!(
            results(&|task, scratch| unsafe { super::run(task, scratch) }),
            plain
        );
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            assert_eq!(
                results(&|task, scratch| unsafe { run_avx2(task, scratch) }),
                plain
            );
        }
    }
}
