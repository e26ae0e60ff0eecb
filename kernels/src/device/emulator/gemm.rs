//! Products of matrices on the emulated device.

use crate::arguments::{Precision, Receive};
use crate::device::launcher::{Factor, FactorType, Gemm};
use crate::host::product::{Matrix, ProductKernel, Weight, add_product};

/// Multiplies matrices by the host's chains: each element is one chain of fused multiply-adds in
/// ascending order.
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
    let row = |row: usize| (gemm.result.0 as *mut f32).wrapping_add(row * gemm.result.1);
    let mut sums = vec![0f32; m * n];
    for (i, sums) in sums.chunks_exact_mut(n).enumerate() {
        if gemm.receive == Receive::Add {
            // SAFETY: the caller promises that the result has such a row.
            unsafe { row(i).copy_to_nonoverlapping(sums.as_mut_ptr(), n) };
        }
    }
    let (a, b) = (Matrix::new(&a, m, k, k), Matrix::new(&b, n, k, k));
    add_product(ProductKernel::Chains, a, Weight::Rows(b), &mut sums);
    for (i, sums) in sums.chunks_exact(n).enumerate() {
        // SAFETY: as above; nothing else accesses the result.
        unsafe { row(i).copy_from_nonoverlapping(sums.as_ptr(), n) };
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
