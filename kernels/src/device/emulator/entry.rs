//! The kernels as functions of the host.

use std::ffi::{CString, c_char, c_void};

use crate::device::error::{KernelError, Result};
use crate::device::kernel::Kernel;
use crate::device::launcher::Argument;

/// A kernel as `KERNEL` in `cuda_emulator.h` declares it.
#[repr(C)]
pub struct Entry {
    name: *const c_char,
    call: unsafe extern "C" fn(arguments: *const *const c_void),
    sizes: *const usize,
    count: usize,
}

unsafe extern "C" {
    fn emulated_kernel(name: *const c_char) -> *const Entry;
}

impl Entry {
    /// The function of a kernel.
    ///
    /// # Errors
    /// If no source declares the kernel.
    pub fn find(kernel: Kernel) -> Result<&'static Self> {
        let name = CString::new(kernel.name).expect("a name without NUL");
        // SAFETY: entries are constants of the program, written before `main`.
        let found = unsafe { emulated_kernel(name.as_ptr()).as_ref() };
        found.ok_or_else(|| KernelError::Launch {
            kernel: kernel.name,
            message: "no source under cuda/ declares it with KERNEL".to_owned(),
        })
    }

    /// Size of each parameter in bytes.
    pub fn sizes(&self) -> &'static [usize] {
        // SAFETY: the entry, a constant of the program, holds the size of each parameter.
        unsafe { std::slice::from_raw_parts(self.sizes, self.count) }
    }

    /// Checks number and sizes of the arguments.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, kernel: Kernel, arguments: &[Argument]) -> Result<()> {
        let sizes = self.sizes();
        let passed: Vec<usize> = arguments.iter().map(Argument::size).collect();
        match passed == sizes {
            true => Ok(()),
            false => Err(KernelError::Launch {
                kernel: kernel.name,
                message: format!(
                    "arguments of {passed:?} bytes where parameters of {sizes:?} bytes are declared"
                ),
            }),
        }
    }

    /// Runs the function for the thread that runs now.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, see
    /// [`Launcher::launch`](crate::device::Launcher::launch).
    pub unsafe fn call(&self, arguments: &[*const c_void]) {
        // SAFETY: the caller's promise is the function's condition.
        unsafe { (self.call)(arguments.as_ptr()) }
    }
}
