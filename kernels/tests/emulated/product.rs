//! Products against chains of fused multiply-adds, bit for bit.

use kernels::device::Gpu;
use kernels::device::product::{DeviceMatrix, DeviceMatrixMut, FactorNumber, Precision, Receive};

use super::{ORDERS, device, numbers};

const SIZES: [usize; 3] = [3, 5, 7];

/// The product of factors whose rows are `stride` apart, in the middle columns of rows of 9.
fn product<T: FactorNumber>(gpu: &Gpu, a: &[T], b: &[T], c: &[f32], how: Receive) -> Vec<f32> {
    let [m, n, k] = SIZES;
    let (a, b, mut c) = (
        gpu.upload(a).unwrap(),
        gpu.upload(b).unwrap(),
        gpu.upload(c).unwrap(),
    );
    let a = DeviceMatrix::new(a.slice(), k, m, 4).unwrap().t();
    let b = DeviceMatrix::new(b.slice(), n, k, 8).unwrap().t();
    let to = c.slice_mut().part(2..9 * m);
    let mut to = DeviceMatrixMut::new(to, m, n, 9).unwrap();
    to.receive(a, b, how, Precision::Full).unwrap();
    c.download().unwrap()
}

fn expected(a: &[f32], b: &[f32], c: &[f32], how: Receive) -> Vec<f32> {
    let ([m, n, k], mut c) = (SIZES, c.to_vec());
    for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
        let sum = &mut c[row * 9 + 2 + column];
        let start = if how == Receive::Add { *sum } else { 0.0 };
        *sum = (0..k).fold(start, |s, i| a[i * 4 + row].mul_add(b[column * 8 + i], s));
    }
    c
}

#[test]
fn products_are_chains() {
    let gpu = device(ORDERS[0]);
    let (a, b, c) = (numbers(28, 1), numbers(40, 2), numbers(27, 3));
    for how in [Receive::Set, Receive::Add] {
        let found = product(&gpu, &a, &b, &c, how);
        assert_eq!(found, expected(&a, &b, &c, how));
        let bits = |x: &[f32]| x.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
        let (short_a, short_b): (Vec<u16>, Vec<u16>) = (bits(&a), bits(&b));
        let wide = |x: &[u16]| -> Vec<f32> {
            let number = |&bits: &u16| f32::from_bits(u32::from(bits) << 16);
            x.iter().map(number).collect()
        };
        let found = product(&gpu, &short_a, &short_b, &c, how);
        let expected = expected(&wide(&short_a), &wide(&short_b), &c, how);
        assert_eq!(found, expected);
    }
}

/// 1 + 2⁻¹¹ lies between two numbers of TF32.
#[test]
fn tf32_rounds_factors_to_ten_bits() {
    let gpu = device(ORDERS[0]);
    let one = |x: f32| gpu.upload(&[x]).unwrap();
    let (a, b, mut c) = (one(1.0 + 2f32.powi(-11)), one(1.0), one(0.0));
    let [a, b] = [&a, &b].map(|x| DeviceMatrix::new(x.slice(), 1, 1, 1).unwrap());
    let mut to = DeviceMatrixMut::new(c.slice_mut(), 1, 1, 1).unwrap();
    to.receive(a, b, Receive::Set, Precision::Tf32).unwrap();
    assert_eq!(c.download().unwrap(), [1.0 + 2f32.powi(-10)]);
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    let gpu = device(ORDERS[0]);
    let x = gpu.upload(&[0f32; 12]).unwrap();
    let refused = DeviceMatrix::new(x.slice(), 3, 4, 5).err().unwrap();
    assert!(
        refused.to_string().contains("12 elements where 14"),
        "{refused}"
    );
    let mut c = gpu.upload(&[0f32; 9]).unwrap();
    let matrix = || DeviceMatrix::new(x.slice(), 3, 4, 4).unwrap();
    let mut to = DeviceMatrixMut::new(c.slice_mut(), 3, 3, 3).unwrap();
    let refused = to.receive(matrix(), matrix(), Receive::Set, Precision::Full);
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("4 elements where 3"), "{message}");
}
