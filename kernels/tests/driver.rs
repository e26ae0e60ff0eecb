//! The driver of a GPU gives the emulator's results: on a GPU, or on the stand-in for the driver's
//! libraries (`.ci/standin`), which runs the same kernels behind the driver's interface.

#![cfg(all(feature = "cuda", feature = "emulate"))]

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};
use kernels::device::driver::{Driver, exchange};
use kernels::device::emulator::{Emulator, Order};
use kernels::device::norm::{self, Groups, Parameters};
use kernels::device::product::{DeviceMatrix, DeviceMatrixMut, Precision, Receive};
use kernels::device::{
    Argument, Gpu, Grid, Kernel, KernelError, Launcher, activation, optimizer, rows,
};

/// A stream of the first GPU; `None` on a machine without a driver.
fn stream() -> Option<Arc<CudaStream>> {
    // cudarc panics where libcuda is missing.
    let opened = std::panic::catch_unwind(|| CudaContext::new(0)).ok()?;
    Some(opened.unwrap().new_stream().unwrap())
}

/// The GPU, or a note that there is none, past the harness, which keeps what a passing test prints.
fn driver(images: Option<&Path>) -> Option<Driver> {
    let Some(stream) = stream() else {
        let note = b"passed over: the driver of a GPU: no GPU, and no stand-in for the driver\n";
        std::io::stderr().write_all(note).unwrap();
        return None;
    };
    Some(Driver::new(stream, images).unwrap())
}

fn emulator() -> Gpu {
    Gpu::new(Arc::new(Emulator::new(Order::Forward, 64 << 20)))
}

/// Numbers in [−2, 2) without a pattern.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as f32 / 2f32.powi(30) - 2.0
    };
    (0..len).map(|_| next()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Calls of different signatures and grids, whose results have defined bits on every device.
fn kernels_of(gpu: &Gpu) -> Vec<f32> {
    let (rows, width) = (37, 48);
    let x = gpu.upload(&numbers(rows * width, 1)).unwrap();
    let weight = gpu.upload(&numbers(width, 2)).unwrap();
    let bias = gpu.upload(&numbers(width, 3)).unwrap();
    let groups = Groups {
        rows,
        columns: width as u32,
        first: 0,
        count: 1,
        width: width as u32,
    };
    let parameters = Parameters::Layer {
        weight: weight.slice(),
        bias: bias.slice(),
    };
    let mut y = norm::forward(x.slice(), parameters, groups, 1e-5).unwrap();
    rows::add(y.slice_mut(), x.slice()).unwrap();
    let mut all = activation::swiglu(y.slice(), rows)
        .unwrap()
        .download()
        .unwrap();
    all.push(optimizer::global_norm(y.slice()).unwrap() as f32);
    all.extend(y.slice().part(5..99).copied().unwrap().download().unwrap());
    all.extend(gpu.zeros::<f32>(7).unwrap().download().unwrap());
    all
}

#[test]
fn kernels_have_the_emulators_bits() {
    let Some(driver) = driver(None) else { return };
    driver.load_all().unwrap();
    let gpu = Gpu::new(Arc::new(driver));
    assert_eq!(bits(&kernels_of(&gpu)), bits(&kernels_of(&emulator())));
}

/// `x · Wᵀ`, `dy · W` and `dyᵀ · x` by way of columns of wider matrices, in single precision and in
/// bfloat16.
fn products_of(gpu: &Gpu) -> Vec<f32> {
    let [m, n, k] = [5, 12, 40];
    let (x, w) = (numbers(m * (k + 3), 4), numbers(n * k, 5));
    let narrow = |v: &[f32]| {
        v.iter()
            .map(|v| (v.to_bits() >> 16) as u16)
            .collect::<Vec<_>>()
    };
    let (x_narrow, w_narrow) = (
        gpu.upload(&narrow(&x)).unwrap(),
        gpu.upload(&narrow(&w)).unwrap(),
    );
    let (x, w) = (gpu.upload(&x).unwrap(), gpu.upload(&w).unwrap());
    let mut y = gpu.upload(&numbers(m * 20, 6)).unwrap();
    let mut dw = gpu.upload(&numbers(n * k, 7)).unwrap();
    let mut dx = gpu.zeros::<f32>(m * k).unwrap();

    let x_rows = DeviceMatrix::new(x.slice().part(3..x.len()), m, k, k + 3).unwrap();
    let weight = DeviceMatrix::new(w.slice(), n, k, k).unwrap();
    let full = Precision::Full;
    let mut columns = DeviceMatrixMut::new(y.slice_mut().part(4..20 * m), m, n, 20).unwrap();
    columns
        .receive(x_rows, weight.t(), Receive::Set, full)
        .unwrap();
    let dy = DeviceMatrix::new(y.slice().part(4..20 * m), m, n, 20).unwrap();
    let mut to = DeviceMatrixMut::new(dw.slice_mut(), n, k, k).unwrap();
    to.receive(dy.t(), x_rows, Receive::Add, full).unwrap();
    let mut to = DeviceMatrixMut::new(dx.slice_mut(), m, k, k).unwrap();
    to.receive(dy, weight, Receive::Set, full).unwrap();

    let mut z = gpu.zeros::<f32>(m * n).unwrap();
    let x_rows = DeviceMatrix::new(x_narrow.slice(), m, k, k + 3).unwrap();
    let weight = DeviceMatrix::new(w_narrow.slice(), n, k, k).unwrap();
    let mut to = DeviceMatrixMut::new(z.slice_mut(), m, n, n).unwrap();
    to.receive(x_rows, weight.t(), Receive::Set, full).unwrap();
    [y, dw, dx, z]
        .map(|array| array.download().unwrap())
        .concat()
}

#[test]
fn products_are_the_emulators_up_to_the_order_of_sums() {
    let Some(driver) = driver(None) else { return };
    let gpu = Gpu::new(Arc::new(driver));
    let (found, expected) = (products_of(&gpu), products_of(&emulator()));
    assert_eq!(found.len(), expected.len());
    // Sums of 40 products of numbers below 2, or of 12 of numbers below 160.
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3;
    assert!(found.iter().zip(&expected).all(close));
    assert_eq!(
        bits(&found),
        bits(&products_of(&gpu)),
        "a second run has the same bits"
    );
}

#[test]
fn memory_goes_to_cudarc_and_back_without_a_copy() {
    let Some(driver) = driver(None) else { return };
    let stream = Arc::clone(driver.stream());
    let gpu = Gpu::new(Arc::new(driver));
    let own = numbers(100, 8);
    let array = gpu.upload(&own).unwrap();
    let address = array.slice().pointer();
    let mut slice = exchange::slice::<f32>(array, &stream).unwrap();
    assert_eq!(stream.clone_dtoh(&slice).unwrap(), own);
    assert_eq!(exchange::borrow(&gpu, &slice).unwrap().pointer(), address);
    exchange::borrow_mut(&gpu, &mut slice)
        .unwrap()
        .clear()
        .unwrap();
    let array = exchange::array(&gpu, slice).unwrap();
    assert_eq!(array.slice().pointer(), address);
    assert_eq!(array.download().unwrap(), vec![0.0; 100]);

    let other = stream.context().new_stream().unwrap();
    let refused = Err(KernelError::Devices { what: "a tensor" });
    let of_other = exchange::array(&gpu, other.clone_htod(&own).unwrap());
    assert_eq!(of_other.map(drop), refused);
    assert_eq!(exchange::slice::<f32>(array, &other).map(drop), refused);
    let emulated = emulator().upload(&own).unwrap();
    assert_eq!(exchange::slice::<f32>(emulated, &stream).map(drop), refused);
}

#[test]
fn a_stream_of_each_thread_is_refused() {
    let Some(stream) = stream() else { return };
    let refused = Driver::new(stream.context().per_thread_stream(), None).map(drop);
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("another one for each thread"), "{message}");
}

#[test]
fn images_are_kept_and_damaged_ones_compiled_again() {
    let folder = tempfile::tempdir().unwrap();
    let run = || {
        let driver = driver(Some(folder.path()))?;
        let gpu = Gpu::new(Arc::new(driver));
        let mut x = gpu.upload(&[1.0_f32, 2.0]).unwrap();
        let same = x.slice().copied().unwrap();
        rows::add(x.slice_mut(), same.slice()).unwrap();
        assert_eq!(x.download().unwrap(), [2.0, 4.0]);
        Some(())
    };
    if run().is_none() {
        return;
    }
    let files = || std::fs::read_dir(folder.path()).unwrap();
    let path = files().next().unwrap().unwrap().path();
    run();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    run();
    assert_eq!(std::fs::read(&path).unwrap().len(), whole.len());
}

#[test]
fn bad_calls_are_refused_with_their_reason() {
    let Some(driver) = driver(None) else { return };
    let free = match driver.allocate(1 << 50) {
        Err(KernelError::OutOfMemory { requested, free }) => {
            assert_eq!(requested, 1 << 50);
            free
        }
        other => panic!("{other:?}"),
    };
    assert!(free > 1 << 20, "{free} bytes are free");
    let held = driver.allocate(64).unwrap();
    let pointer = Argument::Pointer(held.pointer);
    let launch = |name, shared_bytes, arguments: &[Argument]| {
        let grid = Grid {
            shared_bytes,
            ..Grid::over(1)
        };
        // SAFETY: one element is added to another of the same allocation, if it is launched.
        unsafe { driver.launch(Kernel { name }, grid, arguments) }
    };
    let whole = [pointer, pointer, Argument::U64(1)];
    assert_eq!(launch("add", 0, &whole), Ok(()));
    assert_eq!(
        launch("add", 64 << 10, &whole),
        Ok(()),
        "more than 48 KiB of shared memory"
    );
    for (result, reason) in [
        (
            launch("add", 1 << 20, &whole),
            "1048576 bytes of shared memory",
        ),
        (launch("add", 0, &[pointer, Argument::U32(1)]), "[8, 4]"),
        (
            launch("subtract", 0, &whole),
            "no source under cuda/ declares it",
        ),
    ] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
    driver.free(held);
}
