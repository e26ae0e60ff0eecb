//! A GPU behind NVIDIA's driver.
//!
//! Memory comes from the driver's stream-ordered pool, kernels are compiled by NVRTC when the
//! program runs, and products are cuBLASLt's. All work goes to one stream of the caller, so that it
//! is ordered with the work of others on that stream, candle for example, and shares their pool.

mod compile;
mod images;
mod modules;
mod products;

pub mod exchange;

use std::path::Path;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{CUmemPool_attribute, CUresult};
use cudarc::driver::{CudaStream, LaunchConfig, PushKernelArg};

use crate::device::error::{KernelError, Result};
use crate::device::kernel::Kernel;
use crate::device::launcher::{Allocation, Argument, DeviceMemory, Gemm, Grid, Launcher};
pub use compile::{Architecture, Compiled, compile, version};
use modules::Modules;
use products::Products;

/// Fewest bytes of an allocation: the driver refuses an empty one.
const LEAST_BYTES: usize = 16;

/// A GPU.
pub struct Driver {
    stream: Arc<CudaStream>,
    modules: Modules,
    products: Products,
}

impl Driver {
    /// The GPU of a stream. Compiled kernels are kept in the folder `images`, if one is given.
    ///
    /// The driver's pool keeps freed memory for later allocations, instead of returning it to the
    /// system whenever the stream is synchronised.
    ///
    /// # Errors
    /// A stream that is another one for each thread (the one of candle's `Device::new_cuda`; that
    /// of `Device::new_cuda_with_stream` is right), a GPU without memory pools or for which NVRTC
    /// cannot compile, and errors of the driver.
    pub fn new(stream: Arc<CudaStream>, images: Option<&Path>) -> Result<Self> {
        let context = stream.context();
        if stream.cu_stream() == context.per_thread_stream().cu_stream() {
            return Err(KernelError::Device {
                operation: "the stream of the GPU",
                message: "it is another one for each thread, and would not order their work"
                    .to_owned(),
            });
        }
        let bound = context.bind_to_thread();
        bound.map_err(|error| device_error("cuCtxSetCurrent", error))?;
        if !context.has_async_alloc() {
            return Err(KernelError::Device {
                operation: "cuMemAllocAsync",
                message: "this GPU, or its virtualisation, has no memory pools".to_owned(),
            });
        }
        let kept = keep_freed_memory(&stream);
        kept.map_err(|error| device_error("cuMemPoolSetAttribute", error))?;
        Ok(Self {
            modules: Modules::new(Arc::clone(context), images)?,
            products: Products::new(&stream)?,
            stream,
        })
    }

    /// Compiles and loads all kernels now, so that an error ends the program before its work begins
    /// and no later launch waits for the compiler.
    ///
    /// # Errors
    /// Errors of the compiler and of the driver.
    pub fn load_all(&self) -> Result<()> {
        self.modules.load_all()
    }

    /// The stream of all work.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Makes the device current for the calling thread.
    fn bind(&self) -> Result<()> {
        let bound = self.stream.context().bind_to_thread();
        bound.map_err(|error| device_error("cuCtxSetCurrent", error))
    }

    /// Allocates memory; if there is too little, waits for the frees before and returns what the
    /// pool keeps to the system, then tries again.
    fn allocate_or_trim(&self, bytes: usize) -> std::result::Result<u64, DriverError> {
        let stream = self.stream.cu_stream();
        // SAFETY: the stream and its device are valid.
        unsafe {
            match result::malloc_async(stream, bytes) {
                Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                    self.stream.synchronize()?;
                    let pool = result::device::get_mem_pool(self.stream.context().cu_device())?;
                    result::mem_pool::trim_to(pool, 0)?;
                    result::malloc_async(stream, bytes)
                }
                other => other,
            }
        }
    }
}

impl Launcher for Driver {
    fn allocate(&self, bytes: usize) -> Result<Allocation> {
        self.bind()?;
        let requested = bytes.max(LEAST_BYTES);
        match self.allocate_or_trim(requested) {
            Ok(pointer) => Ok(Allocation { pointer, bytes }),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(KernelError::OutOfMemory {
                requested,
                free: result::mem_get_info().map_or(0, |(free, _)| free),
            }),
            Err(error) => Err(device_error("cuMemAllocAsync", error)),
        }
    }

    fn free(&self, allocation: Allocation) {
        // An error here is the error of an earlier kernel, which the next call returns.
        if self.bind().is_ok() {
            // SAFETY: the allocation is one of the stream's device and is not used after this.
            let _ = unsafe { result::free_async(allocation.pointer, self.stream.cu_stream()) };
        }
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller promises that `to` points to as many bytes. Host memory of a program
        // is pageable, and has been read when the call returns.
        let copied = unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) };
        copied.map_err(|error| device_error("cuMemcpyHtoDAsync", error))
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller promises that `from` points to as many bytes, and `to` is not used
        // before the stream has copied them.
        let copied = unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) };
        let copied = copied.and_then(|()| self.stream.synchronize());
        copied.map_err(|error| device_error("cuMemcpyDtoHAsync", error))
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller promises that both point to as many bytes.
        let copied = unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) };
        copied.map_err(|error| device_error("cuMemcpyDtoDAsync", error))
    }

    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller promises that `at` points to as many bytes.
        let set = unsafe { result::memset_d8_async(at, 0, bytes, self.stream.cu_stream()) };
        set.map_err(|error| device_error("cuMemsetD8Async", error))
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, arguments: &[Argument]) -> Result<()> {
        self.bind()?;
        let function = self.modules.function(kernel)?;
        function.check(kernel, arguments)?;
        function.allow_shared(kernel, self.stream.context(), grid.shared_bytes)?;
        let mut launch = self.stream.launch_builder(&function.handle);
        for argument in arguments {
            match argument {
                Argument::Pointer(value) | Argument::U64(value) => launch.arg(value),
                Argument::U32(value) => launch.arg(value),
                Argument::F32(value) => launch.arg(value),
            };
        }
        let [x, y, z] = grid.blocks;
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (grid.threads, 1, 1),
            shared_mem_bytes: grid.shared_bytes as u32,
        };
        // SAFETY: the caller's promise is the kernel's condition, and the sizes were checked.
        let launched = unsafe { launch.launch(config) };
        launched.map(drop).map_err(|error| KernelError::Launch {
            kernel: kernel.name,
            message: error.to_string(),
        })
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        self.bind()?;
        // SAFETY: the caller's promise is the condition.
        unsafe { self.products.multiply(gemm) }
    }

    fn synchronize(&self) -> Result<()> {
        let done = self.stream.synchronize();
        done.map_err(|error| device_error("cuStreamSynchronize", error))
    }

    fn memory(&self) -> Result<DeviceMemory> {
        use CUmemPool_attribute::{
            CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
            CU_MEMPOOL_ATTR_USED_MEM_HIGH,
        };
        self.bind()?;
        let of_pool = |attribute| {
            let bytes = pool_attribute(&self.stream, attribute)?;
            Ok::<_, DriverError>(usize::try_from(bytes).unwrap_or(usize::MAX))
        };
        let all = || -> std::result::Result<_, DriverError> {
            let allocated = of_pool(CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
            let kept = of_pool(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?.saturating_sub(allocated);
            let (free, total) = result::mem_get_info()?;
            Ok(DeviceMemory {
                allocated,
                peak: of_pool(CU_MEMPOOL_ATTR_USED_MEM_HIGH)?,
                free: free + kept,
                total,
            })
        };
        all().map_err(|error| device_error("cuMemPoolGetAttribute", error))
    }

    fn restart_peak(&self) -> Result<()> {
        self.bind()?;
        // The driver accepts 0, which it replaces by what is in use.
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        let set = set_pool_attribute(&self.stream, attribute, 0);
        set.map_err(|error| device_error("cuMemPoolSetAttribute", error))
    }
}

/// Lets the stream's pool keep all freed memory.
fn keep_freed_memory(stream: &CudaStream) -> std::result::Result<(), DriverError> {
    let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    set_pool_attribute(stream, attribute, u64::MAX)
}

/// A number of the pool that a stream allocates from.
fn pool_attribute(
    stream: &CudaStream,
    attribute: CUmemPool_attribute,
) -> std::result::Result<u64, DriverError> {
    let mut value = 0_u64;
    // SAFETY: the attributes that are read here are 64-bit numbers, and the device of a context has
    // a pool.
    unsafe {
        let pool = result::device::get_mem_pool(stream.context().cu_device())?;
        result::mem_pool::get_attribute(pool, attribute, (&raw mut value).cast())?;
    }
    Ok(value)
}

/// Sets a number of the pool that a stream allocates from.
fn set_pool_attribute(
    stream: &CudaStream,
    attribute: CUmemPool_attribute,
    mut value: u64,
) -> std::result::Result<(), DriverError> {
    // SAFETY: as in `pool_attribute`.
    unsafe {
        let pool = result::device::get_mem_pool(stream.context().cu_device())?;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut value).cast())
    }
}

/// An error of the driver.
fn device_error(operation: &'static str, error: impl std::fmt::Display) -> KernelError {
    KernelError::Device {
        operation,
        message: error.to_string(),
    }
}
