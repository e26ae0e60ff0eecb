//! Where time and bytes go: operations note how long they took and what they wrote, by the part of an iteration that called them.
//!
//! Off, it costs a load of a flag an operation. Times are wall-clock on the calling thread, less those of the spans inside, so they
//! add up to what the part took; the pool works within them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static ENABLED: AtomicBool = AtomicBool::new(false);
static TOTALS: Mutex<BTreeMap<Key, Total>> = Mutex::new(BTreeMap::new());

thread_local! {
    static OPEN: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) };
}

/// The part of an iteration, and the operation in it.
pub type Key = (&'static str, &'static str);

/// What an operation came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Total {
    /// Times that it ran.
    pub calls: u64,
    /// How long, without the operations inside.
    pub time: Duration,
    /// Bytes of its results.
    pub bytes: u64,
}

struct Frame {
    key: Key,
    start: Instant,
    inside: Duration,
    bytes: u64,
}

/// An operation under way; it ends when this is dropped.
#[must_use]
pub struct Span(bool);

/// Begins to take notes.
pub fn enable() {
    ENABLED.store(true, Ordering::Relaxed);
}

/// Whether notes are taken.
pub fn is_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Begins a part of an iteration; what no operation in it accounts for is noted under its own name.
pub fn part(name: &'static str) -> Span {
    open(|_| (name, ""))
}

/// Begins an operation.
pub fn span(name: &'static str) -> Span {
    open(|part| (part, name))
}

fn open(key: impl FnOnce(&'static str) -> Key) -> Span {
    if !is_enabled() {
        return Span(false);
    }
    OPEN.with_borrow_mut(|open| {
        let part = open.last().map_or("", |frame| frame.key.0);
        open.push(Frame {
            key: key(part),
            start: Instant::now(),
            inside: Duration::ZERO,
            bytes: 0,
        });
    });
    Span(true)
}

impl Span {
    /// Notes a result of so many `f32`.
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

impl Drop for Span {
    fn drop(&mut self) {
        if !self.0 {
            return;
        }
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

/// Hands over what was noted, and begins anew.
pub fn take() -> BTreeMap<Key, Total> {
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
