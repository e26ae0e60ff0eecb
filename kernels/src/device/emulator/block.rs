//! Runs the threads of a block, and lets those continue whose wait is over.

use std::ffi::c_void;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult};

use super::entry::Entry;
use super::thread::{Context, Order, Resumption, ThreadState, WARP, Wait};
use crate::device::error::{KernelError, Result};
use crate::device::launcher::Grid;

/// Bytes of a thread's stack.
const STACK: usize = 64 << 10;

/// A block of a launch; it is reused for all blocks of the grid.
pub struct Block<'a> {
    entry: &'static Entry,
    arguments: &'a [*const c_void],
    grid: Grid,
    stacks: Vec<DefaultStack>,
    shared: Vec<u128>,
}

/// A thread between two turns.
struct Thread {
    coroutine: Coroutine<Resumption, Wait, ()>,
    /// The reason for which it waits; `None` if it can run.
    wait: Option<Wait>,
    /// The values with which it continues.
    resumption: Resumption,
}

impl<'a> Block<'a> {
    /// A block of a launch.
    ///
    /// # Errors
    /// If the host has no memory for the stacks.
    pub fn new(entry: &'static Entry, arguments: &'a [*const c_void], grid: Grid) -> Result<Self> {
        let stacks = (0..grid.threads).map(|_| DefaultStack::new(STACK));
        let stacks: std::io::Result<Vec<_>> = stacks.collect();
        let stacks = stacks.map_err(|_| KernelError::OutOfMemory {
            requested: STACK * grid.threads as usize,
            free: 0,
        })?;
        Ok(Self {
            entry,
            arguments,
            grid,
            stacks,
            shared: vec![0; grid.shared_bytes.div_ceil(size_of::<u128>())],
        })
    }

    /// Runs the block of this index to its end.
    ///
    /// # Errors
    /// A failure of a thread, or threads that wait for each other.
    pub fn run(&mut self, index: [u32; 3], order: Order) -> std::result::Result<(), String> {
        self.shared.fill(u128::MAX); // NaN in every type
        let state = |thread: usize| ThreadState {
            thread: [thread as u32, 0, 0],
            block: index,
            block_size: [self.grid.threads, 1, 1],
            grid_size: self.grid.blocks,
            shared: self.shared.as_mut_ptr().cast(),
        };
        let states: Vec<ThreadState> = (0..self.stacks.len()).map(state).collect();
        let call = KernelCall {
            entry: self.entry,
            arguments: std::ptr::from_ref(self.arguments),
        };
        let start = |(stack, state)| Thread::new(stack, state, call);
        let mut threads: Vec<Thread> = self.stacks.drain(..).zip(states).map(start).collect();
        let result = finish(&mut threads, order);
        self.stacks = threads.into_iter().map(Thread::into_stack).collect();
        result
    }
}

/// A kernel with its arguments.
#[derive(Clone, Copy)]
struct KernelCall {
    entry: &'static Entry,
    /// Addresses of the arguments' values. The block owns the list and outlives its threads.
    arguments: *const [*const c_void],
}

/// Runs all warps from barrier to barrier until every thread has ended. A warp runs until it can go
/// no further before the next one does, so warps are as far apart as barriers allow.
fn finish(threads: &mut [Thread], order: Order) -> std::result::Result<(), String> {
    for turn in 0.. {
        for warp in order.of(threads.len().div_ceil(WARP), turn) {
            let end = threads.len().min((warp + 1) * WARP);
            run_warp(&mut threads[warp * WARP..end], order, turn)?;
        }
        if threads.iter().all(|thread| thread.coroutine.done()) {
            break;
        }
        if !pass_barrier(threads)? {
            return Err(stuck(threads));
        }
    }
    Ok(())
}

/// Runs a warp until its threads have ended or wait for other warps.
fn run_warp(warp: &mut [Thread], order: Order, turn: u64) -> std::result::Result<(), String> {
    for step in 0.. {
        for lane in order.of(warp.len(), (turn << 32) + step) {
            warp[lane].run()?;
        }
        if !exchange(warp)? {
            break;
        }
    }
    Ok(())
}

impl Thread {
    fn new(stack: DefaultStack, state: ThreadState, call: KernelCall) -> Self {
        let coroutine = Coroutine::with_stack(stack, move |yielder, _| {
            let mut context = Context::new(state);
            // SAFETY: the launcher's caller promised that the arguments are the kernel's, and the
            // block that holds them waits for this thread.
            context.run(yielder, || unsafe { call.entry.call(&*call.arguments) });
        });
        Self {
            coroutine,
            wait: None,
            resumption: [0; WARP],
        }
    }

    /// The stack, for another thread.
    fn into_stack(mut self) -> DefaultStack {
        if !self.coroutine.done() {
            // SAFETY: the stack of a thread holds numbers and pointers, and nothing to drop.
            unsafe { self.coroutine.force_reset() };
        }
        self.coroutine.into_stack()
    }

    /// Runs until the thread waits or ends.
    fn run(&mut self) -> std::result::Result<(), String> {
        if self.wait.is_some() || self.coroutine.done() {
            return Ok(());
        }
        if let CoroutineResult::Yield(wait) = self.coroutine.resume(self.resumption) {
            if let Wait::Failure(message) = wait {
                return Err(message);
            }
            self.wait = Some(wait);
        }
        Ok(())
    }
}

/// Lets the threads continue if all of them wait at one barrier. Returns whether they do.
fn pass_barrier(threads: &mut [Thread]) -> std::result::Result<bool, String> {
    let lines = threads.iter().filter_map(|thread| match thread.wait {
        Some(Wait::Barrier(line)) => Some(line),
        _ => None,
    });
    let lines: Vec<i32> = lines.collect();
    let [first, ..] = lines[..] else {
        return Ok(false);
    };
    if lines.iter().any(|line| *line != first) {
        return Err(format!(
            "threads wait at different barriers, of which one is in line {first}"
        ));
    }
    if let Some(ended) = threads.iter().position(|thread| thread.coroutine.done()) {
        return Err(format!(
            "thread {ended} has ended, and others wait for it at the barrier in line {first}"
        ));
    }
    let all = lines.len() == threads.len();
    if all {
        threads.iter_mut().for_each(|thread| thread.wait = None);
    }
    Ok(all)
}

/// Passes values between lanes whose whole mask has arrived. Returns whether any have.
fn exchange(warp: &mut [Thread]) -> std::result::Result<bool, String> {
    let mut any = false;
    for lane in 0..warp.len() {
        if let Some(Wait::Exchange { mask, line, .. }) = warp[lane].wait {
            any |= exchange_among(warp, lane, mask, line)?;
        }
    }
    Ok(any)
}

fn exchange_among(
    warp: &mut [Thread],
    lane: usize,
    mask: u32,
    line: i32,
) -> std::result::Result<bool, String> {
    if mask >> lane & 1 == 0 {
        return Err(format!(
            "lane {lane} is not in the mask {mask:#010x} of line {line}"
        ));
    }
    let members: Vec<usize> = (0..WARP).filter(|lane| mask >> lane & 1 == 1).collect();
    let mut values = [0; WARP];
    for &member in &members {
        let Some(thread) = warp.get(member) else {
            return Err(format!(
                "lane {member} is in the mask {mask:#010x} of line {line}, and the warp has no \
                 such lane"
            ));
        };
        if thread.coroutine.done() {
            return Err(format!(
                "lane {member} has ended, and others wait for it in line {line}"
            ));
        }
        match thread.wait {
            None => return Ok(false),
            Some(Wait::Exchange {
                mask: own,
                line: at,
                value,
            }) if (own, at) == (mask, line) => values[member] = value,
            // It may arrive later, after an exchange with others.
            Some(_) => return Ok(false),
        }
    }
    for member in members {
        warp[member].wait = None;
        warp[member].resumption = values;
    }
    Ok(true)
}

/// The message for a block of which no thread can continue, with the waits of three threads.
fn stuck(threads: &[Thread]) -> String {
    let first = |index: usize| format!("thread {index}: {:?}", threads[index].wait);
    let waiting = (0..threads.len()).filter(|&i| threads[i].wait.is_some());
    let examples: Vec<String> = waiting.map(first).take(3).collect();
    format!("no thread can continue ({}, ...)", examples.join(", "))
}
