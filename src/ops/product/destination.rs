//! Where products are written: windows of a matrix that threads share.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Whether a product replaces the destination or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The product replaces the destination, which need not be initialised.
    Set,
    /// The sums start from what the destination holds.
    Add,
}

/// A window of a row-major matrix that tasks write disjoint parts of. Its elements need not hold anything yet where they are set.
#[derive(Clone, Copy)]
pub struct Destination<'a> {
    pub(super) at: *mut f32,
    /// Elements from `at` to the matrix's end.
    room: usize,
    pub(super) stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: tasks write disjoint elements; who runs them sees to that.
unsafe impl Send for Destination<'_> {}
// SAFETY: as above.
unsafe impl Sync for Destination<'_> {}

impl<'a> Destination<'a> {
    /// A matrix whose rows are `stride` apart.
    pub fn new(data: &'a mut [MaybeUninit<f32>], stride: usize) -> Self {
        Self {
            at: data.as_mut_ptr().cast(),
            room: data.len(),
            stride,
            lifetime: PhantomData,
        }
    }

    /// The window from `row` on.
    pub fn below(self, row: usize) -> Self {
        self.from(row * self.stride)
    }

    /// The same elements as rows that are so far apart.
    pub fn of_width(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// The window from `column` on.
    pub fn right(self, column: usize) -> Self {
        self.from(column)
    }

    /// A window that begins past the matrix has no room.
    fn from(self, element: usize) -> Self {
        Self {
            at: self.at.wrapping_add(element),
            room: self.room.saturating_sub(element),
            ..self
        }
    }

    /// Writes elements of a row.
    ///
    /// # Panics
    /// If they reach past the matrix: a bug of the caller.
    ///
    /// # Safety
    /// Nobody else may touch them meanwhile.
    #[inline(always)]
    pub unsafe fn put(&self, row: usize, column: usize, elements: &[f32]) {
        let start = row * self.stride + column;
        assert!(
            start + elements.len() <= self.room,
            "destination is too short"
        );
        // SAFETY: they lie inside; the rest is the caller's.
        unsafe {
            std::ptr::copy_nonoverlapping(elements.as_ptr(), self.at.add(start), elements.len())
        };
    }

    /// # Panics
    /// If so many rows and columns reach past the matrix: a bug of the caller.
    pub fn check(&self, rows: usize, columns: usize) {
        assert!(
            rows == 0 || (rows - 1) * self.stride + columns <= self.room,
            "destination of a product is too short"
        );
        assert!(
            rows <= 1 || columns <= self.stride,
            "destination of a product has rows that overlap"
        );
    }
}

/// A slice as a destination: products write it, or read it after it was written.
pub fn as_uninit(data: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: the layouts agree, and products write initialised numbers alone.
    unsafe { &mut *(std::ptr::from_mut(data) as *mut [MaybeUninit<f32>]) }
}
