//! The emulator finds faulty kernels. `emulator/faults.cu` has them.

use kernels::device::emulator::{Emulator, Order};
use kernels::device::{Argument, DeviceMemory, Grid, Kernel, KernelError, Launcher, Result};

use super::ORDERS;

const THREADS: u32 = 64;
const SHARED: usize = 4 * THREADS as usize;

/// Runs a kernel whose one argument is an array with a number for each thread.
fn run(name: &'static str, order: Order) -> Result<Vec<u32>> {
    let emulator = Emulator::new(order, 1 << 20);
    let grid = Grid {
        blocks: [3, 1, 1],
        threads: THREADS,
        shared_bytes: SHARED,
    };
    let array = emulator.allocate(3 * SHARED)?;
    let mut bytes = vec![0; array.bytes];
    // SAFETY: the array has four bytes for each thread of the grid.
    unsafe {
        let kernel = Kernel { name };
        emulator.launch(kernel, grid, &[Argument::Pointer(array.pointer)])?;
        emulator.download(array.pointer, &mut bytes)?;
    }
    let words = bytes.as_chunks::<4>().0.iter();
    Ok(words.map(|word| u32::from_ne_bytes(*word)).collect())
}

fn message(name: &'static str, order: Order) -> String {
    let error = run(name, order).expect_err(name);
    assert!(matches!(error, KernelError::Failed { .. }), "{error}");
    error.to_string()
}

#[test]
fn exchanges_and_barriers_pass_values_in_every_order() {
    let expected = vec![THREADS * (THREADS - 1) / 2; 3 * THREADS as usize];
    for order in ORDERS {
        assert_eq!(run("sound_sum", order).unwrap(), expected, "{order:?}");
    }
}

#[test]
fn threads_at_different_barriers_are_an_error() {
    for order in ORDERS {
        let message = message("faulty_divergent_barrier", order);
        assert!(message.contains("different barriers"), "{message}");
    }
}

#[test]
fn a_barrier_that_an_ended_thread_misses_is_an_error() {
    let message = message("faulty_early_return", Order::Forward);
    assert!(message.contains("thread 0 has ended"), "{message}");
}

#[test]
fn a_race_gives_other_results_in_another_order() {
    let results = ORDERS.map(|order| run("faulty_race", order).unwrap());
    assert_ne!(results[0], results[1]);
}

#[test]
fn a_warp_overtakes_another_where_no_barrier_holds_it() {
    let sums = (0..THREADS).map(|thread| 2 * (THREADS - 1 - thread));
    let without_overtaking = sums.collect::<Vec<_>>().repeat(3);
    for order in ORDERS {
        assert_ne!(run("faulty_overtaking", order).unwrap(), without_overtaking);
    }
}

#[test]
fn memory_that_was_not_written_is_nan() {
    let values = run("faulty_uninitialised", Order::Forward).unwrap();
    assert!(values.iter().all(|bits| f32::from_bits(*bits).is_nan()));
}

#[test]
fn a_lane_outside_its_own_mask_is_an_error() {
    let message = message("faulty_mask", Order::Forward);
    assert!(message.contains("not in the mask"), "{message}");
}

#[test]
fn reading_a_lane_outside_the_mask_is_an_error() {
    let message = message("faulty_read", Order::Forward);
    assert!(
        message.contains("a lane outside the mask is read"),
        "{message}"
    );
}

#[test]
fn an_exchange_that_an_ended_lane_misses_is_an_error() {
    let message = message("faulty_ended_lane", Order::Forward);
    assert!(message.contains("lane 5 has ended"), "{message}");
}

#[test]
fn lanes_that_wait_for_each_other_in_different_places_are_an_error() {
    let message = message("faulty_deadlock", Order::Forward);
    assert!(message.contains("no thread can continue"), "{message}");
}

/// The test starts itself once more, as a process that may die.
#[test]
fn a_write_behind_an_array_kills_the_process() {
    const CHILD: &str = "COLLIMATE_KERNELS_OVERRUN";
    if std::env::var_os(CHILD).is_some() {
        let _ = run("faulty_overrun", Order::Forward);
        return;
    }
    let program = std::env::current_exe().unwrap();
    let mut child = std::process::Command::new(program);
    child.env(CHILD, "1").args([
        "--exact",
        "faults::a_write_behind_an_array_kills_the_process",
    ]);
    let ended = child.output().unwrap();
    assert_eq!(ended.status.code(), None, "a signal ends it: {ended:?}");
}

#[test]
fn arguments_of_other_sizes_are_refused() {
    let emulator = Emulator::new(Order::Forward, 1 << 20);
    // SAFETY: the launch is refused before anything is read.
    let refused = unsafe {
        emulator.launch(
            Kernel::ADD,
            Grid::over(1),
            &[Argument::Pointer(0), Argument::U32(1)],
        )
    };
    let message = refused.unwrap_err().to_string();
    assert!(
        message.contains("[8, 4]") && message.contains("[8, 8, 8]"),
        "{message}"
    );
}

#[test]
fn every_kernel_has_a_function() {
    let emulator = Emulator::new(Order::Forward, 1 << 20);
    for kernel in Kernel::ALL {
        // SAFETY: no kernel has no parameters, so every launch is refused.
        let refused = unsafe { emulator.launch(*kernel, Grid::over(1), &[]) };
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("are declared"), "{message}");
    }
}

#[test]
fn too_little_memory_says_how_much_is_free() {
    let emulator = Emulator::new(Order::Forward, 1000);
    let held = emulator.allocate(400).unwrap();
    let expected = KernelError::OutOfMemory {
        requested: 601,
        free: 600,
    };
    assert_eq!(emulator.allocate(601), Err(expected));
    emulator.free(held);
    let counts = |allocated, peak| DeviceMemory {
        allocated,
        peak,
        free: 1000 - allocated,
        total: 1000,
    };
    assert_eq!(emulator.memory(), Ok(counts(0, 400)));
    emulator.restart_peak().unwrap();
    assert!(emulator.allocate(601).is_ok());
    assert_eq!(emulator.memory(), Ok(counts(601, 601)));
}
