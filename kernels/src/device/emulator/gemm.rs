//! Products of matrices on the emulated device.

use crate::arguments::{Precision, Receive};
use crate::device::launcher::{Factor, FactorType, Gemm};

/// Multiplies matrices: each element is one chain of fused multiply-adds in ascending order.
///
/// # Safety
/// See [`Launcher::gemm`](crate::device::Launcher::gemm).
pub unsafe fn multiply(gemm: &Gemm) {
    let [m, n, k] = gemm.sizes;
    // SAFETY: the caller promises that the factors have these sizes.
    let (a, b) = unsafe {
        (
            gathered(gemm.factors[0], [m, k], gemm),
            gathered(transposed(gemm.factors[1]), [n, k], gemm),
        )
    };
    for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
        let at = (gemm.result.0 as *mut f32).wrapping_add(row * gemm.result.1 + column);
        let products = a[row * k..][..k].iter().zip(&b[column * k..][..k]);
        // SAFETY: the caller promises that the result has such an element.
        unsafe {
            let start = match gemm.receive {
                Receive::Set => 0.0,
                Receive::Add => at.read(),
            };
            at.write(products.fold(start, |sum, (a, b)| a.mul_add(*b, sum)));
        }
    }
}

fn transposed(factor: Factor) -> Factor {
    Factor {
        transposed: !factor.transposed,
        ..factor
    }
}

/// The elements of a factor row by row, rounded as the device rounds them.
///
/// # Safety
/// The factor must have these sizes.
unsafe fn gathered(factor: Factor, [rows, columns]: [usize; 2], gemm: &Gemm) -> Vec<f32> {
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let element = |(row, column): (usize, usize)| {
        let at = match factor.transposed {
            false => row * factor.stride + column,
            true => column * factor.stride + row,
        };
        // SAFETY: the caller promises that there is such an element.
        unsafe {
            match gemm.number {
                FactorType::F32 => rounded(*(factor.pointer as *const f32).add(at), gemm.precision),
                FactorType::Bf16 => {
                    let bits = *(factor.pointer as *const u16).add(at);
                    f32::from_bits(u32::from(bits) << 16)
                }
            }
        }
    };
    places.map(element).collect()
}

/// The number in the precision of a product: TF32 keeps 10 bits of the mantissa, rounded to the
/// nearest number, and away from zero between two.
fn rounded(number: f32, precision: Precision) -> f32 {
    match precision {
        Precision::Full => number,
        Precision::Tf32 => f32::from_bits((number.to_bits() + 0x1000) & !0x1fff),
    }
}
