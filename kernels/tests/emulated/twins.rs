//! The device against the host, bit for bit, where both promise the same bits.

use kernels::arguments::{Columns, Direction, Factors, Gelu, Groups};
use kernels::device::{activation, logits, norm, optimizer, rope};
use kernels::host;
use kernels::host::logits::RowTarget;
use kernels::host::norm::NormParameters;
use kernels::host::optimizer::ParameterSlices;

use super::{in_every_order, numbers};

const ROWS: usize = 70;
const GROUPS: Groups = Groups {
    rows: ROWS,
    columns: 41,
    first: 2,
    count: 2,
    width: 19,
};
const EPS: f32 = 1e-5;

#[test]
fn activations_have_the_bits_of_the_host() {
    let (x, dy) = (numbers(ROWS * 2 * 37, 1), numbers(ROWS * 37, 2));
    let found = in_every_order(|gpu| {
        let (x, dy) = (gpu.upload(&x).unwrap(), gpu.upload(&dy).unwrap());
        let y = activation::swiglu(x.slice(), ROWS).unwrap();
        let dx = activation::swiglu_backward(x.slice(), dy.slice(), ROWS).unwrap();
        let curved = activation::gelu(Gelu::Tanh, dy.slice()).unwrap();
        let mut d = gpu.upload(&x.download().unwrap()[..dy.len()]).unwrap();
        activation::gelu_backward(Gelu::Tanh, dy.slice(), d.slice_mut()).unwrap();
        [&y, &dx, &curved, &d]
            .map(|array| array.download().unwrap())
            .concat()
    });
    let mut d = x[..dy.len()].to_vec();
    host::activation::gelu_backward(Gelu::Tanh, &dy, &mut d);
    let expected = [
        host::activation::swiglu(&x, ROWS),
        host::activation::swiglu_backward(&x, &dy, ROWS),
        host::activation::gelu(Gelu::Tanh, &dy),
        d,
    ];
    assert_eq!(found, expected.concat());
}

#[test]
fn rotations_have_the_bits_of_the_host() {
    let (heads, half, columns) = (3, 5, 34);
    let x = numbers(ROWS * columns, 1);
    let angles = [2, 3].map(|seed| numbers(ROWS * half, seed));
    for direction in [Direction::Forward, Direction::Backward] {
        let found = in_every_order(|gpu| {
            let mut x = gpu.upload(&x).unwrap();
            let [cos, sin] = angles.each_ref().map(|a| gpu.upload(a).unwrap());
            let angles = [cos.slice(), sin.slice()];
            let (heads, half) = (heads as u32, half as u32);
            rope::rotate(x.slice_mut(), angles, ROWS, heads, half, direction).unwrap();
            x.download().unwrap()
        });
        let mut expected = x.clone();
        let angles = angles.each_ref().map(Vec::as_slice);
        host::rope::rotate(&mut expected, angles, ROWS, heads, half, direction);
        assert_eq!(found, expected);
    }
}

/// The result and the gradients of the parameters; that of the input sums a row in other lanes.
#[test]
fn norms_have_the_bits_of_the_host() {
    let len = ROWS * GROUPS.columns as usize;
    let (x, dy) = (numbers(len, 1), numbers(len, 2));
    let [w, b] = [3, 4].map(|seed| numbers(GROUPS.width as usize, seed));
    let found = in_every_order(|gpu| {
        let upload = |v: &[f32]| gpu.upload(v).unwrap();
        let (x, w, bias, mut d) = (upload(&x), upload(&w), upload(&b), upload(&dy));
        let (mut dw, mut db) = (upload(&b), upload(&b));
        let parameters = norm::Parameters::Layer {
            weight: w.slice(),
            bias: bias.slice(),
        };
        let gradients = norm::Gradients::Layer {
            weight: dw.slice_mut(),
            bias: db.slice_mut(),
        };
        let y = norm::forward(x.slice(), parameters, GROUPS, EPS).unwrap();
        let d = d.slice_mut();
        norm::backward(x.slice(), d, parameters, Some(gradients), GROUPS, EPS).unwrap();
        [&y, &dw, &db]
            .map(|array| array.download().unwrap())
            .concat()
    });
    let parameters = NormParameters::Layer {
        weight: &w,
        bias: &b,
    };
    let y = host::norm::forward(&x, parameters, GROUPS, EPS);
    let sums = host::norm::backward(&x, &mut dy.clone(), parameters, GROUPS, EPS);
    let added = [&sums.weight, &sums.bias].map(|sums| {
        let mut gradient = b.clone();
        host::rows::add_rows(&mut gradient, sums);
        gradient
    });
    assert_eq!(found, [y, added.concat()].concat());
}

#[test]
fn rows_of_logits_have_the_bits_of_the_host() {
    const VOCABULARY: usize = 1003;
    let kept: Vec<u32> = (3..300).chain([700, 701, 1002]).collect();
    let (tokens, kept) = ([5u32, 700, 7], [&[][..], &kept, &[7]]);
    let (x, given) = (numbers(3 * VOCABULARY, 1), numbers(9, 2));
    let (t, columns) = (1.3, Columns::OwnAndWhole);
    let found = in_every_order(|gpu| {
        let targets = logits::Targets::new(gpu, &tokens, &kept, VOCABULARY).unwrap();
        let (mut x, given) = (gpu.upload(&x).unwrap(), gpu.upload(&given).unwrap());
        let out = logits::forward(x.slice(), &targets, columns, t).unwrap();
        logits::backward(x.slice_mut(), &targets, given.slice(), columns, t).unwrap();
        [&out, &x].map(|array| array.download().unwrap()).concat()
    });
    let targets = [0, 1, 2].map(|i| RowTarget {
        token: tokens[i],
        kept: (!kept[i].is_empty()).then_some(kept[i]),
    });
    let (mut out, mut gradient) = (vec![0.0; 9], x.clone());
    host::logits::forward(&x, &targets, columns, t, &mut out);
    host::logits::backward(&mut gradient, &targets, &given, columns, t);
    assert_eq!(found, [out, gradient].concat());
}

#[test]
fn the_optimizer_has_the_bits_of_the_host() {
    let factors = Factors {
        clip: 0.7,
        beta1: 0.9,
        beta2: 0.95,
        rate: 3e-3,
        root: 1.7,
        epsilon: 1e-8,
        keep: 0.999,
    };
    let [mut p, g, mut m] = [1, 2, 3].map(|seed| numbers(20_000, seed));
    let mut v: Vec<f32> = m.iter().map(|m| m.abs()).collect();
    let found = in_every_order(|gpu| {
        let upload = |v: &[f32]| gpu.upload(v).unwrap();
        let (mut p, g, mut m, mut v) = (upload(&p), upload(&g), upload(&m), upload(&v));
        let norm = optimizer::global_norm(g.slice()).unwrap();
        let parameter = optimizer::Parameter {
            values: p.slice_mut(),
            gradients: g.slice(),
            first: m.slice_mut(),
            second: v.slice_mut(),
            copy: None,
        };
        optimizer::step(parameter, factors).unwrap();
        let arrays = [&p, &m, &v].map(|array| array.download().unwrap());
        [arrays.concat(), vec![norm as f32]].concat()
    });
    let norm = host::optimizer::global_norm(&g) as f32;
    let parameter = ParameterSlices {
        values: &mut p,
        gradients: &g,
        first: &mut m,
        second: &mut v,
    };
    host::optimizer::step(parameter, factors);
    assert_eq!(found, [p, m, v, vec![norm]].concat());
}
