//! Random numbers of draws, and refusals. `rollout` holds draws to those of the host.

use kernels::device::sampling::{Choice, DrawBatch, Filters, RowDraw, Uniform, draw};
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
