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

/// The value of a line `NAME: 12345 kB`.
fn bytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
