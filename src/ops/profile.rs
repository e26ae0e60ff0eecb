//! Time and bytes of each operation, by the part of an iteration that called it.
//!
//! When profiling is off, an operation costs one load of a flag. Times are wall-clock on the
//! calling thread, without those of nested spans, so they add up to the time of the part. Work of
//! the pool falls within the time of the operation that waits for it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use kernels::device::Gpu;

static ENABLED: AtomicBool = AtomicBool::new(false);
static DEVICE: RwLock<Option<Gpu>> = RwLock::new(None);
static TOTALS: Mutex<BTreeMap<ProfileKey, OperationTotal>> = Mutex::new(BTreeMap::new());

thread_local! {
    static OPEN: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) };
}

/// The part of an iteration, and the operation in that part.
pub type ProfileKey = (&'static str, &'static str);

/// Totals of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OperationTotal {
    /// Number of calls.
    pub calls: u64,
    /// Wall-clock time without that of nested operations.
    pub time: Duration,
    /// Bytes of the results.
    pub bytes: u64,
}

struct Frame {
    key: ProfileKey,
    start: Instant,
    inside: Duration,
    bytes: u64,
}

/// A running operation, which ends when the span is dropped.
#[must_use]
pub struct ProfileSpan(bool);

/// Turns profiling on.
pub fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
}

/// Lets spans begin and end when the work of a GPU has ended, so that the time of its kernels is
/// that of their operation.
pub fn wait_for(gpu: &Gpu) {
    let mut device = DEVICE.write().unwrap_or_else(PoisonError::into_inner);
    *device = Some(gpu.clone());
}

/// Waits for the work of the GPU. Its errors are left to the next call of the device.
fn wait() {
    let device = DEVICE.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(gpu) = &*device {
        let _ = gpu.synchronize();
    }
}

/// Whether profiling is on.
pub fn is_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Begins a part of an iteration. Time outside its operations is recorded under the part's own
/// name.
pub fn part(name: &'static str) -> ProfileSpan {
    open(|_| (name, ""))
}

/// Begins an operation.
pub fn span(name: &'static str) -> ProfileSpan {
    open(|part| (part, name))
}

fn open(key: impl FnOnce(&'static str) -> ProfileKey) -> ProfileSpan {
    if !is_enabled() {
        return ProfileSpan(false);
    }
    wait();
    OPEN.with_borrow_mut(|open| {
        let part = open.last().map_or("", |frame| frame.key.0);
        open.push(Frame {
            key: key(part),
            start: Instant::now(),
            inside: Duration::ZERO,
            bytes: 0,
        });
    });
    ProfileSpan(true)
}

impl ProfileSpan {
    /// Records a result of `elements` numbers of type `f32`.
    pub fn wrote(&self, elements: usize) {
        if self.0 {
            OPEN.with_borrow_mut(|open| {
                if let Some(frame) = open.last_mut() {
                    frame.bytes += (elements * size_of::<f32>()) as u64;
                }
            });
        }
    }
}

impl Drop for ProfileSpan {
    fn drop(&mut self) {
        if !self.0 {
            return;
        }
        wait();
        let Some(frame) = OPEN.with_borrow_mut(Vec::pop) else {
            return;
        };
        let elapsed = frame.start.elapsed();
        OPEN.with_borrow_mut(|open| {
            if let Some(outer) = open.last_mut() {
                outer.inside += elapsed;
            }
        });
        let mut totals = TOTALS.lock().unwrap_or_else(PoisonError::into_inner);
        let total = totals.entry(frame.key).or_default();
        total.calls += 1;
        total.time += elapsed.saturating_sub(frame.inside);
        total.bytes += frame.bytes;
    }
}

/// Returns the totals so far and resets them.
pub fn take() -> BTreeMap<ProfileKey, OperationTotal> {
    std::mem::take(&mut *TOTALS.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_inside_counts_once() {
        enable();
        {
            let _part = part("test part");
            let outer = span("outer");
            outer.wrote(3);
            {
                let inner = span("inner");
                inner.wrote(5);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let totals = take();
        let [whole, outer, inner] = ["", "outer", "inner"].map(|name| totals[&("test part", name)]);
        assert_eq!((outer.calls, outer.bytes, inner.bytes), (1, 12, 20));
        assert!(inner.time >= Duration::from_millis(20));
        assert!(outer.time < inner.time && whole.time < inner.time);
    }
}
