//! Random numbers of draws, and refusals. `rollout` holds draws to those of the host.

use kernels::device::sampling::{
    Choice, DrawBatch, DrawnSequences, Filters, RowDraw, SequenceLimits, SequenceStatus, Uniform,
    draw,
};
use kernels::random::Key;

use super::{ORDERS, device};

/// A row in which all tokens are equally probable, so that a token tells its random number.
#[test]
fn a_keyed_draw_takes_the_random_number_of_the_host() {
    const VOCABULARY: usize = 1 << 16;
    let key = Key::new(3, 4u64).child(u64::MAX - 1, 1 << 40);
    let entries = [[0, 0], [1, 0], [u64::MAX, 5], [3, 1 << 33]];
    let gpu = device(ORDERS[1]);
    let logits = gpu.zeros(VOCABULARY).unwrap();
    let requests = entries.map(|entry| RowDraw {
        row: 0,
        choice: Choice::Random {
            filters: Filters::default(),
            uniform: Uniform::Keyed { key, entry },
        },
        suppressed: &[],
    });
    let batch = DrawBatch::new(&gpu, &requests, 1, VOCABULARY).unwrap();
    let drawn = draw(logits.slice(), &batch).unwrap().download().unwrap();
    for (drawn, [a, b]) in drawn.into_iter().zip(entries) {
        let expected = key.uniform(a, b) * VOCABULARY as f64;
        assert_eq!(drawn.unwrap().token, expected as u32, "entry ({a}, {b})");
    }
}

#[test]
fn draws_that_do_not_fit_their_logits_are_refused() {
    let gpu = device(ORDERS[0]);
    let request = RowDraw {
        row: 1,
        choice: Choice::Greedy,
        suppressed: &[],
    };
    let batch = DrawBatch::new(&gpu, &[request], 2, 10).unwrap();
    let logits = gpu.zeros(19).unwrap();
    let refused = draw(logits.slice(), &batch).err().unwrap().to_string();
    assert!(refused.contains("19 elements where 20"), "{refused}");
    let refused = DrawBatch::new(&gpu, &[request], 2, 1 << 20).err().unwrap();
    assert!(refused.to_string().contains("1048575"), "{refused}");
}

#[test]
fn no_draws_are_no_work() {
    let gpu = device(ORDERS[0]);
    let batch = DrawBatch::new(&gpu, &[], 0, 10).unwrap();
    let logits = gpu.zeros(0).unwrap();
    let drawn = draw(logits.slice(), &batch).unwrap().download().unwrap();
    assert!(drawn.is_empty());
}

/// The index of a random number has 64 bits, and a faulty row ends its sequence alone.
#[test]
fn a_sequence_passes_the_low_half_of_its_index_and_ends_at_a_fault() {
    const VOCABULARY: usize = 1 << 12;
    let (gpu, key) = (device(ORDERS[0]), Key::new(3, 4u64));
    let start = u64::from(u32::MAX);
    let draws = [0, 1].map(|row| RowDraw {
        row,
        choice: Choice::Random {
            filters: Filters::default(),
            uniform: Uniform::Keyed {
                key,
                entry: [7, start],
            },
        },
        suppressed: &[],
    });
    let limits = SequenceLimits {
        generated: 0,
        least: 0,
        most: 9,
    };
    let mut sequences =
        DrawnSequences::new(&gpu, &draws, &[limits; 2], &[], [2, VOCABULARY]).unwrap();
    let mut next_ids = gpu.zeros(2).unwrap();
    let mut logits = gpu.zeros(2 * VOCABULARY).unwrap();
    for step in 0..3 {
        if step == 1 {
            let mut fault = logits.slice_mut().part(VOCABULARY + 5..VOCABULARY + 6);
            fault.upload(&[f32::NAN]).unwrap();
        }
        sequences
            .step(logits.slice(), next_ids.slice_mut())
            .unwrap();
    }
    let token = |step| (key.uniform(7, start + step) * VOCABULARY as f64) as u32;
    assert_eq!(next_ids.download().unwrap(), [token(2), token(0)]);
    let expected = [(3, SequenceStatus::Running), (1, SequenceStatus::Faulty)];
    assert_eq!(sequences.download().unwrap(), expected);
    let mut short = gpu.zeros(1).unwrap();
    let refused = sequences
        .step(logits.slice(), short.slice_mut())
        .err()
        .unwrap();
    assert!(
        refused.to_string().contains("the next ids: 1 elements"),
        "{refused}"
    );
}
