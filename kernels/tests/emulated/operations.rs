//! Kernels against their definitions in double precision, in every order.

use kernels::arguments::{Direction, Gelu, Groups};
use kernels::device::Array;
use kernels::device::activation::{gelu, gelu_backward, swiglu, swiglu_backward};
use kernels::device::norm::{self, Gradients, Parameters};
use kernels::device::product::Receive;
use kernels::device::rope::rotate;
use kernels::device::rows::{self, RowIndices};

use super::{ORDERS, assert_close, device, in_every_order, numbers};

/// Sizes with whole and broken lanes, one group and several, and columns on both sides.
const GROUPS: [Groups; 4] = [
    Groups {
        rows: 3,
        columns: 64,
        first: 0,
        count: 1,
        width: 64,
    },
    Groups {
        rows: 70,
        columns: 37,
        first: 0,
        count: 1,
        width: 37,
    },
    Groups {
        rows: 5,
        columns: 50,
        first: 3,
        count: 5,
        width: 8,
    },
    Groups {
        rows: 130,
        columns: 9,
        first: 1,
        count: 2,
        width: 3,
    },
];
const EPS: f32 = 0.1;

/// A norm in double precision: the result, and for the gradient `dy` those of x, weight and bias.
struct Definition {
    y: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
    db: Vec<f64>,
}

fn define(x: &[f32], dy: &[f32], w: &[f32], bias: Option<&[f32]>, groups: Groups) -> Definition {
    let (columns, width) = (groups.columns as usize, groups.width as usize);
    let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let (x, w) = (wide(x), wide(w));
    let (mut y, mut dx) = (x.clone(), wide(dy));
    let (mut dw, mut db) = (vec![0.0; width], vec![0.0; width]);
    for row in 0..groups.rows {
        for group in 0..groups.count as usize {
            let at = row * columns + groups.first as usize + group * width;
            let (x, n) = (&x[at..at + width], width as f64);
            let mean = bias.map_or(0.0, |_| x.iter().sum::<f64>() / n);
            let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let scale = 1.0 / (square + f64::from(EPS)).sqrt();
            let unit: Vec<f64> = x.iter().map(|x| (x - mean) * scale).collect();
            let dy: Vec<f64> = dy[at..at + width].iter().map(|&d| f64::from(d)).collect();
            let g: Vec<f64> = dy.iter().zip(&w).map(|(d, w)| d * w).collect();
            let along = g.iter().zip(&unit).map(|(g, u)| g * u).sum::<f64>() / n;
            let total = bias.map_or(0.0, |_| g.iter().sum::<f64>() / n);
            for i in 0..width {
                y[at + i] = unit[i] * w[i] + bias.map_or(0.0, |b| f64::from(b[i]));
                dx[at + i] = scale * (g[i] - unit[i] * along - total);
                dw[i] += dy[i] * unit[i];
                db[i] += dy[i];
            }
        }
    }
    Definition { y, dx, dw, db }
}

#[test]
fn norms_are_their_definitions() {
    for (groups, layer) in GROUPS.into_iter().flat_map(|g| [(g, false), (g, true)]) {
        let (len, width) = (groups.rows * groups.columns as usize, groups.width as usize);
        let (x, dy) = (numbers(len, 1), numbers(len, 2));
        let (w, b) = (numbers(width, 3), numbers(width, 4));
        let start = numbers(width, 5);
        let expected = define(&x, &dy, &w, layer.then_some(&b[..]), groups);
        let found = in_every_order(|gpu| {
            let upload = |v: &[f32]| gpu.upload(v).unwrap();
            let (x, w, b) = (upload(&x), upload(&w), upload(&b));
            let (x, weight, bias) = (x.slice(), w.slice(), b.slice());
            let (mut d, mut dw, mut db) = (upload(&dy), upload(&start), upload(&start));
            let (parameters, gradients) = match layer {
                false => (
                    Parameters::Rms { weight },
                    Gradients::Rms {
                        weight: dw.slice_mut(),
                    },
                ),
                true => (
                    Parameters::Layer { weight, bias },
                    Gradients::Layer {
                        weight: dw.slice_mut(),
                        bias: db.slice_mut(),
                    },
                ),
            };
            let y = norm::forward(x, parameters, groups, EPS).unwrap();
            let gradients = Some(gradients);
            norm::backward(x, d.slice_mut(), parameters, gradients, groups, EPS).unwrap();
            [&y, &d, &dw, &db]
                .map(|array| array.download().unwrap())
                .concat()
        });
        let added = |sums: &[f64]| {
            let pairs = start.iter().zip(sums);
            pairs
                .map(|(s, sum)| f64::from(*s) + sum)
                .collect::<Vec<_>>()
        };
        let db = added(&match layer {
            true => expected.db,
            false => vec![0.0; width],
        });
        let expected = [expected.y, expected.dx, added(&expected.dw), db].concat();
        assert_close(&found, &expected, 2e-5);
    }
}

#[test]
fn rope_turns_pairs_and_turns_back() {
    let (rows, heads, half, columns) = (7, 3, 5, 34);
    let x = numbers(rows * columns, 1);
    let angles = numbers(rows * half, 2);
    let (cosines, sines): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
    let turned = in_every_order(|gpu| {
        let mut array = gpu.upload(&x).unwrap();
        let tables = [&cosines, &sines].map(|table| gpu.upload(table).unwrap());
        let mut turn = |direction| {
            let tables = tables.each_ref().map(Array::slice);
            let (heads, half) = (heads as u32, half as u32);
            rotate(array.slice_mut(), tables, rows, heads, half, direction).unwrap();
            array.download().unwrap()
        };
        let turned = turn(Direction::Forward);
        let back: Vec<f64> = x.iter().map(|&x| x.into()).collect();
        assert_close(&turn(Direction::Backward), &back, 1e-6);
        turned
    });
    let mut expected: Vec<f64> = x.iter().map(|&x| x.into()).collect();
    for (row, head, i) in
        (0..rows).flat_map(|r| (0..heads * half).map(move |p| (r, p / half, p % half)))
    {
        let low = row * columns + head * 2 * half + i;
        let (a, b) = (f64::from(x[low]), f64::from(x[low + half]));
        let angle = f64::from(angles[row * half + i]);
        expected[low] = a * angle.cos() - b * angle.sin();
        expected[low + half] = b * angle.cos() + a * angle.sin();
    }
    assert_close(&turned, &expected, 1e-6);
}

#[test]
fn swiglu_and_its_gradient_are_their_definitions() {
    let (rows, width) = (5, 29);
    let (x, dy) = (numbers(rows * 2 * width, 1), numbers(rows * width, 2));
    let found = in_every_order(|gpu| {
        let (x, dy) = (gpu.upload(&x).unwrap(), gpu.upload(&dy).unwrap());
        let y = swiglu(x.slice(), rows).unwrap();
        let dx = swiglu_backward(x.slice(), dy.slice(), rows).unwrap();
        [y.download().unwrap(), dx.download().unwrap()].concat()
    });
    let mut expected = vec![0.0; 3 * rows * width];
    for (row, i) in (0..rows).flat_map(|row| (0..width).map(move |i| (row, i))) {
        let at = row * 2 * width + i;
        let (gate, up) = (f64::from(x[at]), f64::from(x[at + width]));
        let (sigmoid, d) = (1.0 / (1.0 + (-gate).exp()), f64::from(dy[row * width + i]));
        expected[row * width + i] = gate * sigmoid * up;
        let dx = &mut expected[rows * width..];
        dx[at] = d * up * (sigmoid + gate * sigmoid * (1.0 - sigmoid));
        dx[at + width] = d * gate * sigmoid;
    }
    assert_close(&found, &expected, 2e-6);
}

#[test]
fn both_forms_of_gelu_and_their_gradients_are_their_definitions() {
    let (x, dy) = (numbers(333, 1), numbers(333, 2));
    for form in [Gelu::Exact, Gelu::Tanh] {
        let found = in_every_order(|gpu| {
            let (x, mut d) = (gpu.upload(&x).unwrap(), gpu.upload(&dy).unwrap());
            let y = gelu(form, x.slice()).unwrap();
            gelu_backward(form, x.slice(), d.slice_mut()).unwrap();
            [y.download().unwrap(), d.download().unwrap()].concat()
        });
        let value = |x: f64| match form {
            Gelu::Exact => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
            Gelu::Tanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
        };
        let slope = |x: f64| (value(x + 1e-5) - value(x - 1e-5)) / 2e-5;
        let values = x.iter().map(|&x| value(x.into()));
        let slopes = x
            .iter()
            .zip(&dy)
            .map(|(&x, &d)| slope(x.into()) * f64::from(d));
        let expected: Vec<f64> = values.chain(slopes).collect();
        assert_close(&found, &expected, 2e-6);
    }
}

/// The error function by its series (Abramowitz and Stegun, 7.1.5), for |x| < 3.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..60 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn rows_are_added_and_gathered() {
    let (a, b) = (numbers(300, 1), numbers(300, 2));
    let found = in_every_order(|gpu| {
        let (mut sum, b) = (gpu.upload(&a).unwrap(), gpu.upload(&b).unwrap());
        rows::add(sum.slice_mut(), b.slice()).unwrap();
        let mut columns = gpu.upload(&a[..30]).unwrap();
        rows::add_rows(columns.slice_mut(), b.slice(), 10).unwrap();
        let ids = RowIndices::new(gpu, &[9, 0, 9], 10).unwrap();
        let rows = rows::gather(b.slice(), &ids).unwrap();
        let mut table = gpu.upload(&a).unwrap();
        let added = gpu.upload(&a[..90]).unwrap();
        rows::scatter(table.slice_mut(), added.slice(), &ids, Receive::Add).unwrap();
        [&sum, &columns, &rows, &table]
            .map(|array| array.download().unwrap())
            .concat()
    });
    let sums = a.iter().zip(&b).map(|(a, b)| a + b);
    let columns = (0..30).map(|c| (0..10).fold(a[c], |sum, row| sum + b[row * 30 + c]));
    let rows = [9, 0, 9]
        .iter()
        .flat_map(|row| b[row * 30..][..30].iter().copied());
    let mut table = a.clone();
    for (place, row) in [9, 0, 9].into_iter().enumerate() {
        (0..30).for_each(|c| table[row * 30 + c] += a[place * 30 + c]);
    }
    let expected: Vec<f32> = sums.chain(columns).chain(rows).chain(table).collect();
    assert_eq!(found, expected);
}

#[test]
fn groups_behind_the_last_column_are_refused() {
    let gpu = device(ORDERS[0]);
    let x = gpu.upload(&[0f32; 64]).unwrap();
    let w = gpu.upload(&[0f32; 32]).unwrap();
    let groups = Groups {
        rows: 1,
        columns: 64,
        first: 1,
        count: 2,
        width: 32,
    };
    let parameters = Parameters::Rms { weight: w.slice() };
    let refused = norm::forward(x.slice(), parameters, groups, EPS);
    let message = refused.err().unwrap().to_string();
    assert!(message.contains("64 elements where 65"), "{message}");
}

#[test]
fn gradients_of_another_norm_are_refused() {
    let gpu = device(ORDERS[0]);
    let array = || gpu.upload(&[0f32; 64]).unwrap();
    let (x, mut d, w, mut dw) = (array(), array(), array(), array());
    let groups = Groups {
        rows: 1,
        ..GROUPS[0]
    };
    let parameters = Parameters::Layer {
        weight: w.slice(),
        bias: w.slice(),
    };
    let weight = dw.slice_mut();
    let gradients = Some(Gradients::Rms { weight });
    let refused = norm::backward(x.slice(), d.slice_mut(), parameters, gradients, groups, EPS);
    let message = refused.err().unwrap().to_string();
    assert!(message.contains("different norms"), "{message}");
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let gpu = device(ORDERS[0]);
    let (x, w) = (
        gpu.upload(&[0f32; 63]).unwrap(),
        gpu.upload(&[0f32; 64]).unwrap(),
    );
    let parameters = Parameters::Rms { weight: w.slice() };
    let refused = norm::forward(x.slice(), parameters, GROUPS[0], EPS);
    let message = refused.err().unwrap().to_string();
    assert!(
        message.contains("63 elements where 192 are needed"),
        "{message}"
    );
}

#[test]
fn rows_are_replaced_by_the_last_of_an_index() {
    let a = numbers(90, 1);
    let found = in_every_order(|gpu| {
        let (from, mut table) = (gpu.upload(&a).unwrap(), gpu.zeros(120).unwrap());
        let ids = RowIndices::new(gpu, &[3, 0, 3], 4).unwrap();
        rows::scatter(table.slice_mut(), from.slice(), &ids, Receive::Set).unwrap();
        table.download().unwrap()
    });
    assert_eq!(found, [&a[30..60], &[0.0; 60], &a[60..]].concat());
}

#[test]
fn columns_are_biased_summed_and_scaled() {
    let (rows, stride, column, width) = (130, 9, 2, 5);
    let (y, bias) = (numbers(rows * stride, 1), numbers(width, 2));
    let found = in_every_order(|gpu| {
        let (mut y, mut b) = (gpu.upload(&y).unwrap(), gpu.upload(&bias).unwrap());
        rows::add_bias(y.slice_mut(), b.slice(), rows, column).unwrap();
        rows::add_column_sums(b.slice_mut(), y.slice(), rows, column).unwrap();
        rows::scale(b.slice_mut(), 0.5).unwrap();
        [y.download().unwrap(), b.download().unwrap()].concat()
    });
    let mut expected: Vec<f64> = y.iter().map(|&y| y.into()).collect();
    let mut sums: Vec<f64> = bias.iter().map(|&b| b.into()).collect();
    for row in expected.chunks_mut(stride) {
        for (i, &b) in bias.iter().enumerate() {
            row[column + i] += f64::from(b);
            sums[i] += row[column + i];
        }
    }
    let halves = sums.iter().map(|sum| 0.5 * sum);
    let expected: Vec<f64> = expected.into_iter().chain(halves).collect();
    assert_close(&found, &expected, 1e-5);
    let gpu = device(ORDERS[0]);
    let (mut y, b) = (gpu.upload(&y).unwrap(), gpu.upload(&bias).unwrap());
    assert!(rows::add_bias(y.slice_mut(), b.slice(), rows, 5).is_err());
}

#[test]
fn arrays_of_two_devices_are_refused() {
    let [mut a, b] = [0, 1].map(|_| device(ORDERS[0]).upload(&[0f32; 4]).unwrap());
    let refusals = [
        rows::add(a.slice_mut(), b.slice()),
        a.slice_mut().copy_from(b.slice()),
    ];
    for refused in refusals {
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("arrays of two devices"), "{message}");
    }
}

#[test]
fn parts_are_copied_and_cleared() {
    let gpu = device(ORDERS[0]);
    let mut a = gpu.upload(&[1f32, 2.0, 3.0, 4.0]).unwrap();
    let copy = a.slice().part(1..3).copied().unwrap();
    a.slice_mut().part(0..2).clear().unwrap();
    a.slice_mut().part(3..4).upload(&[7.0]).unwrap();
    assert_eq!(a.download().unwrap(), [0.0, 0.0, 3.0, 7.0]);
    assert_eq!(copy.download().unwrap(), [2.0, 3.0]);
    assert_eq!(gpu.zeros::<f32>(2).unwrap().download().unwrap(), [0.0; 2]);
}
