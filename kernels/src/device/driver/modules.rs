//! Compiled kernels, loaded into the device.

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError};
use cudarc::nvrtc::Ptx;

use super::compile::{Architecture, compile, version};
use super::device_error;
use super::images::Images;
use crate::device::error::{KernelError, Result};
use crate::device::kernel::Kernel;
use crate::device::launcher::Argument;
use crate::device::source::{HEADERS, SOURCES, Source};

/// Bytes of shared memory that every kernel may use without a request.
const COMMON_SHARED_BYTES: usize = 48 << 10;
/// Lowest compute capability for which the kernels are written: that of bfloat16.
const LEAST_CAPABILITY: u32 = 80;

/// The kernels of a device.
pub struct Modules {
    context: Arc<CudaContext>,
    architecture: Architecture,
    images: Option<Images>,
    /// Versions of NVRTC and of the driver, as part of an image's key.
    versions: (i32, i32, i32),
    parameter_info: Option<ParameterInfo>,
    loaded: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: RwLock<HashMap<&'static str, Arc<Function>>>,
}

/// A kernel in the device.
pub struct Function {
    /// The driver's handle.
    pub handle: CudaFunction,
    /// Size of each parameter in bytes, where the driver tells it (from CUDA 12.4 on).
    parameters: Option<Vec<usize>>,
    /// Bytes of shared memory that a block may use.
    shared_bytes: AtomicUsize,
}

/// The function `cuFuncGetParamInfo` of the driver.
type ParameterInfo =
    unsafe extern "C" fn(sys::CUfunction, usize, *mut usize, *mut usize) -> sys::CUresult;

impl Modules {
    /// The kernels for a device. Compiled images are kept in the folder `images`.
    ///
    /// # Errors
    /// A device for which NVRTC cannot compile, and errors of the driver.
    pub fn new(context: Arc<CudaContext>, images: Option<&Path>) -> Result<Self> {
        let capability = context.compute_capability();
        let (major, minor) = capability.map_err(|e| device_error("cuDeviceGetAttribute", e))?;
        let mut driver = 0;
        // SAFETY: the call writes the number.
        let result = unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result();
        result.map_err(|error| device_error("cuDriverGetVersion", error))?;
        let (nvrtc_major, nvrtc_minor) = version()?;
        let capability = (10 * major + minor).unsigned_abs();
        check_capability(capability)?;
        let architecture = Architecture::of_device(capability)?;
        check_driver(architecture, (nvrtc_major, nvrtc_minor), driver)?;
        Ok(Self {
            architecture,
            images: images.map(Images::new),
            versions: (nvrtc_major, nvrtc_minor, driver),
            parameter_info: parameter_info(),
            loaded: Mutex::default(),
            functions: RwLock::default(),
            context,
        })
    }

    /// Compiles and loads all sources, each on a thread of its own.
    ///
    /// # Errors
    /// The first error of a source.
    pub fn load_all(&self) -> Result<()> {
        let images = std::thread::scope(|scope| {
            let start = |source| scope.spawn(move || self.image(source));
            let threads: Vec<_> = SOURCES.iter().map(start).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join();
            threads.into_iter().map(join).collect::<Vec<_>>()
        });
        for (source, image) in SOURCES.iter().zip(images) {
            let image = image.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            self.load(source, || Ok(image))?;
        }
        Ok(())
    }

    /// The function of a kernel.
    ///
    /// # Errors
    /// Errors of the compiler and of the driver.
    pub fn function(&self, kernel: Kernel) -> Result<Arc<Function>> {
        let functions = self.functions.read();
        let found = functions.unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = found.get(kernel.name) {
            return Ok(Arc::clone(function));
        }
        drop(found);
        let function = Arc::new(self.find(kernel)?);
        let functions = self.functions.write();
        let mut functions = functions.unwrap_or_else(PoisonError::into_inner);
        let function = functions.entry(kernel.name).or_insert(function);
        Ok(Arc::clone(function))
    }

    /// Looks for a kernel in each source's module.
    fn find(&self, kernel: Kernel) -> Result<Function> {
        for source in SOURCES {
            let module = self.load(source, || self.image(source))?;
            match module.load_function(kernel.name) {
                Ok(handle) => return Ok(Function::new(handle, self.parameter_info)),
                Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)) => {}
                Err(error) => return Err(device_error("cuModuleGetFunction", error)),
            }
        }
        Err(KernelError::Launch {
            kernel: kernel.name,
            message: "no source under cuda/ declares it".to_owned(),
        })
    }

    /// The module of a source.
    fn load(
        &self,
        source: &Source,
        image: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<Arc<CudaModule>> {
        let loaded = self.loaded.lock();
        let mut loaded = loaded.unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = loaded.get(source.name) {
            return Ok(Arc::clone(module));
        }
        let module = self.context.load_module(Ptx::from_binary(image()?));
        let module = module.map_err(|error| device_error("cuModuleLoadData", error))?;
        loaded.insert(source.name, Arc::clone(&module));
        Ok(module)
    }

    /// The compiled source, from the folder of images if it is there.
    fn image(&self, source: &Source) -> Result<Vec<u8>> {
        let compiled = || Ok(compile(source, self.architecture, &[])?.image);
        let Some(images) = &self.images else {
            return compiled();
        };
        let texts: Vec<&str> = HEADERS.iter().map(|header| header.text).collect();
        let key = (
            source.text,
            texts,
            self.architecture.options(),
            self.versions,
        );
        images.get_or(source.name, &key, compiled)
    }
}

impl Function {
    fn new(handle: CudaFunction, info: Option<ParameterInfo>) -> Self {
        Self {
            parameters: info.map(|info| parameters(info, &handle)),
            handle,
            shared_bytes: AtomicUsize::new(COMMON_SHARED_BYTES),
        }
    }

    /// Checks number and sizes of the arguments.
    ///
    /// # Errors
    /// The difference.
    pub fn check(&self, kernel: Kernel, arguments: &[Argument]) -> Result<()> {
        let passed = arguments.iter().map(Argument::size);
        match &self.parameters {
            Some(sizes) if !passed.clone().eq(sizes.iter().copied()) => Err(KernelError::Launch {
                kernel: kernel.name,
                message: format!(
                    "arguments of {:?} bytes where parameters of {sizes:?} bytes are declared",
                    passed.collect::<Vec<_>>()
                ),
            }),
            _ => Ok(()),
        }
    }

    /// Requests as much shared memory for a block.
    ///
    /// # Errors
    /// If the device has less.
    pub fn allow_shared(&self, kernel: Kernel, context: &CudaContext, bytes: usize) -> Result<()> {
        if bytes <= self.shared_bytes.load(Ordering::Relaxed) {
            return Ok(());
        }
        let most = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
        let most = most.map_err(|error| device_error("cuDeviceGetAttribute", error))?;
        let most = usize::try_from(most).unwrap_or(0);
        if bytes > most {
            return Err(KernelError::Launch {
                kernel: kernel.name,
                message: format!(
                    "{bytes} bytes of shared memory a block, where this GPU has {most}"
                ),
            });
        }
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let result = self.handle.set_attribute(attribute, bytes as i32);
        result.map_err(|error| device_error("cuFuncSetAttribute", error))?;
        self.shared_bytes.fetch_max(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// Checks that a device has all instructions of the kernels.
fn check_capability(capability: u32) -> Result<()> {
    match capability >= LEAST_CAPABILITY {
        true => Ok(()),
        false => Err(KernelError::Device {
            operation: "the GPU",
            message: format!(
                "its compute capability is {}.{}, and the kernels need {}.{} or higher (Ampere, \
                 bfloat16)",
                capability / 10,
                capability % 10,
                LEAST_CAPABILITY / 10,
                LEAST_CAPABILITY % 10
            ),
        }),
    }
}

/// Checks that a driver loads what this NVRTC compiles: machine code of the same major version, PTX
/// of its own version and older ones (CUDA Compatibility, "Minor Version Compatibility"). The
/// driver's version is `1000 · major + 10 · minor`.
fn check_driver(architecture: Architecture, nvrtc: (i32, i32), driver: i32) -> Result<()> {
    let own = (driver / 1000, driver % 1000 / 10);
    let loads = match architecture {
        Architecture::Machine(_) => own.0 >= nvrtc.0,
        Architecture::Ptx(_) => own >= nvrtc,
    };
    match loads {
        true => Ok(()),
        false => Err(KernelError::Device {
            operation: "the driver",
            message: format!(
                "it is of CUDA {}.{}, and does not load what NVRTC {}.{} compiles; update the \
                 driver, or install NVRTC {}",
                own.0, own.1, nvrtc.0, nvrtc.1, own.0
            ),
        }),
    }
}

/// The driver's function of this purpose, if it has one.
fn parameter_info() -> Option<ParameterInfo> {
    const SINCE: i32 = 12_040;
    let mut address: *mut c_void = std::ptr::null_mut();
    let mut status = sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    // SAFETY: the call writes the address of a function of the driver, or null; its type is that of
    // the CUDA Driver API, "cuFuncGetParamInfo".
    unsafe {
        let name = c"cuFuncGetParamInfo".as_ptr();
        let found =
            sys::cuGetProcAddress_v2(name, &raw mut address, SINCE, 0, &raw mut status).result();
        (found.is_ok() && !address.is_null())
            .then(|| std::mem::transmute::<*mut c_void, ParameterInfo>(address))
    }
}

/// Size of each parameter of a function.
fn parameters(info: ParameterInfo, function: &CudaFunction) -> Vec<usize> {
    let size = |index| {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded, and the call writes both numbers, or fails behind the
        // last parameter.
        let result = unsafe {
            info(
                function.cu_function(),
                index,
                &raw mut offset,
                &raw mut size,
            )
        };
        result.result().is_ok().then_some(size)
    };
    (0..).map_while(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_gpus_and_old_drivers_are_refused() {
        assert_eq!(check_capability(80), Ok(()));
        let old = check_capability(75).unwrap_err().to_string();
        assert!(old.contains("is 7.5") && old.contains("need 8.0"), "{old}");

        let (machine, ptx) = (Architecture::Machine(90), Architecture::Ptx(90));
        assert_eq!(check_driver(machine, (12, 9), 12_020), Ok(()));
        assert_eq!(check_driver(machine, (12, 9), 13_000), Ok(()));
        assert_eq!(check_driver(ptx, (12, 9), 12_090), Ok(()));
        for (architecture, driver) in [(machine, 11_080), (ptx, 12_080)] {
            let refused = check_driver(architecture, (12, 9), driver).unwrap_err();
            let refused = refused.to_string();
            assert!(refused.contains("NVRTC 12.9"), "{refused}");
            assert!(refused.contains("update the driver"), "{refused}");
        }
    }
}
