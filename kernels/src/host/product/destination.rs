//! Destinations of products: windows of a matrix that threads share.

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

/// A window of a row-major matrix of which tasks write disjoint parts. Elements that are set need
/// not be initialised.
#[derive(Clone, Copy)]
pub struct Destination<'a> {
    pub(super) at: *mut f32,
    /// Elements from `at` to the matrix's end.
    room: usize,
    pub(super) stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: tasks write disjoint elements, as the code that runs them must ensure.
unsafe impl Send for Destination<'_> {}
// SAFETY: shared access only computes addresses; writing is unsafe and needs disjoint elements.
unsafe impl Sync for Destination<'_> {}

impl<'a> Destination<'a> {
    /// A matrix whose rows are `stride` elements apart.
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

    /// The same destination with rows that start `stride` elements apart.
    pub fn of_width(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// The window from `column` on.
    pub fn right(self, column: usize) -> Self {
        self.from(column)
    }

    /// The window from an element on; one that begins past the matrix is empty.
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
    /// If the elements reach past the matrix: a bug of the caller.
    ///
    /// # Safety
    /// No other thread may access the elements.
    #[inline(always)]
    pub unsafe fn put(&self, row: usize, column: usize, elements: &[f32]) {
        let start = row * self.stride + column;
        assert!(
            start + elements.len() <= self.room,
            "destination is too short"
        );
        // SAFETY: the elements are inside the matrix, and the caller promises that no other thread
        // accesses them.
        unsafe {
            std::ptr::copy_nonoverlapping(elements.as_ptr(), self.at.add(start), elements.len())
        };
    }

    /// Checks that the window has room for `rows` rows of `columns` elements.
    ///
    /// # Panics
    /// If the rows reach past the matrix or overlap: a bug of the caller.
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
