//! Packed attention on tensor cores against the definition of attention, and against one that
//! rounds where the kernels say that they round.

use half::bf16;
use kernels::attention::{Attention, Segments};
use kernels::device::Gpu;
use kernels::device::attention::packed::{self, PackedSegments};
use kernels::device::rows::to_bfloat16;

use super::attention::{define_packed, shape};
use super::{ORDERS, assert_close, device, in_every_order, numbers};

/// Keys of a tile of the forward pass.
const KEYS: usize = 64;

fn round(x: f64) -> f64 {
    f64::from(bf16::from_f32(x as f32))
}

/// Result and gradient on the device, one after the other.
fn run(gpu: &Gpu, [qkv, grad]: [&[f32]; 2], lengths: &[usize], spec: Attention) -> Vec<f32> {
    let rounded = |v: &[f32]| to_bfloat16(gpu.upload(v).unwrap().slice()).unwrap();
    let (qkv, grad) = (rounded(qkv), rounded(grad));
    let segments = Segments::from_lengths(lengths.iter().copied());
    let segments = PackedSegments::new(gpu, &segments).unwrap();
    let attended = packed::forward(qkv.slice(), &segments, spec).unwrap();
    let kept = [attended.out.slice(), attended.sums.slice()];
    let dqkv = packed::backward(qkv.slice(), kept, grad.slice(), &segments, spec).unwrap();
    [&attended.out, &dqkv]
        .map(|array| array.download().unwrap())
        .concat()
}

/// Adds a query's result and gradients of one segment, in double precision but for the roundings
/// of the kernels.
fn add_rounded(
    [x, g]: [&[f64]; 2],
    [token, head]: [usize; 2],
    spec: Attention,
    [out, dqkv]: [&mut [f64]; 2],
) {
    let (width, columns, outputs) = (spec.head_dim, spec.columns(), spec.outputs());
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let query = token * columns + head * width;
    let (q, scale) = (&x[query..][..width], f64::from(spec.scale));
    let keys = spec.first_key(token)..token + 1;
    let key = |t: usize| t * columns + spec.key_column(head / spec.group());
    let value = |t: usize| t * columns + spec.value_column(head / spec.group());
    let score = |t: usize| scale * dot(q, &x[key(t)..][..width]);
    let result = &mut out[token * outputs + head * width..][..width];
    let (mut most, mut sum) = (f64::MIN, 0.0);
    for tile in keys
        .clone()
        .collect::<Vec<_>>()
        .chunk_by(|a, b| a / KEYS == b / KEYS)
    {
        let before = most;
        most = tile.iter().map(|&t| score(t)).fold(most, f64::max);
        let kept = (before - most).exp();
        sum *= kept;
        result.iter_mut().for_each(|x| *x *= kept);
        for &t in tile {
            let weight = (score(t) - most).exp();
            sum += weight;
            let values = &x[value(t)..][..width];
            result
                .iter_mut()
                .zip(values)
                .for_each(|(r, v)| *r += round(weight) * v);
        }
    }
    result.iter_mut().for_each(|x| *x /= sum);
    let d_out = &g[token * outputs + head * width..][..width];
    let along = dot(d_out, result);
    for t in keys {
        let weight = (score(t) - most - sum.ln()).exp();
        let ds = round(weight * (dot(d_out, &x[value(t)..][..width]) - along));
        for c in 0..width {
            dqkv[value(t) + c] += round(weight) * d_out[c];
            dqkv[query + c] += scale * ds * x[key(t) + c];
            dqkv[key(t) + c] += scale * ds * x[query + c];
        }
    }
}

/// Result and gradient with the roundings of the kernels, one after the other.
fn define_rounded([qkv, grad]: [&[f32]; 2], lengths: &[usize], spec: Attention) -> Vec<f64> {
    let wide = |v: &[f32]| v.iter().map(|&x| x.into()).collect::<Vec<f64>>();
    let (x, g) = (wide(qkv), wide(grad));
    let (mut out, mut dqkv) = (vec![0.0; g.len()], vec![0.0; x.len()]);
    for rows in Segments::from_lengths(lengths.iter().copied()).iter() {
        let of = |width| rows.start * width..rows.end * width;
        let (columns, outputs) = (of(spec.columns()), of(spec.outputs()));
        for (token, head) in
            (0..rows.len()).flat_map(|t| (0..spec.query_heads).map(move |h| (t, h)))
        {
            let results = [&mut out[outputs.clone()], &mut dqkv[columns.clone()]];
            let inputs = [&x[columns.clone()], &g[outputs.clone()]];
            add_rounded(inputs, [token, head], spec, results);
        }
    }
    [out, dqkv].concat()
}

fn check(lengths: &[usize], spec: Attention, found: impl Fn([&[f32]; 2]) -> Vec<f32>) {
    let tokens: usize = lengths.iter().sum();
    let rows = |width, seed| {
        let numbers = numbers(tokens * width, seed);
        numbers
            .iter()
            .map(|&x| bf16::from_f32(x).to_f32())
            .collect::<Vec<_>>()
    };
    let (qkv, grad) = (rows(spec.columns(), 1), rows(spec.outputs(), 2));
    let found = found([&qkv, &grad]);
    let exact = define_packed(&qkv, &grad, lengths, spec);
    assert_close(&found, &[exact.out, exact.dqkv].concat(), 3e-2);
    let rounded = define_rounded([&qkv, &grad], lengths, spec);
    // Single precision may round a weight to the other side, which moves single results by 2^-9.
    let distance = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs();
    let mean = found.iter().zip(&rounded).map(distance).sum::<f64>() / found.len().max(1) as f64;
    assert!(
        mean < 2e-5,
        "mean distance {mean} from the rounded definition"
    );
}

#[test]
fn attention_on_tensor_cores_is_its_definition_for_every_head_size() {
    for (head_dim, window) in [
        (8, None),
        (16, Some(5)),
        (40, None),
        (64, None),
        (80, Some(50)),
    ] {
        let (lengths, spec) = ([17, 0, 2, 70], shape(2, 1, head_dim, window));
        check(&lengths, spec, |rows| {
            in_every_order(|gpu| run(gpu, rows, &lengths, spec))
        });
    }
    let (lengths, spec) = ([70, 3], shape(2, 2, 128, None));
    check(&lengths, spec, |rows| {
        in_every_order(|gpu| run(gpu, rows, &lengths, spec))
    });
}

#[test]
fn attention_on_tensor_cores_is_its_definition_for_every_group_window_and_length() {
    let gpu = device(ORDERS[2]);
    let lengths = [1, 2, 17, 64, 0, 100, 140];
    for (query_heads, kv_heads, window) in [
        (2, 2, None),
        (3, 1, Some(1)),
        (8, 2, Some(5)),
        (3, 1, Some(70)),
        (4, 1, Some(1000)),
    ] {
        let spec = shape(query_heads, kv_heads, 16, window);
        check(&lengths, spec, |rows| run(&gpu, rows, &lengths, spec));
    }
    let spec = shape(1, 1, 128, Some(40));
    check(&[150], spec, |rows| run(&gpu, rows, &[150], spec));
    check(&[], spec, |rows| run(&gpu, rows, &[], spec));
}

#[test]
fn other_heads_have_no_kernel_on_tensor_cores() {
    let gpu = device(ORDERS[0]);
    for head_dim in [12, 136] {
        let spec = shape(2, 1, head_dim, None);
        let qkv = gpu.zeros::<u16>(spec.columns()).unwrap();
        let segments = PackedSegments::new(&gpu, &Segments::from_lengths([1])).unwrap();
        let error = packed::forward(qkv.slice(), &segments, spec).err().unwrap();
        let expected = format!("{head_dim} columns, and the device's kernels in bfloat16 support");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}
