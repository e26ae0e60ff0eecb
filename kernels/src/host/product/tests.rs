#[cfg(target_arch = "x86_64")]
use std::io::Write as _;
use std::ops::Range;

use crate::random::Key;

use super::*;

/// Runs a test with each kernel that this processor can run.
fn in_each(test: impl Fn(ProductKernel)) {
    ProductKernel::available().into_iter().for_each(test);
}

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let key = Key::new(seed, 1u64);
    (0..n as u64)
        .map(|i| (key.uniform(i, 0) - 0.5) as f32)
        .collect()
}

/// An element by its definition: a sum that goes on from `start`.
fn element(kernel: ProductKernel, x: &[f32], w: &[f32], start: f32) -> f32 {
    match kernel {
        ProductKernel::Chains => {
            let pairs = x.iter().zip(w);
            pairs.fold(start, |acc, (a, b)| a.mul_add(*b, acc))
        }
        #[cfg(target_arch = "x86_64")]
        ProductKernel::Tiles(_) => tiles::definition::element(x, w, start),
    }
}

fn oracle(kernel: ProductKernel, x: &[f32], w: &[f32], n: usize, k: usize, start: f32) -> Vec<f32> {
    let row = |x| (0..n).map(move |j| element(kernel, x, &w[j * k..][..k], start));
    x.chunks_exact(k).flat_map(row).collect()
}

#[test]
fn every_row_count_has_the_bits_of_the_definition() {
    in_each(|kernel| {
        for (n, k) in [(1, 5), (16, 32), (40, 33), (100, 192), (49, 600)] {
            let w = numbers(n * k, 1);
            let panels = Panels::pack(kernel, Matrix::new(&w, n, k, k));
            for m in [1, 2, 5, 6, 7, 8, 9, 13, 16, 17, 96, 97, 250] {
                let x = numbers(m * k, 2);
                let expected = oracle(kernel, &x, &w, n, k, 0.0);
                for weight in [
                    Weight::Panels(&panels),
                    Weight::Rows(Matrix::new(&w, n, k, k)),
                ] {
                    let y = product(kernel, Matrix::new(&x, m, k, k), &[weight]);
                    assert_eq!(y, expected, "m={m} n={n} k={k}");
                    let mut sum = vec![0.5; m * n];
                    add_product(kernel, Matrix::new(&x, m, k, k), weight, &mut sum);
                    assert_eq!(sum, oracle(kernel, &x, &w, n, k, 0.5), "m={m} n={n} k={k}");
                }
            }
        }
    });
}

#[test]
fn weights_side_by_side_fill_their_columns() {
    in_each(|kernel| {
        let (m, k) = (7, 20);
        let (x, first, second) = (numbers(m * k, 1), numbers(5 * k, 2), numbers(18 * k, 3));
        let packed = Panels::pack(kernel, Matrix::new(&second, 18, k, k));
        let weights = [
            Weight::Rows(Matrix::new(&first, 5, k, k)),
            Weight::Panels(&packed),
        ];
        let y = product(kernel, Matrix::new(&x, m, k, k), &weights);
        let (a, b) = (
            oracle(kernel, &x, &first, 5, k, 0.0),
            oracle(kernel, &x, &second, 18, k, 0.0),
        );
        for (i, row) in y.chunks_exact(23).enumerate() {
            assert_eq!(row[..5], a[i * 5..][..5]);
            assert_eq!(row[5..], b[i * 18..][..18]);
        }
    });
}

#[test]
fn transposed_operands_and_windows_have_the_bits_of_the_definition() {
    in_each(|kernel| {
        for (m, n, k) in [(5, 7, 9), (33, 70, 300), (130, 20, 17)] {
            let (a, b) = (numbers(m * k, 3), numbers(n * k, 4));
            let transposed = |x: &[f32], rows: usize| -> Vec<f32> {
                (0..k * rows).map(|i| x[i % rows * k + i / rows]).collect()
            };
            let (at, bt) = (transposed(&a, m), transposed(&b, n));
            let stride = n + 3;
            let expected = oracle(kernel, &a, &b, n, k, 1.0);
            let rows = [Matrix::new(&a, m, k, k), Matrix::new(&at, k, m, m).t()];
            let columns = [Matrix::new(&b, n, k, k).t(), Matrix::new(&bt, k, n, n)];
            for threads in [Threads::Caller, Threads::All] {
                for (a, b) in rows
                    .iter()
                    .flat_map(|a| columns.iter().map(move |b| (*a, *b)))
                {
                    let mut c = vec![1f32; m * stride];
                    multiply(kernel, a, b, &mut c[2..], stride, Write::Add, threads);
                    for i in 0..m {
                        assert_eq!(c[i * stride + 2..][..n], expected[i * n..][..n]);
                        assert_eq!((c[i * stride], c[i * stride + 1]), (1.0, 1.0));
                    }
                }
            }
        }
    });
}

/// Weights packed side by side during a product, with widths that allow this and widths that do
/// not.
#[test]
fn weights_packed_together_fill_their_columns() {
    in_each(|kernel| {
        let (m, k) = (9, 21);
        let x = numbers(m * k, 1);
        for sizes in [[16, 32, 7], [5, 16, 3]] {
            let data = sizes.map(|n| numbers(n * k, n as u64));
            let weights = [0, 1, 2].map(|i| Weight::Rows(Matrix::new(&data[i], sizes[i], k, k)));
            let y = product(kernel, Matrix::new(&x, m, k, k), &weights);
            let expected = oracle(kernel, &x, &data.concat(), sizes.iter().sum(), k, 0.0);
            assert_eq!(y, expected, "{sizes:?}");
        }
    });
}

/// Kept panels of several weights, cut as one matrix: few and many rows, cuts inside and between
/// weights.
#[test]
fn weights_kept_side_by_side_fill_their_columns() {
    in_each(|kernel| {
        for (m, k) in [(1, 40), (40, 100), (150, 70)] {
            let x = numbers(m * k, 1);
            for sizes in [[256, 128, 128], [37, 300, 5], [16, 7, 500]] {
                let data = sizes.map(|n| numbers(n * k, n as u64));
                let kept =
                    [0, 1, 2].map(|i| Panels::pack(kernel, Matrix::new(&data[i], sizes[i], k, k)));
                let weights = kept.each_ref().map(Weight::Panels);
                let y = product(kernel, Matrix::new(&x, m, k, k), &weights);
                let expected = oracle(kernel, &x, &data.concat(), sizes.iter().sum(), k, 0.0);
                assert!(y == expected, "{m} rows, {sizes:?}");
            }
        }
    });
}

/// Tasks of a piece with the same rows: few, whose parts they share, and many, which are split by
/// squares.
#[test]
fn tasks_of_a_piece_have_the_bits_of_the_definition() {
    in_each(|kernel| {
        for (m, k) in [(20, 600), (250, 70), (250, 600), (20, 1030)] {
            let x = numbers(m * k, 1);
            let sizes = [40, 0, 70];
            let data = sizes.map(|n| numbers(n * k, 2 + n as u64));
            let kept =
                [0, 1, 2].map(|i| Panels::pack(kernel, Matrix::new(&data[i], sizes[i], k, k)));
            for (write, start) in [(Write::Set, 0.0), (Write::Add, 0.5)] {
                let mut y = vec![0.5; m * 110];
                let mut to = Destination::new(as_uninit(&mut y), 110);
                let sides = kept.each_ref().map(|panels| {
                    let side = (panels.factor(), to);
                    to = to.right(panels.outputs());
                    side
                });
                let x = Matrix::new(&x, m, k, k);
                // SAFETY: the destination is a whole matrix of the product's size.
                unsafe { multiply_sides(kernel, x.into(), &sides, write, Threads::Caller) };
                let expected = oracle(kernel, x.data(), &data.concat(), 110, k, start);
                assert!(y == expected, "{m} rows of {k}, {write:?}");
            }
        }
    });
}

/// Right-hand sides too large to pack at once, cut by rows and by columns.
#[test]
fn large_matrices_are_packed_in_parts() {
    in_each(|kernel| {
        for (m, n, k) in [(2, 1100, 2500), (2, 2100, 1030)] {
            assert!(n * k > PACKED);
            let (x, w) = (numbers(m * k, 5), numbers(n * k, 6));
            let expected = oracle(kernel, &x, &w, n, k, 0.0);
            let weight = Weight::Rows(Matrix::new(&w, n, k, k));
            assert_eq!(
                product(kernel, Matrix::new(&x, m, k, k), &[weight]),
                expected
            );
        }
    });
}

#[test]
fn a_factor_is_packed_once_for_several_products() {
    in_each(|kernel| {
        let (m, n, k) = (130, 20, 300);
        let (a, b) = (numbers(m * k, 3), numbers(n * k, 4));
        let expected = oracle(kernel, &a, &b, n, k, 2.0);
        with_factor(kernel, Matrix::new(&b, n, k, k).t(), |b| {
            for _ in 0..2 {
                let mut c = vec![2f32; m * n];
                b.add_to(Matrix::new(&a, m, k, k), &mut c);
                assert_eq!(c, expected);
            }
        });
    });
}

/// Several small products and an empty one, each with its own destination.
#[test]
fn products_of_several_parts_reach_their_own_destinations() {
    in_each(|kernel| {
        let (sizes, n, k) = ([40, 0, 5, 130], 20, 300);
        let b = numbers(n * k, 4);
        let parts = sizes.map(|m| numbers(m * k, 7 + m as u64));
        let mut found = sizes.map(|m| vec![2f32; m * n]);
        with_factor(kernel, Matrix::new(&b, n, k, k).t(), |b| {
            let products = parts.iter().zip(sizes).zip(&mut found);
            let products = products.map(|((a, m), c)| GradientOf {
                a: Matrix::new(a, m, k, k),
                c,
            });
            b.add_to_all(products.collect());
        });
        for (a, c) in parts.iter().zip(&found) {
            assert_eq!(*c, oracle(kernel, a, &b, n, k, 2.0));
        }
    });
}

/// Stacked matrices: small ones packed together, large ones multiplied in turn.
#[test]
fn stacked_matrices_are_one_chain() {
    in_each(|kernel| {
        for (m, n, sizes) in [
            (130, 20, [40, 0, 5]),
            (130, 20, [64, 0, 5]),
            (2, 1100, [1000, 900, 100]),
        ] {
            let k: usize = sizes.iter().sum();
            let (a, b) = (numbers(m * k, 3), numbers(n * k, 4));
            // The oracle's weight is transposed: `b` by columns.
            let by_row: Vec<f32> = (0..k * n).map(|i| b[i % n * k + i / n]).collect();
            let mut rest = &by_row[..];
            let parts = sizes.map(|rows| {
                let (part, behind) = rest.split_at(rows * n);
                rest = behind;
                Matrix::new(part, rows, n, n)
            });
            let found = multiplied_stacked(kernel, Matrix::new(&a, m, k, k), &parts);
            // The sum of an element continues from part to part.
            let ends = sizes.iter().scan(0, |at, rows| {
                *at += rows;
                Some((*at - rows)..*at)
            });
            let parts: Vec<_> = ends.collect();
            let expected = a.chunks_exact(k).flat_map(|x| {
                let weights = b.chunks_exact(k);
                let sum = |w: &[f32]| {
                    let part =
                        |sum, p: &Range<usize>| element(kernel, &x[p.clone()], &w[p.clone()], sum);
                    parts.iter().fold(0.0, part)
                };
                weights.map(sum).collect::<Vec<f32>>()
            });
            assert!(expected.eq(found), "{sizes:?}");
        }
        const { assert!(1100 * 2000 > PACKED && 20 * 45 <= PACKED) };
    });
}

/// A window of a factor times rows that are packed first and rows that are read in place.
#[test]
fn windows_of_a_factor_have_the_bits_of_the_definition() {
    let (m, n, k) = (21, 70, 50);
    let (a, b) = (numbers(m * k, 3), numbers(n * k, 4));
    let at: Vec<f32> = (0..k * m).map(|i| a[i % m * k + i / m]).collect();
    let (rows, columns) = (7..40, 32..61);
    let mut panels = Vec::new();
    let factor = Factor::pack(Matrix::new(&b, n, k, k).t(), &mut panels, Threads::Caller);
    let factor = factor.rows(rows.clone()).columns(columns.clone());
    let whole = [Matrix::new(&a, m, k, k), Matrix::new(&at, k, m, m).t()];
    for a in whole.map(|a| a.columns(rows.clone())) {
        let mut c = vec![1f32; m * columns.len()];
        let to = Destination::new(as_uninit(&mut c), columns.len());
        // SAFETY: the destination is this test's alone, and holds numbers.
        unsafe { factor.multiply(a, to, Write::Add) };
        let expected = (0..m).flat_map(|i| columns.clone().map(move |j| (i, j)));
        let expected = expected.map(|(i, j)| {
            let chain = rows.clone();
            let row = whole[0].row(i);
            chain.fold(1.0, |acc: f32, p| row[p].mul_add(b[j * k + p], acc))
        });
        assert_eq!(c, expected.collect::<Vec<f32>>());
    }
}

#[test]
fn a_product_of_no_inputs_is_zero() {
    in_each(|kernel| {
        let mut c = [3f32; 4];
        let (a, b) = (Matrix::new(&[], 2, 0, 0), Matrix::new(&[], 0, 2, 2));
        multiply(kernel, a, b, &mut c, 2, Write::Add, Threads::Caller);
        assert_eq!(c, [3.0; 4]);
        multiply(kernel, a, b, &mut c, 2, Write::Set, Threads::Caller);
        assert_eq!(c, [0.0; 4]);
    });
}

/// Says in the test run's summary that tiles were not tested at all, or not on the unit itself.
#[test]
#[cfg(target_arch = "x86_64")]
fn tiles_run_on_the_matrix_unit() {
    let missing = match (amx::is_usable(), amx::can_be_emulated()) {
        (true, _) => return,
        (_, true) => "the instructions of the matrix unit: no Intel AMX here, they were emulated",
        _ => "products in tiles: no AVX-512 here",
    };
    // Past the test harness, which shows the output of failed tests alone.
    let _ = writeln!(std::io::stderr(), "\npassed over: {missing}");
}
