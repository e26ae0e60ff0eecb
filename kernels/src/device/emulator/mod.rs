//! An emulator of a GPU: it runs the CUDA sources, compiled as host code, a block at a time.
//!
//! A thread of a block is a coroutine. It runs until it waits for the other threads of its block
//! (a barrier) or of its warp (an exchange of values), and the emulator chooses who runs next by an
//! [`Order`]. A warp runs as far as it can before another one does, so warps are as far apart as
//! barriers allow. A kernel without races gives the same bits in every order.
//!
//! Faults that a GPU would pass over are errors here: threads of a block that wait at different
//! places, a thread that has ended while others wait for it, and a lane that reads another lane
//! outside its mask. Each allocation ends at a page that cannot be accessed, so a read or write
//! behind it kills the process; new memory, shared memory included, is filled with NaN.
//!
//! The emulator cannot show code generation, the rounding of tensor cores, the order of memory
//! operations between warps, or speed.

mod block;
mod entry;
mod gemm;
mod memory;
mod thread;

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use crate::device::error::{KernelError, Result};
use crate::device::kernel::Kernel;
use crate::device::launcher::{Allocation, Argument, DeviceMemory, Gemm, Grid, Launcher};
use block::Block;
use entry::Entry;
use memory::Memory;
pub use thread::Order;

/// An emulated device.
pub struct Emulator {
    order: Order,
    memory: Mutex<Memory>,
}

impl Emulator {
    /// A device that runs the threads of a block in this order, with `bytes` of memory.
    pub fn new(order: Order, bytes: usize) -> Self {
        Self {
            order,
            memory: Mutex::new(Memory::new(bytes)),
        }
    }

    /// Size of each parameter of a kernel in bytes.
    ///
    /// # Errors
    /// If there is no such kernel.
    pub fn parameters(kernel: Kernel) -> Result<&'static [usize]> {
        Ok(Entry::find(kernel)?.sizes())
    }

    fn pages(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Launcher for Emulator {
    fn allocate(&self, bytes: usize) -> Result<Allocation> {
        self.pages().allocate(bytes)
    }

    fn free(&self, allocation: Allocation) {
        self.pages().free(allocation);
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: the caller promises that `to` points to as many bytes.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: the caller promises that `from` points to as many bytes.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller promises as many bytes at both addresses.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller promises that `at` points to as many bytes.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, arguments: &[Argument]) -> Result<()> {
        let entry = Entry::find(kernel)?;
        entry.check(kernel, arguments)?;
        let pointers: Vec<*const c_void> = arguments.iter().map(pointer).collect();
        let mut block = Block::new(entry, &pointers, grid)?;
        for index in self.order.of_blocks(grid.blocks) {
            block
                .run(index, self.order)
                .map_err(|message| KernelError::Failed {
                    kernel: kernel.name,
                    block: index,
                    message,
                })?;
        }
        Ok(())
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        // SAFETY: the caller's promise is the function's condition.
        unsafe { gemm::multiply(gemm) };
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn memory(&self) -> Result<DeviceMemory> {
        Ok(self.pages().counts())
    }

    fn restart_peak(&self) -> Result<()> {
        self.pages().restart_peak();
        Ok(())
    }
}

/// The address of an argument's value.
fn pointer(argument: &Argument) -> *const c_void {
    match argument {
        Argument::Pointer(value) | Argument::U64(value) => std::ptr::from_ref(value).cast(),
        Argument::U32(value) => std::ptr::from_ref(value).cast(),
        Argument::F32(value) => std::ptr::from_ref(value).cast(),
    }
}
