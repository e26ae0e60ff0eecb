//! Compilation by NVRTC when the program runs.

use std::ffi::{CString, c_char, c_int};

use cudarc::nvrtc::result::{self, NvrtcError};
use cudarc::nvrtc::sys;

use crate::device::error::{KernelError, Result};
use crate::device::source::{HEADERS, Source};

/// Options of every compilation. Products and sums are fused where a kernel calls `fmaf`, and
/// nowhere else.
const OPTIONS: [&str; 2] = ["--fmad=false", "-std=c++17"];

/// The code that a compilation makes. A capability is `10 · major + minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Machine code for devices of this capability.
    Machine(u32),
    /// PTX of this capability, which the driver compiles further.
    Ptx(u32),
}

/// A compiled source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The module, as `cuModuleLoadData` reads it.
    pub image: Vec<u8>,
    /// Messages of the compiler.
    pub log: String,
}

impl Architecture {
    /// The best code for a device of this capability: machine code, or PTX of the highest
    /// capability that NVRTC knows, if the device is newer than that.
    ///
    /// # Errors
    /// If NVRTC supports no capability of the device.
    pub fn of_device(capability: u32) -> Result<Self> {
        let known = supported().map_err(|error| failed("its list of architectures", error))?;
        if known.contains(&capability) {
            return Ok(Self::Machine(capability));
        }
        let highest = known.iter().filter(|known| **known < capability).max();
        highest
            .map(|known| Self::Ptx(*known))
            .ok_or_else(|| KernelError::Compilation {
                source_name: "the kernels",
                message: format!(
                    "the GPU's compute capability is {}.{}, and this NVRTC compiles for {}.{} and \
                     above",
                    capability / 10,
                    capability % 10,
                    known.iter().min().unwrap_or(&0) / 10,
                    known.iter().min().unwrap_or(&0) % 10,
                ),
            })
    }

    /// The options of NVRTC for this architecture.
    pub fn options(self) -> Vec<String> {
        let architecture = match self {
            Self::Machine(capability) => format!("--gpu-architecture=sm_{capability}"),
            Self::Ptx(capability) => format!("--gpu-architecture=compute_{capability}"),
        };
        let common = OPTIONS.iter().map(|option| (*option).to_owned());
        std::iter::once(architecture).chain(common).collect()
    }
}

/// Compiles a source, with further options of NVRTC.
///
/// # Errors
/// The messages of the compiler.
pub fn compile(source: &Source, architecture: Architecture, further: &[&str]) -> Result<Compiled> {
    let program = NvrtcProgram::new(source).map_err(|error| failed(source.name, error))?;
    let mut options = architecture.options();
    options.extend(further.iter().map(|option| (*option).to_owned()));
    // SAFETY: the program is not destroyed.
    let compiled = unsafe { result::compile_program(program.handle, &options) };
    let log = program.log().map_err(|error| failed(source.name, error))?;
    if let Err(error) = compiled {
        return Err(KernelError::Compilation {
            source_name: source.name,
            message: format!("{error}\n{log}"),
        });
    }
    let image = program.image(architecture);
    Ok(Compiled {
        image: image.map_err(|error| failed(source.name, error))?,
        log,
    })
}

/// Major and minor version of NVRTC.
///
/// # Errors
/// Errors of NVRTC.
pub fn version() -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the call writes both numbers.
    let result = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result();
    result.map_err(|error| failed("its version", error))?;
    Ok((major, minor))
}

/// The capabilities for which NVRTC compiles.
fn supported() -> std::result::Result<Vec<u32>, NvrtcError> {
    let mut count = 0;
    // SAFETY: the first call writes the number of entries that the second one writes.
    let mut known = unsafe {
        sys::nvrtcGetNumSupportedArchs(&raw mut count).result()?;
        let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
        sys::nvrtcGetSupportedArchs(known.as_mut_ptr()).result()?;
        known
    };
    known.retain(|capability| *capability > 0);
    Ok(known.into_iter().map(c_int::cast_unsigned).collect())
}

fn failed(source: &'static str, error: NvrtcError) -> KernelError {
    KernelError::Compilation {
        source_name: source,
        message: error.to_string(),
    }
}

/// A program of NVRTC.
struct NvrtcProgram {
    handle: sys::nvrtcProgram,
}

impl NvrtcProgram {
    fn new(source: &Source) -> std::result::Result<Self, NvrtcError> {
        let text = |text: &str| CString::new(text).expect("a source without NUL");
        let pointers = |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).collect::<Vec<_>>();
        let headers: Vec<CString> = HEADERS.iter().map(|header| text(header.text)).collect();
        let names: Vec<CString> = HEADERS.iter().map(|header| text(header.name)).collect();
        let mut handle = std::ptr::null_mut();
        // SAFETY: NVRTC copies all texts while it creates the program.
        unsafe {
            sys::nvrtcCreateProgram(
                &raw mut handle,
                text(source.text).as_ptr(),
                text(source.name).as_ptr(),
                HEADERS.len() as c_int,
                pointers(&headers).as_ptr(),
                pointers(&names).as_ptr(),
            )
            .result()?;
        }
        Ok(Self { handle })
    }

    /// The compiled module.
    fn image(&self, architecture: Architecture) -> std::result::Result<Vec<u8>, NvrtcError> {
        match architecture {
            Architecture::Machine(_) => self.bytes(sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN),
            Architecture::Ptx(_) => self.bytes(sys::nvrtcGetPTXSize, sys::nvrtcGetPTX),
        }
    }

    fn log(&self) -> std::result::Result<String, NvrtcError> {
        let log = self.bytes(sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog)?;
        let text = String::from_utf8_lossy(&log);
        Ok(text.trim_end_matches(['\0', '\n']).to_owned())
    }

    /// The bytes that `get` writes, as many as `size` says.
    fn bytes(
        &self,
        size: unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult,
        get: unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult,
    ) -> std::result::Result<Vec<u8>, NvrtcError> {
        let mut len = 0;
        // SAFETY: the first call writes the number of bytes that the second one writes.
        unsafe {
            size(self.handle, &raw mut len).result()?;
            let mut bytes = vec![0_u8; len];
            get(self.handle, bytes.as_mut_ptr().cast()).result()?;
            Ok(bytes)
        }
    }
}

impl Drop for NvrtcProgram {
    fn drop(&mut self) {
        // SAFETY: the program is this value's own.
        let _ = unsafe { result::destroy_program(self.handle) };
    }
}
