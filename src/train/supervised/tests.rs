//! The state that a checkpoint holds.

use super::*;

#[test]
fn a_state_with_infinite_measures_is_read_back() {
    // A held-out loss above 709 has an infinite perplexity; broken weights have none at all.
    let evaluation = Evaluation::from([
        (names::EVAL_LOSS.to_owned(), f64::NAN),
        (names::EVAL_PERPLEXITY.to_owned(), f64::INFINITY),
    ]);
    let state = TrainerState {
        before: evaluation.clone(),
        last: evaluation.clone(),
        last_loss: f64::INFINITY,
        best: Some(Best {
            step: 3,
            evaluation,
        }),
        ..TrainerState::default()
    };
    let text = serde_json::to_string(&state).unwrap();
    let read: TrainerState = serde_json::from_str(&text).unwrap();
    for found in [&read.before, &read.last, &read.best.unwrap().evaluation] {
        assert!(found[names::EVAL_LOSS].is_nan(), "{text}");
        assert_eq!(found[names::EVAL_PERPLEXITY], f64::INFINITY);
    }
    assert_eq!(read.last_loss, f64::INFINITY);
}
