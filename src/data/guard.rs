//! Runs work on untrusted files in a monitored thread: a hostile template or tokenizer must not
//! hang the run, take all memory, overflow the stack or panic.
//!
//! The thread has a large stack. The caller waits, and checks the thread's processor time and
//! memory at intervals. Work that exceeds a bound is an error at once; its thread cannot be
//! stopped, and ends with the process. Idle threads are reused: passing work to one takes a few
//! microseconds.
//!
//! Only memory of the thread itself counts, because other threads may take gigabytes: the allocator
//! counts the bytes that the thread allocates and frees. This needs [`CountingAllocator`] as the
//! program's allocator, which the binary has; memory of C code and of threads that the work starts
//! is not counted. With another allocator the growth of the whole process counts, so that work may
//! be refused because of other threads.
//!
//! Sizes and depths that are known beforehand are bounded earlier (`template/limits.rs`,
//! `tokenizer/checks.rs`), the depth of every recursion among them, because a stack overflow ends
//! the process.

mod counted;

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, Once};
use std::thread;
use std::time::Duration;

pub use counted::CountingAllocator;

/// Bytes of a thread's stack. Only the pages that are touched take memory.
const STACK: usize = 256 << 20;
/// Interval between two checks of the work.
const LOOK: Duration = Duration::from_millis(20);

/// Limits of processor time and memory for a piece of work.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Processor time.
    pub seconds: u64,
    /// Bytes of memory that the work may hold.
    pub bytes: usize,
}

/// The reason why the work was abandoned.
#[derive(Debug, PartialEq, Eq)]
pub enum Excess {
    /// More processor time than this limit in seconds.
    Seconds(u64),
    /// More memory than this limit in bytes.
    Bytes(usize),
    /// A panic, with its message.
    Panic(String),
    /// The system could not start a thread.
    NoThread(String),
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Excess::Seconds(seconds) => write!(f, "takes more than {seconds} seconds"),
            Excess::Bytes(bytes) => write!(f, "takes more than {} MiB of memory", bytes >> 20),
            Excess::Panic(words) => write!(f, "fails ({words})"),
            Excess::NoThread(words) => write!(f, "cannot be read: no thread ({words})"),
        }
    }
}

type WatchedJob = Box<dyn FnOnce() + Send>;

/// A thread that waits for work.
struct Worker {
    jobs: SyncSender<WatchedJob>,
    clock: ThreadClock,
    memory: ThreadMemory,
}

static IDLE: Mutex<Vec<Worker>> = Mutex::new(Vec::new());

/// Runs `work` in a monitored thread.
///
/// # Errors
/// If `work` exceeds a bound, or panics.
pub fn watched<T: Send + 'static>(
    bounds: Bounds,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Excess> {
    let idle = IDLE.lock().unwrap_or_else(|e| e.into_inner()).pop();
    let worker = match idle {
        Some(worker) => worker,
        None => Worker::start().map_err(|error| Excess::NoThread(error.to_string()))?,
    };
    let begun = Begun {
        seconds: worker.clock.seconds(),
        bytes: worker.memory.counted(),
    };
    let (done, result) = sync_channel(1);
    let job = move || _ = done.send(quietly(work));
    if worker.jobs.send(Box::new(job)).is_err() {
        return Err(Excess::NoThread("it ended".to_owned()));
    }
    let result = wait(&result, &worker, begun, bounds)?;
    IDLE.lock().unwrap_or_else(|e| e.into_inner()).push(worker);
    result.map_err(Excess::Panic)
}

/// Processor time and memory of a thread before its work.
struct Begun {
    seconds: f64,
    /// `None` if the thread's bytes are not counted; the first check is then the reference.
    bytes: Option<isize>,
}

/// The result of the work, if it stays within its bounds.
fn wait<T>(
    result: &Receiver<T>,
    worker: &Worker,
    mut begun: Begun,
    bounds: Bounds,
) -> Result<T, Excess> {
    loop {
        match result.recv_timeout(LOOK) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Excess::Panic("its thread ended".to_owned()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = worker.memory.bytes();
        let grown = now - *begun.bytes.get_or_insert(now);
        if usize::try_from(grown).is_ok_and(|grown| grown > bounds.bytes) {
            return Err(Excess::Bytes(bounds.bytes));
        }
        if worker.clock.seconds() - begun.seconds > bounds.seconds as f64 {
            return Err(Excess::Seconds(bounds.seconds));
        }
    }
}

impl Worker {
    fn start() -> std::io::Result<Self> {
        let (jobs, work) = sync_channel::<WatchedJob>(1);
        let (tell, meters) = sync_channel(1);
        let body = move || {
            let _ = tell.send((
                ThreadClock::of_this_thread(),
                ThreadMemory::of_this_thread(),
            ));
            work.into_iter().for_each(|job| job());
        };
        let named = thread::Builder::new().name("watched".to_owned());
        named.stack_size(STACK).spawn(body)?;
        let (clock, memory) = meters.recv().map_err(std::io::Error::other)?;
        Ok(Self {
            jobs,
            clock,
            memory,
        })
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic becomes an error with its message, and is not printed.
///
/// # Errors
/// The message of the panic.
pub fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    silence_hook();
    let before = QUIET.replace(true);
    // Callers ensure unwind safety: they do not use a value again that panicked, or it has no state
    // that a panic could leave half changed.
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("panicked").to_owned()
    })
}

/// Installs a panic hook that prints nothing for quiet threads.
fn silence_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                usual(panic);
            }
        }));
    });
}

/// The processor time of a thread.
struct ThreadClock {
    #[cfg(target_os = "linux")]
    id: libc::clockid_t,
    #[cfg(not(target_os = "linux"))]
    start: std::time::Instant,
}

impl ThreadClock {
    #[expect(unsafe_code, reason = "a thread's clock is a call of the C library")]
    #[cfg(target_os = "linux")]
    fn of_this_thread() -> Self {
        let mut id = libc::CLOCK_MONOTONIC;
        // SAFETY: the thread is the running one; if the call fails, `id` keeps its value, which is
        // a clock too.
        unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut id) };
        Self { id }
    }

    #[expect(unsafe_code, reason = "a clock is a call of the C library")]
    #[cfg(target_os = "linux")]
    fn seconds(&self) -> f64 {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the call writes to `time` alone.
        unsafe { libc::clock_gettime(self.id, &raw mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    }

    #[cfg(not(target_os = "linux"))]
    fn of_this_thread() -> Self {
        Self {
            start: std::time::Instant::now(),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

/// The memory of a thread, or of the process if threads are not counted.
enum ThreadMemory {
    Thread(&'static AtomicIsize),
    Process,
}

impl ThreadMemory {
    fn of_this_thread() -> Self {
        counted::count_this_thread().map_or(Self::Process, Self::Thread)
    }

    fn bytes(&self) -> isize {
        self.counted()
            .unwrap_or_else(|| resident_bytes().cast_signed())
    }

    fn counted(&self) -> Option<isize> {
        match self {
            Self::Thread(count) => Some(count.load(Ordering::Relaxed)),
            Self::Process => None,
        }
    }
}

/// Bytes of memory that the process holds; 0 if the system does not report them.
fn resident_bytes() -> usize {
    let pages = || {
        let text = std::fs::read_to_string("/proc/self/statm").ok()?;
        text.split(' ').nth(1)?.parse::<usize>().ok()
    };
    const PAGE: usize = 4096;
    pages().unwrap_or(0) * PAGE
}

#[cfg(test)]
mod tests {
    use std::alloc::System;
    use std::hint::black_box;
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// The allocator of this crate's unit tests.
    #[global_allocator]
    static ALLOCATOR: CountingAllocator<System> = CountingAllocator(System);

    const BOUNDS: Bounds = Bounds {
        seconds: 1,
        bytes: usize::MAX,
    };

    #[test]
    fn work_is_done_on_another_thread() {
        let thread = || thread::current().id();
        assert_eq!(watched(BOUNDS, || 1 + 1), Ok(2));
        assert_ne!(watched(BOUNDS, thread), Ok(thread()));
    }

    #[test]
    fn work_without_end_is_given_up() {
        static ENOUGH: AtomicBool = AtomicBool::new(false);
        let endless = || {
            while !ENOUGH.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        };
        assert_eq!(watched(BOUNDS, endless), Err(Excess::Seconds(1)));
        ENOUGH.store(true, Ordering::Relaxed);
    }

    #[test]
    fn work_that_takes_memory_without_end_is_given_up() {
        static ENOUGH: AtomicBool = AtomicBool::new(false);
        let greedy = || {
            let mut all = Vec::new();
            // Pauses, so that the machine of the test is not filled before the next look.
            while !ENOUGH.load(Ordering::Relaxed) && all.len() < 100 {
                all.push(vec![1u8; 4 << 20]);
                thread::sleep(Duration::from_millis(10));
            }
        };
        let bounds = Bounds {
            bytes: 64 << 20,
            ..BOUNDS
        };
        assert_eq!(watched(bounds, greedy), Err(Excess::Bytes(64 << 20)));
        ENOUGH.store(true, Ordering::Relaxed);
    }

    #[test]
    fn memory_that_other_threads_take_and_give_back_does_not_count() {
        const MANY: usize = 128 << 20;
        let bounds = Bounds {
            bytes: MANY / 2,
            ..BOUNDS
        };
        // Each waits until the work has been looked at, and holds on until it has been looked at
        // again.
        let pause = || thread::sleep(Duration::from_millis(100));
        let modest = move || {
            let other = thread::spawn(move || {
                pause();
                let taken = black_box(vec![1u8; MANY]);
                pause();
                taken.len()
            });
            (other.join().unwrap(), black_box(vec![1u8; 1 << 20]).len())
        };
        assert_eq!(watched(bounds, modest), Ok((MANY, 1 << 20)));
        static ENOUGH: AtomicBool = AtomicBool::new(false);
        let held = vec![1u8; MANY];
        let other = thread::spawn(move || {
            pause();
            drop(held);
        });
        let greedy = move || {
            pause();
            let taken = black_box(vec![1u8; MANY]);
            while !ENOUGH.load(Ordering::Relaxed) {
                pause();
            }
            taken.len()
        };
        assert_eq!(watched(bounds, greedy), Err(Excess::Bytes(MANY / 2)));
        ENOUGH.store(true, Ordering::Relaxed);
        other.join().unwrap();
    }

    #[test]
    fn without_a_count_the_process_is_looked_at() {
        let taken = black_box(vec![1u8; 64 << 20]);
        let held = ThreadMemory::Process.bytes();
        assert!(!cfg!(target_os = "linux") || held > 64 << 20, "{held}");
        drop(taken);
    }

    #[test]
    fn a_panic_becomes_its_words() {
        fn panics() {
            panic!("index {} of 3", 7)
        }
        assert_eq!(
            watched(BOUNDS, panics),
            Err(Excess::Panic("index 7 of 3".to_owned()))
        );
        assert_eq!(quietly(panics), Err("index 7 of 3".to_owned()));
    }

    #[test]
    fn recursion_has_room() {
        fn depth(n: usize) -> usize {
            let frame = std::hint::black_box([n; 64]);
            if n == 0 {
                0
            } else {
                depth(n - 1) + frame[0] - n + 1
            }
        }
        assert_eq!(watched(BOUNDS, || depth(100_000)), Ok(100_000));
    }
}
