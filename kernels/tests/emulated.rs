//! Kernels on the emulated device.

#![cfg(feature = "emulate")]

#[path = "emulated/attention.rs"]
mod attention;
#[path = "emulated/attention_paged.rs"]
mod attention_paged;
#[path = "emulated/attention_tensor.rs"]
mod attention_tensor;
#[path = "emulated/faults.rs"]
mod faults;
#[path = "emulated/fragments.rs"]
mod fragments;
#[path = "emulated/logits.rs"]
mod logits;
#[path = "emulated/operations.rs"]
mod operations;
#[path = "emulated/optimizer.rs"]
mod optimizer;
#[path = "emulated/product.rs"]
mod product;
#[path = "emulated/sampling.rs"]
mod sampling;
#[path = "emulated/twins.rs"]
mod twins;

use std::sync::Arc;

use kernels::device::Gpu;
use kernels::device::emulator::{Emulator, Order};

/// The orders in which every kernel must give the same bits.
const ORDERS: [Order; 4] = [
    Order::Forward,
    Order::Reverse,
    Order::Seeded(1),
    Order::Seeded(2),
];

/// A device with 64 MiB.
fn device(order: Order) -> Gpu {
    Gpu::new(Arc::new(Emulator::new(order, 64 << 20)))
}

/// Numbers in [−2, 2) without a pattern.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / 2f32.powi(30) - 2.0
    };
    (0..len).map(|_| next()).collect()
}

/// Runs `f` in every order, and returns the result that all of them have.
fn in_every_order(f: impl Fn(&Gpu) -> Vec<f32>) -> Vec<f32> {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let results = ORDERS.map(|order| f(&device(order)));
    for (result, order) in results.iter().zip(ORDERS) {
        assert_eq!(bits(result), bits(&results[0]), "{order:?}");
    }
    results.into_iter().next().unwrap()
}

fn assert_close(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let distance = (f64::from(found) - expected).abs();
        assert!(
            distance <= tolerance * expected.abs().max(1.0),
            "element {i}: {found} where {expected} is expected"
        );
    }
}
