//! How much memory the process has held at most, and how much the machine has.

/// Peak resident bytes; `None` where the system does not say (it is read from Linux's `/proc`).
pub fn peak_bytes() -> Option<u64> {
    bytes("/proc/self/status", "VmHWM:")
}

/// Bytes of memory that a process could have without others being swapped out; `None` as in [`peak_bytes`].
pub fn available_bytes() -> Option<u64> {
    bytes("/proc/meminfo", "MemAvailable:")
}

/// Bytes of the machine's memory; `None` as in [`peak_bytes`].
pub fn total_bytes() -> Option<u64> {
    bytes("/proc/meminfo", "MemTotal:")
}

/// Bytes that the process may have at most: the machine's memory, or less where its address space is limited (`ulimit -v`); `None` as
/// in [`peak_bytes`].
pub fn limit_bytes() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the call writes the limits to `limit` alone.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    let space = (asked == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur);
    Some(total_bytes()?.min(space.unwrap_or(u64::MAX)))
}

/// The value of a line `NAME: 12345 kB`.
fn bytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
