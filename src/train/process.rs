//! Settings of the process as a whole.

/// `mi_option_purge_delay`, which the crate does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// What must be settled before anything else runs: candle's own pool would spin beside the one that does the work, and memory
/// given back between two steps is zeroed by the kernel and faulted in again in the next.
pub fn set_up() {
    // SAFETY: no other thread runs yet, and the option takes a number of milliseconds or -1 for never.
    unsafe {
        std::env::set_var("CANDLE_NUM_THREADS", "1");
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
    }
}
