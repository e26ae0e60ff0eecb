//! A thread of a block: its state, and the functions by which the kernel's code asks for it.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};

use corosensei::Yielder;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

/// Lanes of a warp.
pub const WARP: usize = 32;

/// The order in which blocks of a grid, warps of a block and lanes of a warp take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Ascending.
    Forward,
    /// Descending.
    Reverse,
    /// Shuffled by a seed, anew at each turn.
    Seeded(u64),
}

impl Order {
    /// The numbers below `count`, in this order; `turn` distinguishes the shuffles of a seed.
    pub fn of(self, count: usize, turn: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        match self {
            Self::Forward => {}
            Self::Reverse => order.reverse(),
            Self::Seeded(seed) => {
                order.shuffle(&mut SmallRng::seed_from_u64(seed.wrapping_add(turn)));
            }
        }
        order
    }

    /// The blocks of a grid, in this order.
    pub fn of_blocks(self, [x, y, z]: [u32; 3]) -> impl Iterator<Item = [u32; 3]> {
        let count = x as usize * y as usize * z as usize;
        self.of(count, u64::MAX).into_iter().map(move |index| {
            let (x, y) = (x as usize, y as usize);
            [index % x, index / x % y, index / (x * y)].map(|part| part as u32)
        })
    }
}

/// The state that a kernel's code reads, in the layout of `Thread` in `cuda_emulator.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ThreadState {
    /// Index of the thread in its block.
    pub thread: [u32; 3],
    /// Index of the block in the grid.
    pub block: [u32; 3],
    /// Threads of a block.
    pub block_size: [u32; 3],
    /// Blocks of the grid.
    pub grid_size: [u32; 3],
    /// Shared memory of the block.
    pub shared: *mut u8,
}

/// The reason for which a thread has stopped running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A barrier at this line, which all threads of the block must reach.
    Barrier(i32),
    /// An exchange of values at `line`, which all lanes of `mask` must reach.
    Exchange {
        /// The lanes that take part.
        mask: u32,
        /// The line.
        line: i32,
        /// The value of this lane.
        value: u64,
    },
    /// A failure, with its message. The thread is not continued.
    Failure(String),
}

/// A thread continues with the values of its warp's lanes, where it waited for them.
pub type Resumption = [u64; WARP];

/// The running thread, for the functions that its code calls.
#[derive(Clone, Copy)]
struct Running {
    state: *const ThreadState,
    yielder: *const Yielder<Resumption, Wait>,
    /// The values of the last exchange.
    values: *mut Resumption,
}

thread_local! {
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
}

/// The context of a thread while it runs.
pub struct Context {
    /// The thread's state.
    pub state: ThreadState,
    values: Resumption,
}

impl Context {
    /// A thread that has not started.
    pub fn new(state: ThreadState) -> Self {
        Self {
            state,
            values: [0; WARP],
        }
    }

    /// Runs `kernel` as this thread, on the coroutine of `yielder`.
    pub fn run(&mut self, yielder: &Yielder<Resumption, Wait>, kernel: impl FnOnce()) {
        let running = Running {
            state: &raw const self.state,
            yielder,
            values: &raw mut self.values,
        };
        RUNNING.set(Some(running));
        kernel();
        RUNNING.set(None);
    }
}

/// Stops the running thread until the scheduler continues it.
fn wait(reason: Wait) -> *const Resumption {
    let running = RUNNING.take().expect("a kernel's code runs as a thread");
    // SAFETY: both pointers are those of `Context::run`, which has not returned.
    unsafe { *running.values = (*running.yielder).suspend(reason) };
    RUNNING.set(Some(running));
    running.values
}

#[unsafe(no_mangle)]
extern "C" fn emulated_thread() -> *const ThreadState {
    RUNNING
        .get()
        .expect("a kernel's code runs as a thread")
        .state
}

#[unsafe(no_mangle)]
extern "C" fn emulated_sync_threads(line: c_int) {
    wait(Wait::Barrier(line));
}

#[unsafe(no_mangle)]
extern "C" fn emulated_exchange(mask: u32, line: c_int, value: u64) -> *const u64 {
    wait(Wait::Exchange { mask, line, value }).cast()
}

#[unsafe(no_mangle)]
extern "C" fn emulated_failure(message: *const c_char, line: c_int) -> ! {
    // SAFETY: the messages are literals of `cuda_emulator.h`.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    wait(Wait::Failure(format!("{message} (line {line})")));
    unreachable!("a failed thread is not continued")
}
