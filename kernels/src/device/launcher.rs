//! The interface to a device, which a driver or the emulator implements.

use std::any::Any;

use crate::arguments::{Precision, Receive};
use crate::device::error::{KernelError, Result};
use crate::device::kernel::Kernel;

/// A device that holds memory and runs kernels, in the order in which it is asked.
pub trait Launcher: Any + Send + Sync {
    /// Allocates memory with undefined contents, aligned for every type.
    ///
    /// # Errors
    /// If the device has too little memory.
    fn allocate(&self, bytes: usize) -> Result<Allocation>;

    /// Frees memory of [`Self::allocate`].
    fn free(&self, allocation: Allocation);

    /// Copies host memory to the device.
    ///
    /// # Safety
    /// `to` must point to as many bytes of an allocation that is not freed.
    ///
    /// # Errors
    /// Errors of the device.
    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<()>;

    /// Copies device memory to the host, after all work before it.
    ///
    /// # Safety
    /// `from` must point to as many bytes of an allocation that is not freed.
    ///
    /// # Errors
    /// Errors of the device, and of the kernels before.
    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;

    /// Copies memory within the device.
    ///
    /// # Safety
    /// Both must point to as many bytes of allocations that are not freed, without overlap.
    ///
    /// # Errors
    /// Errors of the device.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Sets bytes to zero.
    ///
    /// # Safety
    /// `at` must point to as many bytes of an allocation that is not freed.
    ///
    /// # Errors
    /// Errors of the device.
    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<()>;

    /// Runs a kernel.
    ///
    /// # Safety
    /// The pointers among the arguments must point to as many elements as the kernel reads and
    /// writes there for the other arguments and the grid.
    ///
    /// # Errors
    /// Arguments that are not those of the kernel, and errors of the device.
    unsafe fn launch(&self, kernel: Kernel, grid: Grid, arguments: &[Argument]) -> Result<()>;

    /// Multiplies two matrices.
    ///
    /// # Safety
    /// The matrices must lie within allocations that are not freed, and the result must overlap no
    /// factor.
    ///
    /// # Errors
    /// Errors of the device.
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()>;

    /// Waits for all work.
    ///
    /// # Errors
    /// Errors of the kernels before.
    fn synchronize(&self) -> Result<()>;

    /// The memory in use, by this launcher and by others that share its pool.
    ///
    /// # Errors
    /// Errors of the device.
    fn memory(&self) -> Result<DeviceMemory>;

    /// Begins [`DeviceMemory::peak`] anew.
    ///
    /// # Errors
    /// Errors of the device.
    fn restart_peak(&self) -> Result<()>;
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes that are allocated.
    pub allocated: usize,
    /// Most bytes that were allocated at once, since the beginning or the last
    /// [restart](Launcher::restart_peak).
    pub peak: usize,
    /// Bytes that can still be allocated. Other programs may take them first.
    pub free: usize,
    /// Bytes of the device.
    pub total: usize,
}

/// A product of row-major matrices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemm {
    /// Rows and columns of the result, and the length of the sums.
    pub sizes: [usize; 3],
    /// The factors.
    pub factors: [Factor; 2],
    /// Address of the result, `f32`, and the distance of its rows in elements.
    pub result: (u64, usize),
    /// Element type of the factors.
    pub number: FactorType,
    /// Whether the product overwrites the result's matrix or is added to it.
    pub receive: Receive,
    /// Precision of `f32` factors.
    pub precision: Precision,
}

/// A factor of a product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factor {
    /// Address of the first element.
    pub pointer: u64,
    /// Distance of the rows in memory, in elements.
    pub stride: usize,
    /// Whether the factor is the transpose of the matrix in memory.
    pub transposed: bool,
}

/// Element type of a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FactorType {
    /// Single precision.
    F32,
    /// bfloat16.
    Bf16,
}

/// Memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Address of the first byte.
    pub pointer: u64,
    /// Size in bytes.
    pub bytes: usize,
}

/// Blocks and threads of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x, y and z.
    pub blocks: [u32; 3],
    /// Threads of a block, in x.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: usize,
}

impl Grid {
    /// Threads of a block where a kernel has no reason for another number.
    pub const THREADS: u32 = 128;

    /// The most blocks in x, y and z (CUDA C++ Programming Guide, "Compute Capabilities").
    const MOST_BLOCKS: [u32; 3] = [(1 << 31) - 1, 65_535, 65_535];
    /// The most threads of a block.
    const MOST_THREADS: u32 = 1024;

    /// One thread for each of `items`, without shared memory. A grid of too many blocks is refused
    /// where it is launched.
    pub fn over(items: u64) -> Self {
        let blocks = items.div_ceil(Self::THREADS.into());
        Self {
            blocks: [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1],
            threads: Self::THREADS,
            shared_bytes: 0,
        }
    }

    /// Checks the limits of CUDA.
    ///
    /// # Errors
    /// Too many blocks or threads.
    pub(crate) fn check(&self, kernel: Kernel) -> Result<()> {
        let mut pairs = self.blocks.iter().zip(Self::MOST_BLOCKS);
        match pairs.all(|(&blocks, most)| blocks <= most) && self.threads <= Self::MOST_THREADS {
            true => Ok(()),
            false => Err(KernelError::Launch {
                kernel: kernel.name,
                message: format!("a grid of {self:?} is beyond the limits of CUDA"),
            }),
        }
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A device address; 0 is the null pointer.
    Pointer(u64),
    /// A 32-bit unsigned integer.
    U32(u32),
    /// A 64-bit unsigned integer.
    U64(u64),
    /// A single-precision number.
    F32(f32),
}

impl Argument {
    /// Size in bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Pointer(_) | Self::U64(_) => 8,
            Self::U32(_) | Self::F32(_) => 4,
        }
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<u64> for Argument {
    fn from(value: u64) -> Self {
        Self::U64(value)
    }
}

impl From<usize> for Argument {
    fn from(value: usize) -> Self {
        Self::U64(value as u64)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_beyond_the_limits_of_cuda_are_refused() {
        let grid = |blocks, threads| Grid {
            blocks,
            threads,
            shared_bytes: 0,
        };
        let most = Grid::MOST_BLOCKS;
        assert!(grid(most, 1024).check(Kernel::ADD).is_ok());
        for refused in [
            grid([1 << 31, 1, 1], 32),
            grid([1, 65_536, 1], 32),
            grid([1, 1, 65_536], 32),
            grid([1; 3], 1025),
            Grid::over(u64::MAX),
        ] {
            let message = refused.check(Kernel::ADD).unwrap_err().to_string();
            assert!(message.contains("beyond the limits of CUDA"), "{message}");
        }
        assert_eq!(Grid::over(129).blocks, [2, 1, 1]);
    }
}
