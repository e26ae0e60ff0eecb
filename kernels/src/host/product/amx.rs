//! Whether the processor's matrix unit (Intel AMX) can be used, or emulated.

use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::LazyLock;

/// Whether the processor has the unit with bfloat16, and the system lets this process use it.
pub fn is_usable() -> bool {
    static USABLE: LazyLock<bool> = LazyLock::new(|| has_unit() && is_permitted());
    *USABLE
}

/// Whether the processor has the instructions that split numbers for the unit and emulate it.
pub fn can_be_emulated() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

#[allow(
    unused_unsafe,
    reason = "asking the processor was an unsafe function in older compilers"
)]
fn has_unit() -> bool {
    // Leaf 7: AMX-BF16 and AMX-TILE in EDX; the operating system saves tiles if bits 17 and 18 of
    // XCR0 are set.
    const NEEDED: u32 = 1 << 22 | 1 << 24;
    const SAVED: u64 = 0b11 << 17;
    if !can_be_emulated() {
        return false;
    }
    // SAFETY: the processor has AVX-512, so it has leaf 7, and XCR0 can be read.
    let (found, saved) = unsafe { (__cpuid_count(7, 0).edx, xcr0()) };
    found & NEEDED == NEEDED && saved & SAVED == SAVED
}

#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: the caller has checked that the processor has XSAVE.
    unsafe { _xgetbv(0) }
}

#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    /// `arch_prctl`: requests a feature whose state is large.
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    /// State component of the tiles.
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call requests a permission of this process; an unknown request fails.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}
