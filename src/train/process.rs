//! Settings of the process as a whole.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;

/// `mi_option_purge_delay`, which the crate does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Settings of the process, made before anything else runs: candle's own pool would spin beside the
/// one that does the work, memory given back between two steps is zeroed by the kernel and faulted
/// in again in the next, and weights in small pages are read at half the speed.
pub fn set_up() {
    // SAFETY: no other thread runs yet, and the options take a number of milliseconds or -1 for
    // never, and a switch.
    unsafe {
        std::env::set_var("CANDLE_NUM_THREADS", "1");
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
        libmimalloc_sys::mi_option_set(libmimalloc_sys::mi_option_large_os_pages, 1);
    }
    ask_for_huge_pages();
    outlive_a_file_limit();
}

/// A file that reaches the limit of its size (`ulimit -f`) is then an error of the write, as a full
/// disk is, and not the end of the process. The signal is caught rather than ignored, for programs
/// that are started would inherit that.
fn outlive_a_file_limit() {
    // Without the handler such a write ends the process, as it does in most programs.
    let _ = flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// The option acts on memory that the allocator reserves from now on; what it has reserved is found
/// by an allocation's address. Where the system has no huge pages to give, small ones do.
fn ask_for_huge_pages() {
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

/// The mapping that holds an address, from `/proc`.
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
