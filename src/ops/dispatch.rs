//! Which form of an operation runs: our kernel, or the composition of candle's operations.

use std::cell::Cell;

use candle_core::Device;

thread_local! {
    static COMPOSED: Cell<bool> = const { Cell::new(false) };
}

/// Whether our kernels compute on `device`.
pub fn has_kernels(device: &Device) -> bool {
    device.is_cpu() && !COMPOSED.get()
}

/// Runs `f` as on a device without kernels: this thread's operations take their composed form.
///
/// Tests reach that path with it where there is only a CPU. A graph is to be differentiated, and a cache or an optimizer used, on
/// the side on which it was made.
pub fn without_kernels<R>(f: impl FnOnce() -> R) -> R {
    let _restored = Restored(COMPOSED.replace(true));
    f()
}

/// Puts the setting back, after a panic too.
struct Restored(bool);

impl Drop for Restored {
    fn drop(&mut self) {
        COMPOSED.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_back_afterwards_and_after_a_panic() {
        assert!(has_kernels(&Device::Cpu));
        assert!(!without_kernels(|| has_kernels(&Device::Cpu)));
        assert!(std::panic::catch_unwind(|| without_kernels(|| panic!("on purpose"))).is_err());
        assert!(has_kernels(&Device::Cpu));
    }
}
