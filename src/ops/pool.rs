//! The threads that operations spread their work over.
//!
//! A decode step is some hundred parallel parts of a few microseconds each, with short serial parts between. A general pool's threads
//! go to sleep there and take longer to wake than the next part lasts; these stay awake for a moment. A call while another one
//! runs (from a second thread, or from inside a part) is done by its caller alone. Nothing here decides a result: who does an
//! item changes no bit of it.

use std::cell::UnsafeCell;
use std::env;
use std::error::Error as _;
use std::hint::spin_loop;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError, TryLockError};
use std::thread;

use crate::terminal;

/// Looks for work before a thread goes to sleep: some hundred microseconds.
const PATIENCE: usize = 20_000;
/// Set in [`Team::inside`] when no further thread may join the job.
const CLOSED: usize = 1 << (usize::BITS - 1);

static TEAM: OnceLock<Team> = OnceLock::new();

/// Threads that share the work, the caller among them: as many as rayon's, whose number the configuration sets.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Stack of a thread: a backward pass recurses as deep as the graph.
const STACK_BYTES: usize = 64 << 20;

/// Threads for which there is always room, however few processors there are: results do not depend on their number, and tests ask
/// for more than a small machine has.
const ALWAYS: usize = 16;

/// Variable that sets the number of threads of a program with rayon.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Starts so many threads, 0 for as many as there are processors, for all work of the process. Threads that are there already
/// stay as they are. No more than four times the processors are started: threads that wait for one another awake would take
/// turns for ever.
///
/// # Errors
/// If the system does not give as many.
pub fn start(threads: usize) -> io::Result<()> {
    build(bounded(threads, processors()))
}

/// Starts the threads of a command that no `run.threads` speaks for: as many as `RAYON_NUM_THREADS` asks for, within the bound of
/// [`start`], or as many as there are processors.
///
/// # Errors
/// The errors of [`start`].
pub fn start_usual() -> io::Result<()> {
    // Rayon, too, passes over a value that is no number.
    let asked = env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
    let asked = asked.unwrap_or(0);
    say_if_fewer(VARIABLE, asked);
    start(asked)
}

/// Says that fewer threads are started than a key or variable asks for.
pub fn say_if_fewer(name: &str, asked: usize) {
    let processors = processors();
    let used = bounded(asked, processors);
    if used < asked {
        terminal::note(format_args!(
            "{name} = {asked}: {used} are used, for this machine has {processors} processors"
        ));
    }
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The number of threads to start where `asked` are asked for, 0 for one a processor.
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
        // Without a cause it says that there is a pool.
        Err(error) if error.source().is_some() => Err(io::Error::other(format!(
            "cannot start the threads that compute ({error}); lower their number (run.threads, RAYON_NUM_THREADS), or raise the limits of \
             processes and memory (ulimit -u, ulimit -v)"
        ))),
        _ => Ok(()),
    }
}

/// The most threads that are of use on so many processors.
fn most_useful(processors: usize) -> usize {
    processors.saturating_mul(4).max(ALWAYS)
}

/// Does `work` for each item, on all threads, in any order.
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

/// What is to be done; it lives on the stack of who asked for it.
#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    count: usize,
}

/// The threads, and the one job they work on.
struct Team {
    /// Held by who has asked for the job.
    busy: Mutex<()>,
    hired: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    /// Counts the jobs.
    number: AtomicUsize,
    /// The next item.
    next: AtomicUsize,
    /// Threads inside the job, and [`CLOSED`].
    inside: AtomicUsize,
    panicked: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written by the holder of `busy` while the job is closed and nobody is inside, and read by who is inside; what it
// points to is `Sync`.
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

    /// Sees to it that there are `count` threads beside the caller's; without them the work is done all the same. Only who holds
    /// `busy` hires.
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
        // SAFETY: the lifetime is forgotten, but `Open` waits until nobody is inside before this function is left.
        let work: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute(std::ptr::from_ref(work)) };
        // SAFETY: `busy` is held, and the former job is closed and empty.
        unsafe { *self.job.get() = Some(Job { work, count }) };
        self.next.store(0, Ordering::Relaxed);
        self.panicked.store(false, Ordering::Relaxed);
        let open = Open(self);
        self.inside.store(0, Ordering::Release);
        self.number.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _asleep = lock(&self.sleep);
            self.wake.notify_all();
        }
        self.take_items(Job { work, count });
        drop(open);
        if self.panicked.load(Ordering::Relaxed) {
            resume_unwind(Box::new(
                "a part of an operation panicked on another thread",
            ));
        }
    }

    fn take_items(&self, job: Job) {
        loop {
            let item = self.next.fetch_add(1, Ordering::Relaxed);
            if item >= job.count {
                return;
            }
            // SAFETY: the job is not left by who asked for it while somebody is inside.
            unsafe { (*job.work)(item) };
        }
    }

    /// A thread's life.
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

    /// Waits for a job other than number `seen`, awake at first.
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

/// A job that threads may join; when it is dropped, a panic on the way included, it is closed and they have left.
struct Open<'a>(&'a Team);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let team = self.0;
        // After a panic the others need not finish what nobody will read.
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
