//! Draws on the emulated device against those of the host, bit for bit.

#![cfg(feature = "emulate")]

use std::sync::Arc;

use kernels::device::Gpu;
use kernels::device::emulator::{Emulator, Order};
use kernels::device::sampling::{
    Choice, DrawnSequences, Filters, RowDraw, SequenceLimits, SequenceStatus, Uniform,
};
use kernels::random::Key;
use kernels::random::rand_distr::{Distribution, StandardNormal};
use rollout::device::draw_rows;
use rollout::{Decoding, Draw, Drawn, ModelResult, Sampling, SequenceId, draw_row};

/// The orders of threads in which every draw must have the same bits.
const ORDERS: [Order; 4] = [
    Order::Forward,
    Order::Reverse,
    Order::Seeded(1),
    Order::Seeded(2),
];

/// The draws on a device with 64 MiB whose threads run in this order.
fn on_device(order: Order, rows: &[Vec<f32>], draws: &[Draw]) -> ModelResult<Vec<Drawn>> {
    let gpu = Gpu::new(Arc::new(Emulator::new(order, 64 << 20)));
    let logits = gpu.upload(&rows.concat())?;
    draw_rows(logits.slice(), rows[0].len(), draws)
}

/// Holds the draws of every order to those of the host, and returns these.
fn check(rows: &[Vec<f32>], draws: &[Draw]) -> Vec<Drawn> {
    let expected = draws.iter().map(|draw| draw_row(&rows[draw.row], draw));
    let expected: Vec<Drawn> = expected.map(Result::unwrap).collect();
    for order in ORDERS {
        let found = on_device(order, rows, draws).unwrap();
        assert_eq!(found.len(), expected.len());
        for ((found, expected), draw) in found.iter().zip(&expected).zip(draws) {
            assert!(
                bits(found) == bits(expected) && found.kept == expected.kept,
                "{order:?}, {} tokens, {draw:?}: {} where {} is expected",
                rows[0].len(),
                short(found),
                short(expected)
            );
        }
    }
    expected
}

/// The token and the bits of the numbers: NaN equals itself, and −0 is not 0.
fn bits(drawn: &Drawn) -> [Option<u32>; 4] {
    [
        Some(drawn.token),
        Some(drawn.log_prob.to_bits()),
        Some(drawn.whole_log_prob.to_bits()),
        drawn.entropy.map(f32::to_bits),
    ]
}

fn short(drawn: &Drawn) -> String {
    let kept = drawn.kept.as_ref().map(Vec::len);
    let numbers = (drawn.log_prob, drawn.whole_log_prob, drawn.entropy);
    format!("token {}, {numbers:?}, {kept:?} kept", drawn.token)
}

fn draw(row: usize, decoding: Decoding, uniform: f64, forbidden: &[u32]) -> Draw<'_> {
    Draw {
        row,
        sequence: SequenceId {
            request: row,
            sample: 0,
        },
        position: 0,
        decoding,
        forbidden,
        uniform,
        entropy: true,
    }
}

/// No pattern; ties by rounding, of both zeros too; impossible tokens; all equal; one token that is
/// nearly certain.
fn rows(vocabulary: usize) -> Vec<Vec<f32>> {
    let mut stream = Key::new(5, 1u64).stream(vocabulary as u64, 0);
    let normal = StandardNormal.sample_iter(&mut stream);
    let plain: Vec<f32> = normal.take(vocabulary).map(|x: f32| 3.0 * x).collect();
    let mut impossible = plain.clone();
    for logit in impossible.iter_mut().skip(1).step_by(3) {
        *logit = f32::NEG_INFINITY;
    }
    let mut certain = plain.clone();
    certain[vocabulary / 2] = 60.0;
    vec![
        plain.iter().map(|x| x.round() / 2.0).collect(),
        plain,
        impossible,
        vec![-2.5; vocabulary],
        certain,
    ]
}

/// Each filter alone and together, from one token to all of them.
fn samplings(vocabulary: usize) -> Vec<Sampling> {
    let plain = Sampling::default();
    let with = |top_k, top_p, min_p| Sampling {
        top_k,
        top_p,
        min_p,
        ..plain
    };
    let mut all = vec![plain];
    all.extend([0.3, 1.7].map(|temperature| Sampling {
        temperature,
        ..plain
    }));
    let counts = [1, 3, 50, 700, vocabulary - 1, vocabulary, usize::MAX];
    all.extend(counts.map(|top_k| with(top_k, 1.0, 0.0)));
    let fractions = [1e-6, 0.3, 0.5, 0.9, 0.999, 0.999_999_94];
    all.extend(fractions.map(|top_p| with(0, top_p, 0.0)));
    all.extend([1e-6, 0.05, 1.0].map(|min_p| with(0, 1.0, min_p)));
    all.extend([with(40, 0.8, 0.0), with(3, 0.99, 0.4), with(0, 0.95, 0.1)]);
    all.push(Sampling {
        temperature: 0.6,
        ..with(vocabulary / 2, 0.97, 0.001)
    });
    all
}

/// Each sampling and greedy decoding from each row, some with tokens that are forbidden.
fn hold_to_the_host(rows: &[Vec<f32>], samplings: &[Sampling]) {
    let end = rows[0].len() as u32;
    // The second list has the certain token of one row; ids outside the vocabulary are ignored.
    let lists: [&[u32]; 3] = [&[], &[end / 2, end - 1, end + 7], &[end]];
    let mut draws = Vec::new();
    for row in 0..rows.len() {
        for (index, &sampling) in samplings.iter().enumerate() {
            let uniform = (0.37 + 0.618 * (index + row) as f64) % 1.0;
            let forbidden = lists[[0, 2, 0, 1][(index + row) % 4]];
            draws.push(draw(row, Decoding::Sample(sampling), uniform, forbidden));
        }
        draws.extend(lists.map(|forbidden| draw(row, Decoding::Greedy, 0.0, forbidden)));
    }
    let drawn = check(rows, &draws);
    let cut = drawn.iter().filter(|drawn| drawn.kept.is_some());
    assert!(cut.count() > draws.len() / 3, "few draws are cut");
}

#[test]
fn draws_have_the_bits_of_the_host() {
    for vocabulary in [5, 257, 1003] {
        hold_to_the_host(&rows(vocabulary), &samplings(vocabulary));
    }
}

/// Rows of several parts, whose largest logits bound the candidates of top-k.
#[test]
fn draws_from_a_large_vocabulary_have_the_bits_of_the_host() {
    let samplings: Vec<Sampling> = samplings(40_000).into_iter().step_by(3).collect();
    hold_to_the_host(&rows(40_000)[..2], &samplings);
}

/// Two equal tokens, of which one reaches one half.
#[test]
fn a_nucleus_ends_where_its_mass_is_exactly_reached() {
    let mut row = vec![-200.0; 40];
    (row[7], row[30]) = (1.5, 1.5);
    let half = Sampling {
        top_p: 0.5,
        ..Sampling::default()
    };
    let drawn = check(&[row], &[draw(0, Decoding::Sample(half), 0.9, &[])]);
    assert_eq!(drawn[0].kept, Some(vec![7]));
}

/// The random numbers at both ends, and many between. At 1, where rounding may lead a number below
/// it, the token is the last that has any weight.
#[test]
fn each_random_number_gives_the_token_of_the_host() {
    let rows = &mut rows(1003)[..3];
    rows[2][700..].fill(f32::NEG_INFINITY);
    let cut = Sampling {
        top_p: 0.9,
        ..Sampling::default()
    };
    let ends = [0.0, f64::MIN_POSITIVE, 1.0 - f64::EPSILON / 2.0, 1.0];
    let between = (0..97).map(|i| f64::from(i) / 97.0);
    let uniforms = || ends.into_iter().chain(between.clone());
    let draws: Vec<Draw> = (0..rows.len())
        .flat_map(|row| {
            let with = move |sampling| {
                uniforms().map(move |uniform| draw(row, Decoding::Sample(sampling), uniform, &[]))
            };
            with(Sampling::default())
                .chain(with(cut))
                .collect::<Vec<_>>()
        })
        .collect();
    let drawn = check(rows, &draws);
    assert_eq!(drawn[2 * (drawn.len() / 3) + 3].token, 699);
}

/// The neighbouring random numbers between which the token of a row changes, near `uniform`.
fn edge(row: &[f32], uniform: f64) -> [f64; 2] {
    let decoding = Decoding::Sample(Sampling::default());
    let token = |uniform| {
        draw_row(row, &draw(0, decoding, uniform, &[]))
            .unwrap()
            .token
    };
    let (mut low, mut high) = (0.0, uniform);
    loop {
        let middle = low + (high - low) / 2.0;
        if middle == low || middle == high {
            return [low, high];
        }
        match token(middle) < token(uniform) {
            true => low = middle,
            false => high = middle,
        }
    }
}

/// Where the last bit of a sum decides.
#[test]
fn the_numbers_at_which_a_token_changes_are_those_of_the_host() {
    let rows = &rows(1003)[..3];
    let sampled = Decoding::Sample(Sampling::default());
    let at_edges = |row: usize| {
        let edges = [0.2, 0.4, 0.6, 0.8].map(|uniform| edge(&rows[row], uniform));
        edges
            .concat()
            .into_iter()
            .map(move |uniform| draw(row, sampled, uniform, &[]))
    };
    let draws: Vec<Draw> = (0..rows.len()).flat_map(at_edges).collect();
    let drawn = check(rows, &draws);
    assert!(drawn.chunks(2).all(|pair| pair[0].token < pair[1].token));
}

/// A large batch, each draw with its own settings, and rows that two draws share.
#[test]
fn a_large_batch_has_the_bits_of_the_host() {
    let rows: Vec<Vec<f32>> = (0..512).map(|row| rows(5 + 9)[row % 5].clone()).collect();
    let samplings = samplings(14);
    let draws: Vec<Draw> = (0..1024)
        .map(|index| {
            let decoding = match index % 7 {
                0 => Decoding::Greedy,
                _ => Decoding::Sample(samplings[index % samplings.len()]),
            };
            let forbidden: &[u32] = if index % 3 == 0 { &[2, 3] } else { &[] };
            draw(index / 2, decoding, index as f64 / 1024.0, forbidden)
        })
        .collect();
    check(&rows, &draws);
}

/// Rows that give no token end with the error of the host.
#[test]
fn a_row_without_a_token_is_the_error_of_the_host() {
    let plain = rows(300).swap_remove(1);
    let with = |changes: &[(usize, f32)]| {
        let mut row = plain.clone();
        changes.iter().for_each(|&(at, value)| row[at] = value);
        row
    };
    let faulty = [
        with(&[(299, f32::NAN), (40, f32::INFINITY)]),
        with(&[(7, f32::NAN)]),
        vec![f32::NEG_INFINITY; 300],
        // At the lowest temperature the scores overflow.
        with(&[(3, f32::MAX)]),
        vec![-f32::MAX; 300],
        vec![1e36; 300],
    ];
    let all: Vec<u32> = (0..300).collect();
    let cold = |sampling| Sampling {
        temperature: 1e-4,
        ..sampling
    };
    let decodings = samplings(300).into_iter().map(cold).map(Decoding::Sample);
    let decodings: Vec<Decoding> = decodings.chain([Decoding::Greedy]).collect();
    let (mut faults, mut tokens) = (0, 0);
    for (row, forbidden) in faulty
        .iter()
        .map(|row| (row, &[][..]))
        .chain([(&plain, &all[..])])
    {
        for &decoding in &decodings {
            let request = draw(0, decoding, 0.5, forbidden);
            let found = on_device(Order::Seeded(3), std::slice::from_ref(row), &[request]);
            match (draw_row(row, &request), found) {
                (Ok(expected), Ok(found)) => {
                    assert_eq!(bits(&found[0]), bits(&expected));
                    tokens += 1;
                }
                (Err(expected), Err(found)) => {
                    assert_eq!(found.to_string(), expected.to_string());
                    faults += 1;
                }
                (expected, found) => panic!("{request:?}: {found:?} where {expected:?}"),
            }
        }
    }
    // Greedy decoding divides by no temperature.
    assert_eq!((faults, tokens), (decodings.len() * 7 - 3, 3));
}

const STOPS: [u32; 2] = [3, 8];
const STEPS: usize = 12;

/// Limits that end some sequences by a stop id and others by length, each at another step.
fn limits(sequence: usize) -> SequenceLimits {
    SequenceLimits {
        generated: (sequence % 3) as u32,
        least: (sequence % 7) as u32,
        most: 4 + (sequence % 11) as u32,
    }
}

/// The logits of a step, one row for each of the sequences.
fn step_logits(step: usize, sequences: usize) -> Vec<f32> {
    let mut stream = Key::new(9, 1u64).stream(step as u64, 0);
    let normal = StandardNormal.sample_iter(&mut stream);
    normal.take(12 * sequences).collect()
}

/// The tokens of a sequence, drawn one by one on the host, and how it ends.
fn expected_sequence(
    sequence: usize,
    sequences: usize,
    sampling: Sampling,
    key: Key,
) -> (Vec<Drawn>, u32, SequenceStatus) {
    let SequenceLimits {
        mut generated,
        least,
        most,
    } = limits(sequence);
    let mut tokens = Vec::new();
    for step in 0..STEPS {
        let logits = &step_logits(step, sequences)[12 * sequence..][..12];
        let forbidden: &[u32] = if generated < least { &STOPS } else { &[] };
        let uniform = key.uniform(sequence as u64, generated.into());
        let request = draw(0, Decoding::Sample(sampling), uniform, forbidden);
        let drawn = draw_row(logits, &request).unwrap();
        let token = drawn.token;
        tokens.push(drawn);
        generated += 1;
        if STOPS.contains(&token) {
            return (tokens, generated, SequenceStatus::Stopped);
        }
        if generated >= most {
            return (tokens, generated, SequenceStatus::Full);
        }
    }
    (tokens, generated, SequenceStatus::Running)
}

/// Sequences that the host reads after all steps are those that it draws token by token.
#[test]
fn sequences_advance_on_the_device_as_on_the_host() {
    let (count, key) = (80, Key::new(1, 2u64));
    let sampling = Sampling {
        top_p: 0.9,
        ..Sampling::default()
    };
    let filters = Filters {
        top_p: 0.9,
        ..Filters::default()
    };
    let limits: Vec<SequenceLimits> = (0..count).map(limits).collect();
    let draws: Vec<RowDraw> = limits
        .iter()
        .enumerate()
        .map(|(row, limits)| RowDraw {
            row,
            choice: Choice::Random {
                filters,
                uniform: Uniform::Keyed {
                    key,
                    entry: [row as u64, limits.generated.into()],
                },
            },
            suppressed: if limits.generated < limits.least {
                &STOPS
            } else {
                &[]
            },
        })
        .collect();
    let expected: Vec<_> = (0..count)
        .map(|sequence| expected_sequence(sequence, count, sampling, key))
        .collect();
    for status in [
        SequenceStatus::Running,
        SequenceStatus::Stopped,
        SequenceStatus::Full,
    ] {
        assert!(
            expected.iter().any(|(_, _, ended)| *ended == status),
            "{status:?}"
        );
    }
    for order in ORDERS {
        let gpu = Gpu::new(Arc::new(Emulator::new(order, 64 << 20)));
        let mut sequences =
            DrawnSequences::new(&gpu, &draws, &limits, &STOPS, [count, 12]).unwrap();
        let mut next_ids = gpu.zeros(count).unwrap();
        let steps = (0..STEPS).map(|step| {
            let logits = gpu.upload(&step_logits(step, count)).unwrap();
            sequences
                .step(logits.slice(), next_ids.slice_mut())
                .unwrap()
        });
        let steps: Vec<_> = steps.collect();
        let found: Vec<_> = steps
            .iter()
            .map(|draws| draws.download().unwrap())
            .collect();
        let states = sequences.download().unwrap();
        let ids = next_ids.download().unwrap();
        for (sequence, (tokens, generated, status)) in expected.iter().enumerate() {
            assert_eq!(
                states[sequence],
                (*generated, *status),
                "{order:?}, sequence {sequence}"
            );
            assert_eq!(ids[sequence], tokens.last().unwrap().token);
            for (step, expected) in tokens.iter().enumerate() {
                let found = found[step][sequence].as_ref().unwrap();
                assert_eq!(found.token, expected.token, "step {step}");
                assert_eq!(found.log_prob.to_bits(), expected.log_prob.to_bits());
                assert_eq!(found.kept, expected.kept);
            }
        }
    }
}
