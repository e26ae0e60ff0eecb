//! The thread pool of the operations.
//!
//! A decode step has some hundred parallel parts of a few microseconds each, with short serial
//! parts between. The threads of a general pool go to sleep between them and take longer to wake
//! than the next part lasts; these threads spin for a moment before they sleep. A call while
//! another one runs (from a second thread, or from inside a part) runs on its calling thread alone.
//! Results do not depend on the thread that computes an item.

use std::cell::UnsafeCell;
use std::env;
use std::error::Error as _;
use std::fmt;
use std::hint::spin_loop;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError, TryLockError};
use std::thread;

/// Times that a thread looks for work before it goes to sleep: some hundred microseconds.
const PATIENCE: usize = 20_000;
/// Bit of [`Team::inside`] that says that no further thread may join the job.
const CLOSED: usize = 1 << (usize::BITS - 1);

static TEAM: OnceLock<Team> = OnceLock::new();

/// Number of threads that share the work, including the caller: that of rayon's pool, which the
/// configuration sets.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Bytes of a thread's stack: a backward pass recurses as deep as the graph.
const STACK_BYTES: usize = 64 << 20;

/// Number of threads that is always allowed, however few processors there are: results do not
/// depend on it, and tests request more than a small machine has.
const ALWAYS: usize = 16;

/// Environment variable that sets the number of rayon's threads.
pub const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Fewer threads than were requested, because the machine has few processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FewerThreads {
    /// Number of threads that were requested.
    pub requested: usize,
    /// Number of threads that are used.
    pub used: usize,
    /// Number of processors.
    pub processors: usize,
}

impl fmt::Display for FewerThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} are used, because this machine has {} processors",
            self.requested, self.used, self.processors
        )
    }
}

/// Starts the threads for all work of the process: `threads`, or one per processor if that is 0. A
/// pool that already runs keeps its size. At most four threads per processor are started, because
/// spinning threads would hold each other up; returns that fewer were started than requested.
///
/// # Errors
/// If the system refuses to start the threads.
pub fn start(threads: usize) -> io::Result<Option<FewerThreads>> {
    let processors = processors();
    let used = bounded(threads, processors);
    build(used)?;
    Ok((used < threads).then_some(FewerThreads {
        requested: threads,
        used,
        processors,
    }))
}

/// Starts as many threads as the environment variable [`VARIABLE`] says, within the bound of
/// [`start`], or one per processor.
///
/// # Errors
/// The errors of [`start`].
pub fn start_usual() -> io::Result<Option<FewerThreads>> {
    // Like rayon, ignore a value that is not a number.
    let asked = env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
    start(asked.unwrap_or(0))
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Number of threads to start for a request of `asked`, where 0 requests one per processor.
fn bounded(asked: usize, processors: usize) -> usize {
    match asked {
        0 => processors,
        asked => asked.min(most_useful(processors)),
    }
}

fn build(count: usize) -> io::Result<()> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .stack_size(STACK_BYTES);
    match pool.build_global() {
        // An error without a source means that the pool already exists.
        Err(error) if error.source().is_some() => Err(io::Error::other(format!(
            "cannot start the compute threads ({error}); lower their number (run.threads, \
             RAYON_NUM_THREADS), or raise the limits of processes and memory (ulimit -u, ulimit -v)"
        ))),
        _ => Ok(()),
    }
}

/// The largest number of threads that is useful on this many processors.
fn most_useful(processors: usize) -> usize {
    processors.saturating_mul(4).max(ALWAYS)
}

/// Calls `work` for each item, on all threads, in any order.
pub fn for_each<T: Send>(items: impl IntoIterator<Item = T>, work: impl Fn(T) + Sync) {
    let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|t| Mutex::new(Some(t))).collect();
    run(items.len(), &|i| {
        if let Some(item) = lock(&items[i]).take() {
            work(item);
        }
    });
}

/// The results of `work` for each item, in order.
pub fn map<T: Send, R: Send>(
    items: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let items: Vec<T> = items.into_iter().collect();
    let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
    for_each(items.into_iter().zip(&mut results), |(item, result)| {
        *result = Some(work(item));
    });
    results.into_iter().flatten().collect()
}

/// Calls `work` with every number below `count`.
pub fn run(count: usize, work: &(dyn Fn(usize) + Sync)) {
    if count <= 1 || threads() == 1 {
        return (0..count).for_each(work);
    }
    let team = TEAM.get_or_init(Team::new);
    let _busy = match team.busy.try_lock() {
        Ok(busy) => busy,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return (0..count).for_each(work),
    };
    team.hire(threads() - 1);
    team.run(count, work);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The work of one call; it lives on the stack of the calling thread.
#[derive(Clone, Copy)]
struct PoolJob {
    work: *const (dyn Fn(usize) + Sync),
    count: usize,
}

/// The threads of the pool, and the job that they share.
struct Team {
    /// Held by the thread that started the job.
    busy: Mutex<()>,
    hired: AtomicUsize,
    job: UnsafeCell<Option<PoolJob>>,
    /// Number of jobs so far.
    number: AtomicUsize,
    /// Index of the next item.
    next: AtomicUsize,
    /// Number of threads inside the job, with the bit [`CLOSED`].
    inside: AtomicUsize,
    panicked: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: the holder of `busy` writes `job` only while the job is closed and no thread is inside;
// threads read it only while inside. The work that it points to is `Sync`.
unsafe impl Sync for Team {}
unsafe impl Send for Team {}

impl Team {
    fn new() -> Self {
        Self {
            busy: Mutex::new(()),
            hired: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            number: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            inside: AtomicUsize::new(CLOSED),
            panicked: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Starts threads until there are `count` beside the caller. If the system refuses, fewer do
    /// the work. The caller must hold `busy`.
    fn hire(&'static self, count: usize) {
        for number in self.hired.load(Ordering::Relaxed)..count {
            let name = format!("ops-{number}");
            if thread::Builder::new()
                .name(name)
                .spawn(|| self.serve())
                .is_err()
            {
                return;
            }
            self.hired.store(number + 1, Ordering::Relaxed);
        }
    }

    fn run(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        // SAFETY: the lifetime is erased, but `Open` waits until no thread is inside before this
        // function returns.
        let work: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute(std::ptr::from_ref(work)) };
        // SAFETY: this thread holds `busy`, and the previous job is closed with no thread inside.
        unsafe { *self.job.get() = Some(PoolJob { work, count }) };
        self.next.store(0, Ordering::Relaxed);
        self.panicked.store(false, Ordering::Relaxed);
        let open = Open(self);
        self.inside.store(0, Ordering::Release);
        self.number.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _asleep = lock(&self.sleep);
            self.wake.notify_all();
        }
        self.take_items(PoolJob { work, count });
        drop(open);
        if self.panicked.load(Ordering::Relaxed) {
            resume_unwind(Box::new(
                "a part of an operation panicked on another thread",
            ));
        }
    }

    fn take_items(&self, job: PoolJob) {
        loop {
            let item = self.next.fetch_add(1, Ordering::Relaxed);
            if item >= job.count {
                return;
            }
            // SAFETY: the caller does not return while a thread is inside the job.
            unsafe { (*job.work)(item) };
        }
    }

    /// Main loop of a pool thread.
    fn serve(&self) {
        let mut seen = 0;
        loop {
            seen = self.await_job(seen);
            let join = |inside: usize| (inside & CLOSED == 0).then_some(inside + 1);
            let joined = self
                .inside
                .fetch_update(Ordering::Acquire, Ordering::Relaxed, join);
            if joined.is_err() {
                continue;
            }
            // SAFETY: this thread is inside.
            if let Some(job) = unsafe { *self.job.get() }
                && catch_unwind(AssertUnwindSafe(|| self.take_items(job))).is_err()
            {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.inside.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a job other than number `seen`: spins first, then sleeps.
    fn await_job(&self, seen: usize) -> usize {
        for _ in 0..PATIENCE {
            let number = self.number.load(Ordering::Acquire);
            if number != seen {
                return number;
            }
            spin_loop();
        }
        let mut asleep = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.number.load(Ordering::SeqCst) == seen {
            asleep = self
                .wake
                .wait(asleep)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        self.number.load(Ordering::SeqCst)
    }
}

/// An open job. Dropping it, also during a panic, closes the job and waits until all threads have
/// left.
struct Open<'a>(&'a Team);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let team = self.0;
        // After a panic the other threads need not finish: nothing reads their results.
        team.next.fetch_add(usize::MAX / 2, Ordering::Relaxed);
        team.inside.fetch_or(CLOSED, Ordering::AcqRel);
        let mut looks = 0usize;
        while team.inside.load(Ordering::Acquire) != CLOSED {
            looks += 1;
            match looks.is_multiple_of(1000) {
                true => thread::yield_now(),
                false => spin_loop(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_threads_are_started_than_are_of_use() {
        let of = bounded;
        assert_eq!([of(0, 2), of(1, 2), of(16, 2)], [2, 1, 16]);
        assert_eq!([of(17, 2), of(100_000, 2), of(usize::MAX, 2)], [16; 3]);
        assert_eq!([of(0, 64), of(100, 64), of(100_000, 64)], [64, 100, 256]);
    }

    #[test]
    fn every_item_is_done_once() {
        for count in [0, 1, 2, 3, 100, 1000] {
            let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            run(count, &|i| {
                done[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == 1));
        }
        assert_eq!(
            map(0..50, |i| i * i),
            (0..50).map(|i| i * i).collect::<Vec<_>>()
        );
    }

    /// Two items that wait for one another: done by one thread, neither would end.
    #[test]
    fn items_are_done_at_the_same_time() {
        let team: &Team = Box::leak(Box::new(Team::new()));
        let _busy = lock(&team.busy);
        team.hire(1);
        let (met, start) = (AtomicUsize::new(0), std::time::Instant::now());
        team.run(2, &|_| {
            met.fetch_add(1, Ordering::SeqCst);
            while met.load(Ordering::SeqCst) < 2 {
                assert!(start.elapsed().as_secs() < 60, "the other item never began");
                thread::yield_now();
            }
        });
    }

    #[test]
    fn calls_from_inside_and_from_beside_are_done_too() {
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        for_each(0..8, |_| {
                            for_each(0..4, |i| {
                                sum.fetch_add(i, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 100 * 8 * 6);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_threads_go_on() {
        for _ in 0..20 {
            let part = |i: usize| assert!(i != 7, "on purpose");
            assert!(catch_unwind(|| for_each(0..50, part)).is_err());
        }
        for_each(0..50, |i| assert!(i < 50));
    }

    #[test]
    fn a_sleeping_thread_is_woken() {
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(30));
            assert_eq!(map(0..10, |i| i + 1).len(), 10);
        }
    }
}
