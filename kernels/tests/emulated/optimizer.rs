//! The global norm and AdamW against the same arithmetic on the host, bit for bit.

use kernels::device::optimizer::{Factors, Parameter, global_norm, step};

use super::{in_every_order, numbers};

const FACTORS: Factors = Factors {
    clip: 0.7,
    beta1: 0.9,
    beta2: 0.95,
    rate: 3e-3,
    root: 1.7,
    epsilon: 1e-8,
    keep: 0.999,
};

#[test]
fn the_norm_sums_blocks_of_eight_lanes() {
    for len in [0, 1, 5, 16_384, 16_385, 40_003] {
        let gradients = numbers(len, 1);
        let sums = gradients.chunks(1 << 14).map(|block| {
            let mut lanes = [0f64; 8];
            for (i, &g) in block.iter().enumerate() {
                lanes[i % 8] += f64::from(g) * f64::from(g);
            }
            lanes.iter().sum::<f64>()
        });
        let expected = sums.sum::<f64>().sqrt() as f32;
        let found = in_every_order(|gpu| {
            let gradients = gpu.upload(&gradients).unwrap();
            vec![global_norm(gradients.slice()).unwrap() as f32]
        });
        assert_eq!(found, [expected], "{len}");
    }
}

#[test]
fn a_step_is_that_of_the_host_and_writes_the_copy() {
    let len = 300;
    let [values, gradients, first] = [1, 2, 3].map(|seed| numbers(len, seed));
    let second: Vec<f32> = numbers(len, 4).iter().map(|v| v.abs()).collect();
    let found = in_every_order(|gpu| {
        let upload = |v: &[f32]| gpu.upload(v).unwrap();
        let (mut p, mut m, mut v) = (upload(&values), upload(&first), upload(&second));
        let mut copy = gpu.array(len).unwrap();
        let gradients = upload(&gradients);
        let parameter = Parameter {
            values: p.slice_mut(),
            gradients: gradients.slice(),
            first: m.slice_mut(),
            second: v.slice_mut(),
            copy: Some(copy.slice_mut()),
        };
        step(parameter, FACTORS).unwrap();
        let copy = copy.download().unwrap();
        let copy = copy
            .iter()
            .map(|&bits| f32::from_bits(u32::from(bits) << 16));
        let arrays = [&p, &m, &v].map(|array| array.download().unwrap());
        arrays.into_iter().flatten().chain(copy).collect()
    });
    let f = FACTORS;
    let (mut p, mut m, mut v) = (values, first, second);
    for i in 0..len {
        let g = gradients[i] * f.clip;
        m[i] = f.beta1 * m[i] + (1.0 - f.beta1) * g;
        v[i] = f.beta2 * v[i] + (1.0 - f.beta2) * g * g;
        p[i] = p[i] * f.keep - f.rate * m[i] / (v[i].sqrt() * f.root + f.epsilon);
    }
    assert_eq!(found[..3 * len], [&p[..], &m, &v].concat());
    let copies = p.iter().map(|&value| half::bf16::from_f32(value).to_f32());
    assert_eq!(found[3 * len..], copies.collect::<Vec<_>>());
}
