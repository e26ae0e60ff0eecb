//! Which of two ways products are computed in.
//!
//! Each has an order of its own for an element's sums. What the generator draws and what training computes must be the same bits, so
//! a process keeps to one of them while a run's stages last.

use std::cell::Cell;

use super::kernel::{self, Task};
use super::lanes::Line;
#[cfg(target_arch = "x86_64")]
use super::tiles;

thread_local! {
    static CURRENT: Cell<Arithmetic> = const { Cell::new(Arithmetic::Chains) };
}

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// One chain of fused multiply-adds an element: the same bits on every processor, and the fastest where rows are few.
    Chains,
    /// On the matrix unit of the processor ([`Self::fastest`] says whether it has one): the fastest where rows are many.
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

impl Arithmetic {
    /// That of the products that this thread asks for; chains unless somebody [says otherwise](Self::during).
    pub fn current() -> Self {
        CURRENT.get()
    }

    /// The fastest for training on this processor.
    pub fn fastest() -> Self {
        #[cfg(target_arch = "x86_64")]
        if tiles::is_usable() {
            return Self::Tiles;
        }
        Self::Chains
    }

    /// Its name, for messages and notes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chains => "chains",
            #[cfg(target_arch = "x86_64")]
            Self::Tiles => "tiles",
        }
    }

    /// Calls `work`, whose products on this thread are computed in this way.
    ///
    /// # Panics
    /// If this processor cannot: a bug of the caller.
    pub fn during<R>(self, work: impl FnOnce() -> R) -> R {
        assert!(
            [Self::Chains, Self::fastest()].contains(&self),
            "this processor has no matrix unit"
        );
        let _before = Restored(CURRENT.replace(self));
        work()
    }

    /// Runs tasks.
    ///
    /// # Safety
    /// As for [`kernel::run`]; and the processor must have what it takes.
    pub(super) unsafe fn run(self, tasks: &[Task], scratch: &mut Vec<Line>) {
        // SAFETY: the caller's.
        unsafe {
            match self {
                Self::Chains => tasks.iter().for_each(|task| kernel::run(task, scratch)),
                #[cfg(target_arch = "x86_64")]
                Self::Tiles => tiles::run(tasks, scratch),
            }
        }
    }
}

/// What holds again when it is dropped, after a panic too.
struct Restored(Arithmetic);

impl Drop for Restored {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}
