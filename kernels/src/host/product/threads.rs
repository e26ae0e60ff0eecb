//! Which threads compute a product, and the buffers that each of them keeps.

use std::cell::Cell;
use std::thread::LocalKey;

use super::lanes::Line;

/// Threads that compute a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone, because the pool is busy with the work around it.
    Caller,
    /// All threads of the pool.
    All,
}

thread_local! {
    /// Packed rows of a task's left-hand side.
    pub static ROWS: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    /// Packed panels of a right-hand side.
    pub static PANELS: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    /// The right-hand side that several products of gradients share.
    pub static FACTOR: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Lends a buffer of this thread to `f`; a nested call for the same buffer gets a new one.
pub fn with_buffer<R>(
    slot: &'static LocalKey<Cell<Vec<Line>>>,
    f: impl FnOnce(&mut Vec<Line>) -> R,
) -> R {
    let mut buffer = slot.take();
    let result = f(&mut buffer);
    slot.set(buffer);
    result
}
