//! The bytes that a thread holds, counted by the program's allocator.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicIsize, Ordering};

thread_local! {
    /// The count of this thread; most threads have none, and only check that at each allocation.
    static COUNT: Cell<Option<&'static AtomicIsize>> = const { Cell::new(None) };
}

/// An allocator that forwards to another one, and counts the bytes that monitored threads hold.
#[derive(Debug)]
pub struct CountingAllocator<A>(pub A);

// SAFETY: every call is forwarded unchanged; counting neither allocates nor panics.
#[expect(unsafe_code, reason = "the trait of allocators is unsafe")]
unsafe impl<A: GlobalAlloc> GlobalAlloc for CountingAllocator<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the contract is the same, and the caller keeps it.
        counted(unsafe { self.0.alloc(layout) }, layout.size(), 0)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        counted(unsafe { self.0.alloc_zeroed(layout) }, layout.size(), 0)
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        let moved = unsafe { self.0.realloc(block, layout, size) };
        counted(moved, size, layout.size())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { self.0.dealloc(block, layout) };
        counted(block, 0, layout.size());
    }
}

/// Counts the bytes of `block` and returns it; a null block has none.
fn counted(block: *mut u8, taken: usize, given_back: usize) -> *mut u8 {
    if !block.is_null() {
        let _ = COUNT.try_with(|count| {
            if let Some(count) = count.get() {
                // No block is larger than `isize::MAX`.
                count.fetch_add(taken as isize - given_back as isize, Ordering::Relaxed);
            }
        });
    }
    block
}

/// Counts the bytes that this thread allocates minus those that it frees, from now on; `None` if
/// the program's allocator is not [`CountingAllocator`]. The count is never freed, because other
/// threads may read it after the thread's end.
pub(super) fn count_this_thread() -> Option<&'static AtomicIsize> {
    let count: &'static AtomicIsize = Box::leak(Box::default());
    COUNT.set(Some(count));
    let probe = black_box(Box::new(0u8));
    let counts = count.load(Ordering::Relaxed) != 0;
    drop(probe);
    counts.then_some(count)
}
