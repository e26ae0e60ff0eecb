//! Packed attention against its definition in double precision, in every order.

use kernels::attention::{Attention, Segments};
use kernels::device::attention::packed::{self, PackedSegments};
use kernels::device::{Array, Gpu};

use super::{assert_close, device, in_every_order, numbers};

/// A shape whose scores are large enough for uneven weights.
pub fn shape(
    query_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
) -> Attention {
    Attention {
        query_heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window,
    }
}

/// Attention of one segment in double precision.
pub struct Definition {
    /// `[tokens, outputs]`
    pub out: Vec<f64>,
    /// `[tokens, columns]`: the gradient of `q | k | v` for that of `out`.
    pub dqkv: Vec<f64>,
}

/// The definition: softmax over the visible keys, and its derivative
/// dS = P (dP − Σ P dP), a query and a head at a time.
pub fn define(qkv: &[f32], grad: &[f32], spec: Attention) -> Definition {
    let (width, columns, outputs) = (spec.head_dim, spec.columns(), spec.outputs());
    let tokens = qkv.len() / columns;
    let x: Vec<f64> = qkv.iter().map(|&x| x.into()).collect();
    let g: Vec<f64> = grad.iter().map(|&g| g.into()).collect();
    let (mut out, mut dqkv) = (vec![0.0; tokens * outputs], vec![0.0; qkv.len()]);
    let scale = f64::from(spec.scale);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for (token, head) in (0..tokens).flat_map(|t| (0..spec.query_heads).map(move |h| (t, h))) {
        let query = token * columns + head * width;
        let result = token * outputs + head * width;
        let kv = spec.query_heads + head / spec.group();
        let key = |t: usize| t * columns + kv * width;
        let value = |t: usize| key(t) + spec.kv_heads * width;
        let first = (token + 1).saturating_sub(spec.window.unwrap_or(usize::MAX));
        let q = &x[query..query + width];
        let scores: Vec<f64> = (first..=token)
            .map(|t| scale * dot(q, &x[key(t)..key(t) + width]))
            .collect();
        let most = scores.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        let p: Vec<f64> = scores.iter().map(|s| (s - most).exp() / sum).collect();
        let d_out = &g[result..result + width];
        let dp: Vec<f64> = (first..=token)
            .map(|t| dot(d_out, &x[value(t)..value(t) + width]))
            .collect();
        let along = dot(&p, &dp);
        for (i, t) in (first..=token).enumerate() {
            let ds = scale * p[i] * (dp[i] - along);
            for c in 0..width {
                out[result + c] += p[i] * x[value(t) + c];
                dqkv[value(t) + c] += p[i] * d_out[c];
                dqkv[query + c] += ds * x[key(t) + c];
                dqkv[key(t) + c] += ds * x[query + c];
            }
        }
    }
    Definition { out, dqkv }
}

/// The definition of packed segments.
pub fn define_packed(qkv: &[f32], grad: &[f32], lengths: &[usize], spec: Attention) -> Definition {
    let (mut out, mut dqkv) = (Vec::new(), Vec::new());
    let mut first = 0;
    for length in lengths {
        let rows = first..first + length;
        let part = |v: &'_ [f32], width: usize| v[rows.start * width..rows.end * width].to_vec();
        let qkv = part(qkv, spec.columns());
        let one = define(&qkv, &part(grad, spec.outputs()), spec);
        out.extend(one.out);
        dqkv.extend(one.dqkv);
        first = rows.end;
    }
    Definition { out, dqkv }
}

/// Result and gradient on the device, one after the other.
fn run(gpu: &Gpu, [qkv, grad]: [&[f32]; 2], lengths: &[usize], spec: Attention) -> Vec<f32> {
    let [qkv, grad] = [qkv, grad].map(|v| gpu.upload(v).unwrap());
    let segments =
        PackedSegments::new(gpu, &Segments::from_lengths(lengths.iter().copied())).unwrap();
    let attended = packed::forward(qkv.slice(), &segments, spec).unwrap();
    let kept = [&attended.out, &attended.sums].map(Array::slice);
    let dqkv = packed::backward(qkv.slice(), kept, grad.slice(), &segments, spec).unwrap();
    [&attended.out, &dqkv]
        .map(|array| array.download().unwrap())
        .concat()
}

fn check(lengths: &[usize], spec: Attention) {
    let tokens: usize = lengths.iter().sum();
    let qkv = numbers(tokens * spec.columns(), 1);
    let grad = numbers(tokens * spec.outputs(), 2);
    let found = in_every_order(|gpu| run(gpu, [&qkv, &grad], lengths, spec));
    let expected = define_packed(&qkv, &grad, lengths, spec);
    assert_close(&found, &[expected.out, expected.dqkv].concat(), 2e-5);
}

#[test]
fn packed_attention_is_its_definition_for_every_head_size() {
    for head_dim in [4, 8, 20, 16, 32, 40, 64, 80, 128, 256] {
        check(&[17, 0, 2, 40], shape(2, 1, head_dim, None));
        check(&[35], shape(2, 1, head_dim, Some(5)));
    }
}

#[test]
fn packed_attention_is_its_definition_for_every_group_window_and_length() {
    let lengths = [1, 2, 17, 64, 0, 100];
    for (query_heads, kv_heads) in [(2, 2), (3, 1), (8, 2)] {
        for window in [None, Some(1), Some(5), Some(1000)] {
            check(&lengths, shape(query_heads, kv_heads, 8, window));
        }
    }
    check(&[130, 65], shape(3, 1, 32, Some(70)));
    check(&[], shape(3, 1, 32, None));
}

#[test]
fn a_segment_does_not_depend_on_its_neighbours() {
    let spec = shape(4, 2, 32, Some(20));
    let gpu = device(super::ORDERS[2]);
    let qkv = numbers(150 * spec.columns(), 1);
    let grad = numbers(150 * spec.outputs(), 2);
    let packed = run(&gpu, [&qkv, &grad], &[30, 70, 50], spec);
    let (columns, outputs) = (spec.columns(), spec.outputs());
    let alone = run(
        &gpu,
        [
            &qkv[30 * columns..100 * columns],
            &grad[30 * outputs..100 * outputs],
        ],
        &[70],
        spec,
    );
    let (out, dqkv) = packed.split_at(150 * outputs);
    assert_eq!(alone[..70 * outputs], out[30 * outputs..100 * outputs]);
    assert_eq!(alone[70 * outputs..], dqkv[30 * columns..100 * columns]);
}

#[test]
fn shapes_without_a_kernel_are_refused() {
    let gpu = device(super::ORDERS[0]);
    let refused = |spec: Attention| {
        let qkv = gpu.upload(&vec![0.0; 3 * spec.columns()]).unwrap();
        let segments = PackedSegments::new(&gpu, &Segments::from_lengths([3])).unwrap();
        let error = packed::forward(qkv.slice(), &segments, spec).err().unwrap();
        error.to_string()
    };
    assert!(refused(shape(2, 1, 18, None)).contains("multiples of 4 up to 256"));
    assert!(refused(shape(2, 1, 264, None)).contains("264 columns"));
    assert!(refused(shape(3, 2, 8, None)).contains("3 query heads for 2 key heads"));
    assert!(refused(shape(2, 1, 8, Some(0))).contains("window of 0"));
    let spec = shape(2, 1, 8, None);
    let qkv = gpu.upload(&vec![0.0; 3 * spec.columns() + 1]).unwrap();
    let segments = PackedSegments::new(&gpu, &Segments::from_lengths([3])).unwrap();
    let part = qkv.slice().part(1..qkv.len());
    let error = packed::forward(part, &segments, spec).err().unwrap();
    assert!(
        error.to_string().contains("multiple of 16 bytes"),
        "{error}"
    );
    let error = packed::forward(qkv.slice(), &segments, spec).err().unwrap();
    assert!(
        error.to_string().contains("97 elements where 96"),
        "{error}"
    );
}
