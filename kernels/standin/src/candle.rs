//! The kernels of candle that the engine's graph of gradients still launches, as host code. Every
//! other kernel of candle is an error.

use kernels::device::Argument;

use crate::device::DriverStatus::NotSupported;
use crate::device::{DEVICE, DriverStatus};
use crate::say;

/// A kernel of candle.
pub struct CandleKernel {
    pub name: &'static str,
    /// Size of each parameter in bytes.
    pub sizes: &'static [usize],
    /// Runs the kernel.
    pub run: fn(&[Argument]) -> Result<(), DriverStatus>,
}

/// Where a node of the graph hands a gradient to its input, candle adds it to zeros
/// (candle-core, `backprop.rs`).
pub const KERNELS: &[CandleKernel] = &[CandleKernel {
    name: "badd_f32",
    sizes: &[8; 6],
    run: add,
}];

/// `out = lhs + rhs`, contiguous: candle-kernels, `binary.cu`.
fn add(arguments: &[Argument]) -> Result<(), DriverStatus> {
    let numbers = arguments.iter().map(|argument| match argument {
        Argument::Pointer(value) | Argument::U64(value) => *value,
        _ => 0,
    });
    let numbers: Vec<u64> = numbers.collect();
    let [count, _dimensions, strides, lhs, rhs, out] = numbers[..] else {
        return Err(NotSupported);
    };
    if strides != 0 {
        say(format_args!(
            "candle's badd_f32 with strides is not emulated"
        ));
        return Err(NotSupported);
    }
    let count = count as usize;
    for pointer in [lhs, rhs, out] {
        DEVICE.check(pointer, count * size_of::<f32>())?;
    }
    let [lhs, rhs] = [lhs, rhs].map(|pointer| pointer as *const f32);
    for i in 0..count {
        // SAFETY: all three lie within allocations; `out` may be one of the others.
        unsafe { *(out as *mut f32).add(i) = *lhs.add(i) + *rhs.add(i) };
    }
    Ok(())
}
