//! The work for which a device is called, so that its errors say who asked.

use std::cell::Cell;
use std::fmt;

use indicatif::BinaryBytes;
use kernels::device::KernelError;

thread_local! {
    static CURRENT: Cell<DeviceWork> = const { Cell::new(DeviceWork::Other) };
}

/// Work of a stage on a device. Passes and loading name the model's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceWork {
    /// Work without a name.
    Other,
    /// Reading a model's weights.
    Loading(&'static str),
    /// The cache of generation.
    Cache,
    /// A pass of generation.
    Generation,
    /// A forward pass without gradients.
    Forward(&'static str),
    /// A forward and backward pass.
    Training(&'static str),
    /// The moments and steps of an optimizer.
    Optimizer,
}

impl fmt::Display for DeviceWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other => f.write_str("work outside the models' passes"),
            Self::Loading(role) => write!(f, "loading the {role}"),
            Self::Cache => f.write_str("the cache of generation"),
            Self::Generation => f.write_str("generation"),
            Self::Forward(role) => write!(f, "a forward pass of the {role}"),
            Self::Training(role) => write!(f, "a forward and backward pass of the {role}"),
            Self::Optimizer => f.write_str("the optimizer"),
        }
    }
}

/// Running work of a thread; the work around it goes on when this is dropped.
#[must_use]
pub struct WorkSpan(DeviceWork);

/// Begins work on this thread.
pub fn begin(work: DeviceWork) -> WorkSpan {
    WorkSpan(CURRENT.replace(work))
}

impl Drop for WorkSpan {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// An error of the device. It is found in a chain of errors as a [`WorkError`], its source:
/// transparent errors around it, candle's among them, hide this one.
#[derive(Debug, thiserror::Error)]
#[error("the device failed")]
pub struct DeviceFailure(#[source] WorkError);

/// The error of a kernel or of the driver, with the work that called it.
#[derive(Debug)]
pub struct WorkError {
    /// The work.
    pub work: DeviceWork,
    /// The error.
    pub error: KernelError,
}

impl DeviceFailure {
    /// An error in this thread's work.
    pub fn new(error: KernelError) -> Self {
        let work = CURRENT.get();
        Self(WorkError { work, error })
    }
}

impl std::error::Error for WorkError {}

impl fmt::Display for WorkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error {
            KernelError::OutOfMemory { requested, free } => write!(
                f,
                "{} needs {} of device memory at once, and {} are free",
                self.work,
                BinaryBytes(requested as u64),
                BinaryBytes(free as u64)
            ),
            ref error => write!(f, "{}: {error}", self.work),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error(transparent)]
    struct Transparent(#[from] candle_core::Error);

    #[test]
    fn errors_carry_the_innermost_work_through_transparent_errors() {
        let failed = || {
            let _outer = begin(DeviceWork::Loading("actor"));
            let _inner = begin(DeviceWork::Training("critic"));
            let error = KernelError::OutOfMemory {
                requested: 3 << 20,
                free: 1 << 10,
            };
            candle_core::Error::Cuda(Box::new(DeviceFailure::new(error)))
        };
        let error = Transparent(failed());
        let error = anyhow::Error::new(error).context("stage ppo");
        let found = error.chain().find_map(|cause| cause.downcast_ref());
        let found: &WorkError = found.expect("the device's error");
        assert_eq!(found.work, DeviceWork::Training("critic"));
        assert_eq!(
            found.to_string(),
            "a forward and backward pass of the critic needs 3.00 MiB of device memory at once, \
             and 1.00 KiB are free"
        );
        assert_eq!(CURRENT.get(), DeviceWork::Other);
    }
}
