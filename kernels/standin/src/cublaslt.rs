//! libcublasLt: products.

use std::ffi::{c_int, c_void};

use kernels::device::product::{Precision, Receive};
use kernels::device::{Factor, FactorType, Gemm, Launcher};

use crate::device::DEVICE;
use crate::{say, status};

/// Errors of cuBLAS, with their numbers in `cublas_api.h`.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub enum BlasStatus {
    InvalidValue = 7,
    ExecutionFailed = 13,
    NotSupported = 15,
}

impl From<BlasStatus> for i32 {
    fn from(status: BlasStatus) -> Self {
        status as Self
    }
}

const R_32F: c_int = 0;
const R_16BF: c_int = 14;
const COMPUTE_32F: c_int = 68;
const COMPUTE_32F_FAST_TF32: c_int = 77;
/// Size of `cublasLtMatmulAlgo_t` in 64-bit numbers.
const ALGORITHM: usize = 8;

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
pub struct Heuristic {
    algorithm: [u64; ALGORITHM],
    workspace_bytes: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// Types and transposed factors of a product.
#[derive(Clone, Copy)]
pub struct ProductDescriptor {
    compute: c_int,
    /// Whether a and b are transposed.
    transposed: [bool; 2],
}

/// A column-major matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MatrixLayout {
    number: c_int,
    rows: u64,
    columns: u64,
    stride: i64,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtCreate(handle: *mut *mut c_void) -> c_int {
    // SAFETY: the caller passes the address of a handle, which no one follows.
    unsafe { *handle = std::ptr::without_provenance_mut(3) };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtDestroy(_handle: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescCreate(
    product: *mut *mut ProductDescriptor,
    compute: c_int,
    scale: c_int,
) -> c_int {
    if scale != R_32F {
        return BlasStatus::NotSupported.into();
    }
    let created = ProductDescriptor {
        compute,
        transposed: [false; 2],
    };
    // SAFETY: the caller passes the address of a handle.
    unsafe { *product = Box::into_raw(Box::new(created)) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    product: *mut ProductDescriptor,
    attribute: c_int,
    value: *const c_int,
    _size: usize,
) -> c_int {
    const TRANSA: c_int = 3;
    const TRANSB: c_int = 4;
    status(|| {
        // SAFETY: the handle is one of `cublasLtMatmulDescCreate`, and both attributes are numbers.
        let (product, value) = unsafe { (&mut *product, *value) };
        let factor = match attribute {
            TRANSA => 0,
            TRANSB => 1,
            _ => return Err(BlasStatus::NotSupported),
        };
        product.transposed[factor] = value == 1;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescDestroy(product: *mut ProductDescriptor) -> c_int {
    // SAFETY: the handle is one of `cublasLtMatmulDescCreate` and is not used after this.
    drop(unsafe { Box::from_raw(product) });
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    layout: *mut *mut MatrixLayout,
    number: c_int,
    rows: u64,
    columns: u64,
    stride: i64,
) -> c_int {
    if rows == 0 || columns == 0 || u64::try_from(stride).is_ok_and(|stride| stride < rows) {
        return BlasStatus::InvalidValue.into();
    }
    let created = MatrixLayout {
        number,
        rows,
        columns,
        stride,
    };
    // SAFETY: the caller passes the address of a handle.
    unsafe { *layout = Box::into_raw(Box::new(created)) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutDestroy(layout: *mut MatrixLayout) -> c_int {
    // SAFETY: the handle is one of `cublasLtMatrixLayoutCreate` and is not used after this.
    drop(unsafe { Box::from_raw(layout) });
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceCreate(preference: *mut *mut c_void) -> c_int {
    // SAFETY: the caller passes the address of a handle, which no one follows.
    unsafe { *preference = std::ptr::without_provenance_mut(4) };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    _preference: *mut c_void,
    _attribute: c_int,
    _value: *const c_void,
    _size: usize,
) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulPreferenceDestroy(_preference: *mut c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    _handle: *mut c_void,
    product: *const ProductDescriptor,
    a: *const MatrixLayout,
    b: *const MatrixLayout,
    c: *const MatrixLayout,
    d: *const MatrixLayout,
    _preference: *mut c_void,
    requested: c_int,
    found: *mut Heuristic,
    count: *mut c_int,
) -> c_int {
    status(|| {
        // SAFETY: the handles are of the functions above.
        let layouts = unsafe { [*a, *b, *c, *d] };
        // SAFETY: as above.
        Sizes::of(unsafe { &*product }, &layouts)?;
        if requested < 1 {
            return Err(BlasStatus::InvalidValue);
        }
        let heuristic = Heuristic {
            algorithm: [1; ALGORITHM],
            workspace_bytes: 0,
            state: 0,
            waves: 1.0,
            reserved: [0; 4],
        };
        // SAFETY: the caller passes room for one result, and the address of a number.
        unsafe {
            *found = heuristic;
            *count = 1;
        }
        Ok(())
    })
}

/// The sizes and types of a product, of which the row-major result is `dᵀ = op(b)ᵀ · op(a)ᵀ`.
struct Sizes {
    sizes: [usize; 3],
    number: FactorType,
    precision: Precision,
}

impl Sizes {
    fn of(product: &ProductDescriptor, layouts: &[MatrixLayout; 4]) -> Result<Self, BlasStatus> {
        let [a, b, c, d] = layouts;
        let turned = |layout: &MatrixLayout, is_transposed| match is_transposed {
            false => (layout.rows, layout.columns),
            true => (layout.columns, layout.rows),
        };
        let (a_rows, a_columns) = turned(a, product.transposed[0]);
        let (b_rows, b_columns) = turned(b, product.transposed[1]);
        if (a_rows, b_columns, a_columns) != (d.rows, d.columns, b_rows) || c != d {
            return Err(BlasStatus::InvalidValue);
        }
        let (number, precision) = match (product.compute, a.number) {
            (COMPUTE_32F, R_32F) => (FactorType::F32, Precision::Full),
            (COMPUTE_32F_FAST_TF32, R_32F) => (FactorType::F32, Precision::Tf32),
            (COMPUTE_32F, R_16BF) => (FactorType::Bf16, Precision::Full),
            _ => return Err(BlasStatus::NotSupported),
        };
        if a.number != b.number || d.number != R_32F {
            return Err(BlasStatus::NotSupported);
        }
        Ok(Self {
            sizes: [d.columns, d.rows, a_columns].map(|size| size as usize),
            number,
            precision,
        })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmul(
    _handle: *mut c_void,
    product: *const ProductDescriptor,
    alpha: *const f32,
    a: u64,
    a_layout: *const MatrixLayout,
    b: u64,
    b_layout: *const MatrixLayout,
    beta: *const f32,
    c: u64,
    c_layout: *const MatrixLayout,
    d: u64,
    d_layout: *const MatrixLayout,
    _algorithm: *const [u64; ALGORITHM],
    _workspace: u64,
    _workspace_bytes: usize,
    _stream: *mut c_void,
) -> c_int {
    status(|| {
        // SAFETY: the handles are of the functions above, and both factors numbers of the host.
        let (product, layouts, alpha, beta) = unsafe {
            let layouts = [*a_layout, *b_layout, *c_layout, *d_layout];
            (&*product, layouts, *alpha, *beta)
        };
        let Sizes {
            sizes,
            number,
            precision,
        } = Sizes::of(product, &layouts)?;
        let receive = match (alpha, beta) {
            (1.0, 0.0) => Receive::Set,
            (1.0, 1.0) if c == d => Receive::Add,
            _ => return Err(BlasStatus::NotSupported),
        };
        for (address, layout) in [a, b, d].into_iter().zip([0, 1, 3].map(|i| layouts[i])) {
            let size = if layout.number == R_32F { 4 } else { 2 };
            let elements = (layout.columns - 1) * layout.stride as u64 + layout.rows;
            let checked = DEVICE.check(address, elements as usize * size);
            checked.map_err(|_| BlasStatus::ExecutionFailed)?;
        }
        // A column-major matrix is the transposed one in row-major order.
        let factor = |pointer, layout: MatrixLayout, is_transposed| Factor {
            pointer,
            stride: layout.stride as usize,
            transposed: is_transposed,
        };
        let gemm = Gemm {
            sizes,
            factors: [
                factor(b, layouts[1], product.transposed[1]),
                factor(a, layouts[0], product.transposed[0]),
            ],
            result: (d, layouts[3].stride as usize),
            number,
            receive,
            precision,
        };
        // SAFETY: the matrices lie within allocations.
        let multiplied = unsafe { DEVICE.emulator.gemm(&gemm) };
        multiplied.map_err(|error| {
            say(format_args!("{error}"));
            BlasStatus::ExecutionFailed
        })
    })
}
