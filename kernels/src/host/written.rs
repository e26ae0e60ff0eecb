//! Vectors that are written without being cleared first.

use std::mem::MaybeUninit;

/// A vector of `len` elements that `write` fills, without clearing it first.
///
/// # Safety
/// `write` must write every element.
pub(crate) unsafe fn written(len: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut data = Vec::with_capacity(len);
    write(&mut data.spare_capacity_mut()[..len]);
    // SAFETY: the capacity is `len`, and the caller promises that `write` fills it.
    unsafe { data.set_len(len) };
    data
}
