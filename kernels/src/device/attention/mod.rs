//! Causal grouped-query attention (Vaswani et al. 2017, eq. 1; Ainslie et al. 2023), optionally in
//! a sliding window (Jiang et al. 2023, §2).
//!
//! [`packed`] attends within the segments of packed rows, and has a backward pass. [`paged`]
//! attends over a cache, for the new tokens of a [`PagedStep`].

pub mod packed;
pub mod paged;
mod step;
mod variants;

pub use step::PagedStep;
pub use variants::PackedNumber;

use crate::attention::Attention;
use crate::device::array::{Number, Slice};
use crate::device::error::{KernelError, Result};

/// Bytes to which the kernels' wide loads are aligned.
const ALIGNMENT: u64 = 16;

/// Most columns of a head.
const MOST_COLUMNS: usize = 256;
/// Most heads: blocks of a grid in y.
const MOST_HEADS: usize = 65_535;

/// Checks that the kernels support an attention layer: heads of a multiple of 4 columns up to 256.
///
/// # Errors
/// Heads of another number of columns, query heads that are no multiple of the key heads, an empty
/// window, and more than 65,535 heads.
pub fn check(spec: &Attention) -> Result<()> {
    let refuse = |message| Err(KernelError::Shape { message });
    let Attention {
        query_heads,
        kv_heads,
        head_dim,
        ..
    } = *spec;
    if head_dim == 0 || !head_dim.is_multiple_of(4) || head_dim > MOST_COLUMNS {
        return refuse(format!(
            "attention heads have {head_dim} columns, and the device's kernels support multiples \
             of 4 up to {MOST_COLUMNS}"
        ));
    }
    let is_multiple = kv_heads > 0 && query_heads > 0 && query_heads.is_multiple_of(kv_heads);
    if !is_multiple || query_heads > MOST_HEADS {
        return refuse(format!(
            "attention has {query_heads} query heads for {kv_heads} key heads, where a multiple \
             is needed and at most {MOST_HEADS}"
        ));
    }
    match spec.window {
        Some(0) => refuse("attention has a window of 0 tokens".to_owned()),
        _ => Ok(()),
    }
}

/// The window as a kernel reads it. Positions are below 2³¹, and a key behind the query is farther
/// away than that in unsigned arithmetic.
fn window(spec: &Attention) -> u32 {
    const ALL: u32 = 1 << 31;
    let window = spec.window.and_then(|window| u32::try_from(window).ok());
    window.map_or(ALL, |window| window.min(ALL))
}

/// A number of blocks of a grid; one that is too large is refused where it is launched.
fn blocks_of(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Checks that an array begins where wide loads can.
fn check_aligned<T: Number>(what: &str, slice: Slice<T>) -> Result<()> {
    match slice.pointer().is_multiple_of(ALIGNMENT) {
        true => Ok(()),
        false => Err(KernelError::Shape {
            message: format!("{what} of attention must begin at a multiple of {ALIGNMENT} bytes"),
        }),
    }
}
