//! libcuda: modules, kernels and launches.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::slice::from_raw_parts;
use std::sync::atomic::{AtomicUsize, Ordering};

use kernels::device::emulator::Emulator;
use kernels::device::{Argument, Grid, Kernel, Launcher, SOURCES};

use crate::candle::{CandleKernel, KERNELS};
use crate::device::DriverStatus::{InvalidImage, InvalidValue, NotFound};
use crate::device::{DEVICE, DriverStatus, status_of};
use crate::driver::SHARED_BYTES;
use crate::{say, status};

/// Begins an image, before the name of its source.
pub const IMAGE: &str = "image of the emulated GPU: ";
/// Bytes of shared memory that every kernel may use without a request.
const COMMON_SHARED_BYTES: usize = 48 << 10;

/// A loaded module.
struct EmulatedModule {
    /// First line of the image.
    name: String,
    /// Whether it is of one of the emulator's sources.
    is_own: bool,
}

/// The code of a kernel.
#[derive(Clone, Copy)]
enum Code {
    /// A kernel of the emulator.
    Own(Kernel),
    /// A kernel of candle.
    Candle(&'static CandleKernel),
}

/// A kernel of a module.
struct EmulatedFunction {
    code: Code,
    sizes: &'static [usize],
    shared_bytes: AtomicUsize,
}

impl EmulatedModule {
    /// The code of a kernel, and the sizes of its parameters.
    fn code(&self, name: &CStr) -> Result<(Code, &'static [usize]), DriverStatus> {
        let is_named = |known: &str| name.to_bytes() == known.as_bytes();
        if self.is_own {
            let mut own = Kernel::ALL.iter();
            if let Some(kernel) = own.find(|kernel| is_named(kernel.name)) {
                let sizes = Emulator::parameters(*kernel).map_err(status_of)?;
                return Ok((Code::Own(*kernel), sizes));
            }
        } else if let Some(kernel) = KERNELS.iter().find(|kernel| is_named(kernel.name)) {
            return Ok((Code::Candle(kernel), kernel.sizes));
        }
        say(format_args!("no kernel {name:?} in {:?}", self.name));
        Err(NotFound)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_void) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        // SAFETY: an image is a text here, of this NVRTC or of the stand-in for nvcc.
        let image = unsafe { CStr::from_ptr(image.cast()) };
        let image = image.to_str().map_err(|_| InvalidImage)?;
        let name = image.lines().next().unwrap_or_default();
        let own = name.strip_prefix(IMAGE);
        let loaded = EmulatedModule {
            name: name.to_owned(),
            is_own: own.is_some_and(|own| SOURCES.iter().any(|source| source.name == own)),
        };
        // SAFETY: the caller passes the address of a handle.
        unsafe { *module = Box::into_raw(Box::new(loaded)).cast() };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: *mut c_void) -> c_int {
    // SAFETY: the handle is one of `cuModuleLoadData` and is not used after this.
    drop(unsafe { Box::from_raw(module.cast::<EmulatedModule>()) });
    0
}

/// All of the emulator's kernels are in each of its modules. Functions are not freed: a program has
/// few.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        // SAFETY: the handle is one of `cuModuleLoadData`, and the caller passes a name.
        let (module, name) = unsafe { (&*module.cast::<EmulatedModule>(), CStr::from_ptr(name)) };
        let (code, sizes) = module.code(name)?;
        let found = EmulatedFunction {
            code,
            sizes,
            shared_bytes: AtomicUsize::new(COMMON_SHARED_BYTES),
        };
        // SAFETY: the caller passes the address of a handle.
        unsafe { *function = Box::into_raw(Box::new(found)).cast() };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetParamInfo(
    function: *mut c_void,
    index: usize,
    offset: *mut usize,
    size: *mut usize,
) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        // SAFETY: the handle is one of `cuModuleGetFunction`.
        let sizes = unsafe { (*function.cast::<EmulatedFunction>()).sizes };
        let own = sizes.get(index).ok_or(InvalidValue)?;
        let aligned = |end: usize, size: &usize| end.next_multiple_of(*size) + size;
        let end = sizes[..=index].iter().fold(0, aligned);
        // SAFETY: the caller passes the addresses of two numbers.
        unsafe {
            *size = *own;
            *offset = end - own;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(
    function: *mut c_void,
    attribute: c_int,
    value: c_int,
) -> c_int {
    const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
    if attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES || !(0..=SHARED_BYTES).contains(&value) {
        return InvalidValue.into();
    }
    // SAFETY: the handle is one of `cuModuleGetFunction`.
    let function = unsafe { &*function.cast::<EmulatedFunction>() };
    function
        .shared_bytes
        .store(value as usize, Ordering::Relaxed);
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    x: c_uint,
    y: c_uint,
    z: c_uint,
    threads: c_uint,
    threads_y: c_uint,
    threads_z: c_uint,
    shared_bytes: c_uint,
    _stream: *mut c_void,
    parameters: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> c_int {
    status(|| -> Result<(), DriverStatus> {
        // SAFETY: the handle is one of `cuModuleGetFunction`.
        let function = unsafe { &*function.cast::<EmulatedFunction>() };
        let most = function.shared_bytes.load(Ordering::Relaxed);
        let is_empty = [x, y, z, threads].contains(&0);
        if is_empty || threads_y * threads_z != 1 || shared_bytes as usize > most {
            return Err(InvalidValue);
        }
        let grid = Grid {
            blocks: [x, y, z],
            threads,
            shared_bytes: shared_bytes as usize,
        };
        // SAFETY: the caller passes the address of each parameter, of the sizes of the kernel.
        let arguments: Vec<Argument> = unsafe {
            let addresses = from_raw_parts(parameters, function.sizes.len());
            let sizes = function.sizes.iter();
            sizes
                .zip(addresses)
                .map(|(size, at)| argument(*size, *at))
                .collect()
        };
        match function.code {
            // SAFETY: as on a GPU, the caller answers for the pointers.
            Code::Own(kernel) => unsafe {
                let launched = DEVICE.emulator.launch(kernel, grid, &arguments);
                launched.map_err(status_of)
            },
            Code::Candle(kernel) => (kernel.run)(&arguments),
        }
    })
}

/// The argument at this address.
///
/// # Safety
/// There must be as many bytes.
unsafe fn argument(size: usize, at: *mut c_void) -> Argument {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            4 => Argument::U32(*at.cast()),
            _ => Argument::U64(*at.cast()),
        }
    }
}
