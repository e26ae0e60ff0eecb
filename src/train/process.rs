//! Settings of the process as a whole.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;

/// `mi_option_purge_delay`, which the crate does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Sets up the process; must be called before other threads start.
///
/// - candle's thread pool gets one thread: it would compete with the kernels' pool for the cores.
/// - The allocator never returns freed memory to the kernel: the next step would have to fault
///   it in again, zeroed.
/// - Memory is in huge pages: weights in small pages are read at half the speed.
/// - A write beyond the limit on file sizes is an error instead of ending the process.
#[expect(
    unsafe_code,
    reason = "the environment and the allocator are of the whole process"
)]
pub fn set_up() {
    // SAFETY: no other thread runs yet. PURGE_DELAY takes milliseconds, or -1 for never; large
    // pages are a switch.
    unsafe {
        std::env::set_var("CANDLE_NUM_THREADS", "1");
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
        libmimalloc_sys::mi_option_set(libmimalloc_sys::mi_option_large_os_pages, 1);
    }
    request_huge_pages();
    survive_file_size_limit();
}

/// Makes a write beyond the limit on file sizes (`ulimit -f`) an error, like a write to a full
/// disk: without a handler, SIGXFSZ ends the process. The signal is caught rather than ignored
/// because child processes would inherit an ignored signal.
fn survive_file_size_limit() {
    // If the handler cannot be registered, such a write ends the process.
    let _ = flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Requests huge pages for the memory that the allocator has already reserved, found by the address
/// of an allocation; the allocator's option covers later reservations only. If the system has no
/// huge pages, small ones are used.
#[expect(unsafe_code, reason = "madvise is a call of the C library")]
fn request_huge_pages() {
    let probe = Box::new(0u8);
    let Some(reserved) = mapping_of(&raw const *probe as usize) else {
        return;
    };
    // SAFETY: the range is a mapping of this process, and the advice changes no contents.
    unsafe {
        libc::madvise(
            reserved.start as *mut c_void,
            reserved.len(),
            libc::MADV_HUGEPAGE,
        );
    }
}

/// The address range of the mapping that holds `address`, from `/proc/self/maps`.
fn mapping_of(address: usize) -> Option<Range<usize>> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let range = |line: &str| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        let hex = |s| usize::from_str_radix(s, 16).ok();
        Some(hex(start)?..hex(end)?)
    };
    maps.lines()
        .filter_map(range)
        .find(|range| range.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_lies_in_a_mapping_and_null_in_none() {
        let probe = Box::new(0u8);
        let address = &raw const *probe as usize;
        let found = mapping_of(address);
        assert!(found.is_some_and(|range| range.contains(&address) && range.len() >= 4096));
        assert_eq!(mapping_of(0), None);
    }
}
