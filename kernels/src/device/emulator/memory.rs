//! Memory whose end is guarded.

use std::collections::HashMap;

use crate::device::error::{KernelError, Result};
use crate::device::launcher::{Allocation, DeviceMemory};

/// Alignment of an allocation's size, so that its end is the end of a page.
const ALIGNMENT: usize = 16;
/// The byte that fills new memory: an `f32` of such bytes is NaN.
const FILL: u8 = 0xff;

/// The memory of an emulated device.
pub struct Memory {
    limit: usize,
    allocated: usize,
    /// Most bytes that were allocated at once since [`Memory::restart_peak`].
    peak: usize,
    /// Start and size of the mapping that holds each allocation.
    mappings: HashMap<u64, Mapping>,
}

/// Pages of which the last cannot be accessed.
struct Mapping {
    start: *mut libc::c_void,
    bytes: usize,
}

// SAFETY: a mapping is owned by one value and is not tied to a thread.
unsafe impl Send for Mapping {}

impl Memory {
    /// Memory of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            allocated: 0,
            peak: 0,
            mappings: HashMap::new(),
        }
    }

    /// The bytes in use.
    pub fn counts(&self) -> DeviceMemory {
        DeviceMemory {
            allocated: self.allocated,
            peak: self.peak,
            free: self.limit - self.allocated,
            total: self.limit,
        }
    }

    /// Begins the peak anew.
    pub fn restart_peak(&mut self) {
        self.peak = self.allocated;
    }

    /// Allocates `bytes` that end before a guard page, rounded up to 16.
    ///
    /// # Errors
    /// If fewer bytes are free.
    pub fn allocate(&mut self, bytes: usize) -> Result<Allocation> {
        let free = self.limit - self.allocated;
        let refused = KernelError::OutOfMemory {
            requested: bytes,
            free,
        };
        if bytes > free {
            return Err(refused);
        }
        let usable = bytes.next_multiple_of(ALIGNMENT);
        let mapping = Mapping::new(usable).ok_or(refused)?;
        let pointer = mapping.end_of_usable() - usable as u64;
        // SAFETY: the mapping holds `usable` bytes from `pointer` on.
        unsafe { std::ptr::write_bytes(pointer as *mut u8, FILL, usable) };
        self.allocated += bytes;
        self.peak = self.peak.max(self.allocated);
        self.mappings.insert(pointer, mapping);
        Ok(Allocation { pointer, bytes })
    }

    /// Frees an allocation; later accesses to it kill the process.
    pub fn free(&mut self, allocation: Allocation) {
        if self.mappings.remove(&allocation.pointer).is_some() {
            self.allocated -= allocation.bytes;
        }
    }
}

impl Mapping {
    /// Pages for `usable` bytes and a guard page; `None` if the system has no memory.
    fn new(usable: usize) -> Option<Self> {
        let page = page();
        let bytes = usable.next_multiple_of(page) + page;
        // SAFETY: a new anonymous mapping touches no other memory, and the protected page is its
        // last one.
        unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if start == libc::MAP_FAILED {
                return None;
            }
            let mapping = Self { start, bytes };
            let guard = start.byte_add(bytes - page);
            (libc::mprotect(guard, page, libc::PROT_NONE) == 0).then_some(mapping)
        }
    }

    /// The address of the guard page.
    fn end_of_usable(&self) -> u64 {
        self.start as u64 + (self.bytes - page()) as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and nothing else unmaps it.
        unsafe { libc::munmap(self.start, self.bytes) };
    }
}

fn page() -> usize {
    // SAFETY: the call reads a constant of the system.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}
