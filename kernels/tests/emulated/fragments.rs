//! The emulated instructions of tensor cores against plain products, with fragments in the layouts
//! of CUTLASS (`mma_traits_sm80.hpp`), written independently of the emulator's.

use kernels::device::emulator::{Emulator, Order};
use kernels::device::{Argument, Grid, Kernel, Launcher};

use super::{ORDERS, numbers};

/// Runs a kernel of one warp on arrays of words, and returns the last one.
fn run(name: &'static str, threads: u32, arrays: &[&[u32]], order: Order) -> Vec<u32> {
    let emulator = Emulator::new(order, 1 << 20);
    let grid = Grid {
        blocks: [1; 3],
        threads,
        shared_bytes: 1024,
    };
    let mut arguments = Vec::new();
    let mut last = None;
    for words in arrays {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let array = emulator.allocate(bytes.len()).unwrap();
        // SAFETY: the array has as many bytes.
        unsafe { emulator.upload(array.pointer, &bytes).unwrap() };
        arguments.push(Argument::Pointer(array.pointer));
        last = Some(array);
    }
    let array = last.expect("an array");
    let mut bytes = vec![0; array.bytes];
    // SAFETY: the arrays have the elements that the kernel reads and writes.
    unsafe {
        emulator.launch(Kernel { name }, grid, &arguments).unwrap();
        emulator.download(array.pointer, &mut bytes).unwrap();
    }
    let words = bytes.as_chunks::<4>().0.iter();
    words.map(|word| u32::from_ne_bytes(*word)).collect()
}

/// Registers of the 32 lanes whose half `i` of lane `l` is the element at `place(l, i)`, which is a
/// row plus `rows` times a column.
fn fragments(halves: usize, place: impl Fn(usize, usize) -> usize, elements: &[u16]) -> Vec<u32> {
    let half = |lane, i| u32::from(elements[place(lane, i)]);
    let registers =
        |lane| (0..halves / 2).map(move |r| half(lane, 2 * r) | half(lane, 2 * r + 1) << 16);
    (0..32).flat_map(registers).collect()
}

#[test]
fn a_product_of_fragments_is_the_product_of_their_tiles() {
    let bits = |x: &f32| half::bf16::from_f32(*x).to_bits();
    let a: Vec<u16> = numbers(16 * 16, 1).iter().map(bits).collect(); // column-major, 16 rows
    let b: Vec<u16> = numbers(8 * 16, 2).iter().map(bits).collect(); // [k][n]
    let c = numbers(16 * 8, 3); // column-major, 16 rows
    // Strides of the traits: threads (4, 8), values (2, 2, 2).
    let a_place =
        |l: usize, i: usize| l % 4 * 32 + l / 4 + i % 2 * 16 + i / 2 % 2 * 8 + i / 4 * 128;
    let b_place = |l: usize, i: usize| l % 4 * 16 + l / 4 + i % 2 * 8 + i / 2 * 64;
    let c_place = |l: usize, i: usize| l % 4 * 32 + l / 4 + i % 2 * 16 + i / 2 * 8;
    let lanes = (0..32).flat_map(|l| (0..4).map(move |i| (l, i)));
    let start: Vec<u32> = lanes
        .clone()
        .map(|(l, i)| c[c_place(l, i)].to_bits())
        .collect();
    let wide = |bits: u16| f64::from(half::bf16::from_bits(bits).to_f32());
    for order in ORDERS {
        let arrays = [
            &fragments(8, a_place, &a)[..],
            &fragments(4, b_place, &b),
            &start,
        ];
        let found = run("fragment_product", 32, &arrays, order);
        for ((l, i), found) in lanes.clone().zip(found) {
            let (row, column) = (c_place(l, i) % 16, c_place(l, i) / 16);
            let product = |k: usize| wide(a[row + 16 * k]) * wide(b[column + 8 * k]);
            let sum = f64::from(c[c_place(l, i)]) + (0..16).map(product).sum::<f64>();
            assert!(
                (f64::from(f32::from_bits(found)) - sum).abs() < 1e-5,
                "{l} {i}"
            );
        }
    }
}

#[test]
fn matrices_are_loaded_as_they_are_and_transposed() {
    let elements: Vec<u16> = (0..256).collect(); // [matrix][row][column]
    let words: Vec<u32> = elements
        .chunks(2)
        .map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16)
        .collect();
    for order in ORDERS {
        let found = run("fragment_loads", 32, &[&words, &[0; 256]], order);
        for (lane, m) in (0..32).flat_map(|lane| (0..4).map(move |m| (lane, m))) {
            let (g, t) = (lane / 4, lane % 4);
            let at = |row: usize, column: usize| (64 * m + 8 * row + column) as u32;
            let own = at(g, 2 * t) | at(g, 2 * t + 1) << 16;
            let transposed = at(2 * t, g) | at(2 * t + 1, g) << 16;
            assert_eq!(found[4 * lane + m], own);
            assert_eq!(found[128 + 4 * lane + m], transposed);
        }
    }
}

#[test]
fn copies_arrive_with_their_group() {
    let from: Vec<u32> = (10..18).collect();
    let found = run("fragment_copies", 1, &[&from, &[0; 36]], ORDERS[0]);
    let none = [u32::MAX; 4];
    assert_eq!(found[..12], [none; 3].concat());
    assert_eq!(
        found[12..24],
        [&[10, 11, 12, 13][..], &none, &none].concat()
    );
    assert_eq!(found[24..], [10, 11, 12, 13, 14, 15, 16, 17, 0, 0, 0, 0]);
}
