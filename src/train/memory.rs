//! Peak memory of the process, and memory of the machine.

use std::path::Path;

/// Peak resident bytes, read from Linux's `/proc`; `None` on other systems.
pub fn peak_bytes() -> Option<u64> {
    bytes("/proc/self/status", "VmHWM:")
}

/// Bytes of memory that a process can still take without swapping; `None` as in [`peak_bytes`].
pub fn available_bytes() -> Option<u64> {
    bytes("/proc/meminfo", "MemAvailable:")
}

/// Bytes of the machine's memory; `None` as in [`peak_bytes`].
pub fn total_bytes() -> Option<u64> {
    bytes("/proc/meminfo", "MemTotal:")
}

/// Most bytes that the process can take: the machine's memory and swap, or the limit of its control
/// group or of its address space (`ulimit -v`) if that is lower; `None` as in [`peak_bytes`].
pub fn limit_bytes() -> Option<u64> {
    let swap = bytes("/proc/meminfo", "SwapTotal:").unwrap_or(0);
    let machine = total_bytes()?;
    let memory = group_limit().map_or(machine, |limit| limit.min(machine)) + swap;
    Some(address_space_limit().map_or(memory, |limit| limit.min(memory)))
}

/// The limit of the process's address space; `None` without a limit.
#[expect(unsafe_code, reason = "getrlimit is a call of the C library")]
fn address_space_limit() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the call writes the limits to `limit` alone.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    (asked == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// The lowest limit of the control groups around the process; `None` without a limit.
fn group_limit() -> Option<u64> {
    let read = |path: &Path| {
        let text = std::fs::read_to_string(path).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let limit = |line: &str| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return None,
        };
        let group = Path::new(root).join(group.trim_start_matches('/'));
        let around = group
            .ancestors()
            .take_while(|folder| folder.starts_with(root));
        around.filter_map(|folder| read(&folder.join(file))).min()
    };
    groups.lines().filter_map(limit).min()
}

/// The value of a line `NAME: 12345 kB`.
fn bytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
