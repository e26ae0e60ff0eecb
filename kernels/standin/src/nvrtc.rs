//! libnvrtc: "compiles" the sources that the emulator was built from.

use std::ffi::{CStr, c_char, c_int};

use kernels::device::{HEADERS, SOURCES};

use crate::module::IMAGE;

const COMPILATION: c_int = 6;
const INVALID_INPUT: c_int = 3;

/// Capabilities for which the library compiles.
const CAPABILITIES: [c_int; 3] = [80, 89, 90];

/// A program.
pub struct EmulatedProgram {
    /// Name of the emulator's source that it equals.
    source: Option<&'static str>,
    image: Vec<u8>,
    log: Vec<u8>,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> c_int {
    // SAFETY: the caller passes the addresses of two numbers.
    unsafe {
        *major = 12;
        *minor = 8;
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetNumSupportedArchs(count: *mut c_int) -> c_int {
    // SAFETY: the caller passes the address of a number.
    unsafe { *count = CAPABILITIES.len() as c_int };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetSupportedArchs(known: *mut c_int) -> c_int {
    // SAFETY: the caller passes room for all.
    unsafe { std::ptr::copy_nonoverlapping(CAPABILITIES.as_ptr(), known, CAPABILITIES.len()) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcCreateProgram(
    program: *mut *mut EmulatedProgram,
    text: *const c_char,
    _name: *const c_char,
    header_count: c_int,
    headers: *const *const c_char,
    _header_names: *const *const c_char,
) -> c_int {
    // SAFETY: the caller passes texts, and as many headers as it says.
    let (text, headers) = unsafe {
        let count = usize::try_from(header_count).unwrap_or(0);
        let header = |index: usize| CStr::from_ptr(*headers.add(index)).to_bytes();
        let headers: Vec<&[u8]> = (0..count).map(header).collect();
        (CStr::from_ptr(text).to_bytes(), headers)
    };
    let own = HEADERS.iter().map(|header| header.text.as_bytes());
    let has_own_headers = own.eq(headers);
    let source = SOURCES.iter().find(|source| source.text.as_bytes() == text);
    let created = EmulatedProgram {
        source: source.filter(|_| has_own_headers).map(|source| source.name),
        image: Vec::new(),
        log: vec![0],
    };
    // SAFETY: the caller passes the address of a handle.
    unsafe { *program = Box::into_raw(Box::new(created)) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcCompileProgram(
    program: *mut EmulatedProgram,
    count: c_int,
    options: *const *const c_char,
) -> c_int {
    // SAFETY: the handle is one of `nvrtcCreateProgram`, and the caller passes as many options.
    let (program, mut options) = unsafe {
        let options = (0..usize::try_from(count).unwrap_or(0)).map(|i| *options.add(i));
        (&mut *program, options.map(|option| CStr::from_ptr(option)))
    };
    let Some(source) = program.source else {
        program.log = b"the emulated GPU was not built from this source\0".to_vec();
        return COMPILATION;
    };
    // The emulator's own code is compiled so.
    if !options.any(|option| option == c"--fmad=false") {
        program.log = b"the emulated GPU needs --fmad=false\0".to_vec();
        return COMPILATION;
    }
    program.image = format!("{IMAGE}{source}\n\0").into_bytes();
    0
}

/// The part of a program that a caller asks for.
type Part = fn(&EmulatedProgram) -> &[u8];

/// # Safety
/// The handle must be one of `nvrtcCreateProgram`, and `size` the address of a number.
unsafe fn size_of(program: *const EmulatedProgram, size: *mut usize, part: Part) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let part = part(&*program);
        *size = part.len();
        c_int::from(part.is_empty()) * INVALID_INPUT
    }
}

/// # Safety
/// The handle must be one of `nvrtcCreateProgram`, and `to` have room for the part.
unsafe fn copy(program: *const EmulatedProgram, to: *mut c_char, part: Part) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        let part = part(&*program);
        std::ptr::copy_nonoverlapping(part.as_ptr().cast(), to, part.len());
    }
    0
}

macro_rules! parts {
    ($($size:ident, $get:ident, $field:ident;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $size(program: *const EmulatedProgram, size: *mut usize) -> c_int {
            // SAFETY: the caller's promise is the function's condition.
            unsafe { size_of(program, size, |program| &program.$field) }
        }

        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $get(program: *const EmulatedProgram, to: *mut c_char) -> c_int {
            // SAFETY: the caller's promise is the function's condition.
            unsafe { copy(program, to, |program| &program.$field) }
        }
    )*};
}

parts! {
    nvrtcGetCUBINSize, nvrtcGetCUBIN, image;
    nvrtcGetPTXSize, nvrtcGetPTX, image;
    nvrtcGetProgramLogSize, nvrtcGetProgramLog, log;
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcDestroyProgram(program: *mut *mut EmulatedProgram) -> c_int {
    // SAFETY: the handle is one of `nvrtcCreateProgram` and is not used after this.
    drop(unsafe { Box::from_raw(*program) });
    0
}
