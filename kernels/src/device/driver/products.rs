//! Products by cuBLASLt.
//!
//! cuBLASLt's matrices are column-major. A row-major result is the transposed result in
//! column-major order, so the product runs as `cᵀ = bᵀ · aᵀ`: b is the library's first factor, and
//! a stored row is one of its columns.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::size_of_val;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;
use cudarc::driver::result::{free_async, malloc_async};

use super::device_error;
use crate::device::error::{KernelError, Result};
use crate::device::launcher::{FactorType, Gemm};
use crate::device::product::{Precision, Receive};

/// Bytes that a product may use beside its matrices.
const WORKSPACE_BYTES: usize = 32 << 20;
/// The widest alignment that cuBLASLt distinguishes, in bytes.
const WIDEST_ALIGNMENT: u64 = 256;

/// cuBLASLt for one stream.
pub struct Products {
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    /// Address of the workspace. Products of one stream run one after the other, so they share it.
    workspace: u64,
    plans: Mutex<HashMap<Shape, Arc<Plan>>>,
}

// SAFETY: several threads may use cuBLASLt's handle at once (cuBLAS library documentation,
// "cublasLtHandle_t").
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

// SAFETY: descriptors are plain memory that nothing changes after a plan is made.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

/// All that the choice of an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    sizes: [usize; 3],
    strides: [usize; 3],
    are_transposed: [bool; 2],
    number: FactorType,
    precision: Precision,
    receive: Receive,
    /// Of a, b and c, in bytes.
    alignments: [u32; 3],
}

/// A product's descriptors and its algorithm.
struct Plan {
    product: Descriptor<sys::cublasLtMatmulDesc_t>,
    a: Descriptor<sys::cublasLtMatrixLayout_t>,
    b: Descriptor<sys::cublasLtMatrixLayout_t>,
    c: Descriptor<sys::cublasLtMatrixLayout_t>,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// A descriptor of cuBLASLt, with the function that frees it.
struct Descriptor<T: Copy> {
    handle: T,
    destroy: unsafe fn(T) -> std::result::Result<(), CublasError>,
}

impl<T: Copy> Drop for Descriptor<T> {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this value's own.
        let _ = unsafe { (self.destroy)(self.handle) };
    }
}

impl Products {
    /// cuBLASLt for a stream.
    ///
    /// # Errors
    /// If the device has no memory for the workspace, and errors of the library.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let handle = result::create_handle();
        let handle = handle.map_err(|error| device_error("cublasLtCreate", error))?;
        // SAFETY: the stream is valid, and its device current.
        let workspace = unsafe { malloc_async(stream.cu_stream(), WORKSPACE_BYTES) };
        Ok(Self {
            handle,
            stream: Arc::clone(stream),
            workspace: workspace.map_err(|error| device_error("cuMemAllocAsync", error))?,
            plans: Mutex::default(),
        })
    }

    /// Runs a product.
    ///
    /// # Safety
    /// See [`Launcher::gemm`](crate::device::Launcher::gemm).
    ///
    /// # Errors
    /// Errors of the library, with the product's sizes.
    pub unsafe fn multiply(&self, gemm: &Gemm) -> Result<()> {
        let failed = |error: CublasError| KernelError::Device {
            operation: "cublasLtMatmul",
            message: format!("{error}, for {gemm:?}"),
        };
        let plan = self.plan(gemm).map_err(failed)?;
        let alpha = 1_f32;
        let beta: f32 = match gemm.receive {
            Receive::Set => 0.0,
            Receive::Add => 1.0,
        };
        let [a, b] = gemm.factors.map(|factor| factor.pointer);
        let c = gemm.result.0;
        // SAFETY: the caller promises that the matrices hold what the descriptors say, and the
        // workspace is used by this stream alone.
        let done = unsafe {
            result::matmul(
                self.handle,
                plan.product.handle,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                b as *const c_void,
                plan.b.handle,
                a as *const c_void,
                plan.a.handle,
                c as *const c_void,
                plan.c.handle,
                c as *mut c_void,
                plan.c.handle,
                &raw const plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        };
        done.map_err(failed)
    }

    /// The plan for products of this shape, which is made once.
    fn plan(&self, gemm: &Gemm) -> std::result::Result<Arc<Plan>, CublasError> {
        let shape = Shape::of(gemm);
        let plans = self.plans.lock();
        let mut plans = plans.unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&shape) {
            return Ok(Arc::clone(plan));
        }
        let plan = Arc::new(Plan::new(self.handle, &shape)?);
        plans.insert(shape, Arc::clone(&plan));
        Ok(plan)
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        let _ = self.stream.context().bind_to_thread();
        // SAFETY: the workspace and the handle are this value's own.
        unsafe {
            let _ = free_async(self.workspace, self.stream.cu_stream());
            let _ = result::destroy_handle(self.handle);
        }
    }
}

impl Shape {
    fn of(gemm: &Gemm) -> Self {
        let alignment = |pointer: u64| {
            let widest = 1 << pointer.trailing_zeros().min(63);
            WIDEST_ALIGNMENT.min(widest) as u32
        };
        let [a, b] = gemm.factors;
        Self {
            sizes: gemm.sizes,
            strides: [a.stride, b.stride, gemm.result.1],
            are_transposed: [a.transposed, b.transposed],
            number: gemm.number,
            precision: gemm.precision,
            receive: gemm.receive,
            alignments: [a.pointer, b.pointer, gemm.result.0].map(alignment),
        }
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, shape: &Shape) -> std::result::Result<Self, CublasError> {
        let [m, n, k] = shape.sizes;
        let [a_stride, b_stride, c_stride] = shape.strides;
        let [a_transposed, b_transposed] = shape.are_transposed;
        let product = product(shape)?;
        let a = layout(shape.number, [m, k], a_stride, a_transposed)?;
        let b = layout(shape.number, [k, n], b_stride, b_transposed)?;
        let c = layout(FactorType::F32, [m, n], c_stride, false)?;
        let preference = preference(shape)?;
        // SAFETY: all descriptors are valid.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                handle,
                product.handle,
                b.handle,
                a.handle,
                c.handle,
                c.handle,
                preference.handle,
            )?
        };
        Ok(Self {
            product,
            a,
            b,
            c,
            algorithm: found.algo,
        })
    }
}

/// The descriptor of a product's types and transposed factors.
fn product(
    shape: &Shape,
) -> std::result::Result<Descriptor<sys::cublasLtMatmulDesc_t>, CublasError> {
    use sys::cublasLtMatmulDescAttributes_t::{
        CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB,
    };
    let compute = match (shape.number, shape.precision) {
        (FactorType::F32, Precision::Tf32) => {
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
        }
        _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    let product = Descriptor {
        handle: result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?,
        destroy: result::destroy_matmul_desc,
    };
    let [a_transposed, b_transposed] = shape.are_transposed;
    for (attribute, is_transposed) in [
        (CUBLASLT_MATMUL_DESC_TRANSA, b_transposed),
        (CUBLASLT_MATMUL_DESC_TRANSB, a_transposed),
    ] {
        let operation = i32::from(is_transposed); // CUBLAS_OP_N is 0, CUBLAS_OP_T is 1
        // SAFETY: the attribute is a 32-bit number.
        unsafe {
            let value = (&raw const operation).cast();
            let size = size_of_val(&operation);
            result::set_matmul_desc_attribute(product.handle, attribute, value, size)?;
        }
    }
    Ok(product)
}

/// The layout of a row-major matrix `[rows, columns]`, as columns that are its stored rows.
fn layout(
    number: FactorType,
    [rows, columns]: [usize; 2],
    stride: usize,
    is_transposed: bool,
) -> std::result::Result<Descriptor<sys::cublasLtMatrixLayout_t>, CublasError> {
    let number = match number {
        FactorType::F32 => sys::cudaDataType::CUDA_R_32F,
        FactorType::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    };
    let (height, width) = match is_transposed {
        true => (columns, rows),
        false => (rows, columns),
    };
    let (height, width) = (height as u64, width as u64);
    Ok(Descriptor {
        handle: result::create_matrix_layout(number, width, height, stride as i64)?,
        destroy: result::destroy_matrix_layout,
    })
}

/// Limits for the choice of an algorithm: the workspace, the alignments, and partial sums in single
/// precision that are added in a fixed order.
fn preference(
    shape: &Shape,
) -> std::result::Result<Descriptor<sys::cublasLtMatmulPreference_t>, CublasError> {
    use sys::cublasLtMatmulPreferenceAttributes_t::{
        CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
    };
    let preference = Descriptor {
        handle: result::create_matmul_pref()?,
        destroy: result::destroy_matmul_pref,
    };
    let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
    let workspace_bytes = WORKSPACE_BYTES;
    let [a, b, c] = shape.alignments;
    // SAFETY: the workspace's size is a `size_t`, the other attributes are 32-bit numbers.
    unsafe {
        let workspace = (&raw const workspace_bytes).cast();
        let size = size_of_val(&workspace_bytes);
        let attribute = CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        result::set_matmul_pref_attribute(preference.handle, attribute, workspace, size)?;
        for (attribute, value) in [
            (CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ] {
            let bytes = (&raw const value).cast();
            let size = size_of_val(&value);
            result::set_matmul_pref_attribute(preference.handle, attribute, bytes, size)?;
        }
    }
    Ok(preference)
}
