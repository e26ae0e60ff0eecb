//! The optimizer against PyTorch's, and what it must refuse.

use serde_json::Value;

use super::*;
use crate::ops::backend::Backend;
use crate::ops::param::{InitialParam, Trainability};

const CONFIG: AdamWConfig = AdamWConfig {
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    max_grad_norm: 1.0,
};

/// The numbers of a golden array in row order, rounded to `f32`.
fn floats(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(items) => items.iter().flat_map(floats).collect(),
        number => vec![number.as_f64().unwrap() as f32],
    }
}

/// The matrix `w` of 6 × 4 and the vector `b` of 6.
fn store(w: Vec<f32>, b: Vec<f32>) -> ParamStore {
    let trained = |name: &str, shape: &[usize], data| InitialParam {
        name: name.into(),
        shape: shape.to_vec(),
        data,
        training: Trainability::Trained,
    };
    let initial = vec![trained("w", &[6, 4], w), trained("b", &[6], b)];
    ParamStore::new(initial, &Backend::CPU).unwrap()
}

fn set_gradient(params: &ParamStore, name: &str, gradient: &[f32]) {
    let param = params.get(name).unwrap();
    param
        .accumulate_with(|g| g.copy_from_slice(gradient))
        .unwrap();
}

fn values(params: &ParamStore, name: &str) -> Vec<f32> {
    let value = params.get(name).unwrap().value().flatten_all().unwrap();
    value.to_vec1().unwrap()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        // The golden run is in f64; eight steps in f32 stay well within this.
        let gap = (found - expected).abs();
        assert!(gap <= 1e-5, "{what}: {found} against {expected}");
    }
}

/// Eight steps of PyTorch's AdamW, made with the script in `tests/golden`: the matrix decays and
/// the vector does not, most steps are clipped and two are not, the rate warms up and falls along a
/// cosine.
#[test]
fn golden_steps() {
    let golden = include_str!("../../../tests/golden/optimizer.json");
    let golden: Value = serde_json::from_str(golden).unwrap();
    let params = store(floats(&golden["w0"]), floats(&golden["b0"]));
    let mut optimizer = AdamW::new(&params, CONFIG).unwrap();
    for (t, step) in (1..).zip(golden["steps"].as_array().unwrap()) {
        params.zero_grad().unwrap();
        set_gradient(&params, "w", &floats(&step["grad_w"]));
        set_gradient(&params, "b", &floats(&step["grad_b"]));
        let rate = step["lr"].as_f64().unwrap();
        let outcome = optimizer.step(&params, |_| rate).unwrap();
        let StepOutcome::Moved { grad_norm } = outcome else {
            panic!("step {t} was refused")
        };
        let expected = step["global_norm"].as_f64().unwrap();
        assert!((grad_norm / expected - 1.0).abs() < 1e-5, "step {t}");
        for name in ["w", "b"] {
            let what = format!("{name} after step {t}");
            assert_close(&values(&params, name), &floats(&step[name]), &what);
        }
    }
    assert_eq!(optimizer.steps(), 8);
}

#[test]
fn a_gradient_that_is_not_finite_moves_nothing() {
    for poison in [f32::NAN, f32::INFINITY] {
        let params = store(vec![1.0; 24], vec![1.0; 6]);
        let mut optimizer = AdamW::new(&params, CONFIG).unwrap();
        set_gradient(&params, "w", &[1.0; 24]);
        let mut gradient = [1.0; 6];
        gradient[5] = poison;
        set_gradient(&params, "b", &gradient);
        let outcome = optimizer.step(&params, |_| 0.1).unwrap();
        assert_eq!(outcome, StepOutcome::NotFinite);
        assert_eq!(values(&params, "w"), [1.0; 24]);
        assert_eq!(values(&params, "b"), [1.0; 6]);
        assert_eq!(optimizer.steps(), 0);
        assert!(
            optimizer
                .moments()
                .unwrap()
                .iter()
                .all(|m| m.iter().all(|&x| x == 0.0))
        );
    }
}

#[test]
fn a_restored_optimizer_steps_as_if_it_had_never_stopped() {
    let gradient = |t: usize| -> Vec<f32> { (0..24).map(|i| ((i + 7 * t) as f32).sin()).collect() };
    let step = |optimizer: &mut AdamW, params: &ParamStore, t| {
        set_gradient(params, "w", &gradient(t));
        optimizer.step(params, |_| 0.01).unwrap()
    };
    let unbroken = store(vec![1.0; 24], vec![1.0; 6]);
    let mut optimizer = AdamW::new(&unbroken, CONFIG).unwrap();
    (1..=3).for_each(|t| assert_ne!(step(&mut optimizer, &unbroken, t), StepOutcome::NotFinite));

    let continued = store(values(&unbroken, "w"), values(&unbroken, "b"));
    let [first, second] = optimizer.moments().unwrap().map(|m| m.into_owned());
    let mut restored = AdamW::new(&continued, CONFIG).unwrap();
    restored.restore(3, first, second).unwrap();
    assert_eq!(
        step(&mut optimizer, &unbroken, 4),
        step(&mut restored, &continued, 4)
    );
    assert_eq!(values(&continued, "w"), values(&unbroken, "w"));

    assert!(restored.restore(3, vec![0.0; 2], vec![0.0; 2]).is_err());
}

/// One element of gradient g: after bias correction the first step is rate · g / (g + ε), half a
/// rate for g = ε.
#[test]
fn epsilon_halves_a_first_step_along_a_gradient_of_its_size() {
    let params = store(vec![0.0; 24], vec![0.0; 6]);
    let config = AdamWConfig {
        epsilon: 1e-3,
        max_grad_norm: 0.0,
        ..CONFIG
    };
    let mut optimizer = AdamW::new(&params, config).unwrap();
    set_gradient(&params, "b", &[1e-3; 6]);
    optimizer.step(&params, |_| 0.1).unwrap();
    assert_close(&values(&params, "b"), &[-0.05; 6], "b");
}

/// PyTorch's `clip_grad_norm_` multiplies by limit / (norm + 1e-6): by a half where all are 1e-6.
#[test]
fn the_clip_adds_a_millionth_to_the_norm() {
    let params = store(vec![0.0; 24], vec![0.0; 6]);
    let config = AdamWConfig {
        max_grad_norm: 1e-6,
        ..CONFIG
    };
    let mut optimizer = AdamW::new(&params, config).unwrap();
    set_gradient(&params, "b", &[1e-6, 0.0, 0.0, 0.0, 0.0, 0.0]);
    optimizer.step(&params, |_| 0.1).unwrap();
    let [first, _] = optimizer.moments().unwrap();
    // (1 − β₁) · 1e-6 / 2, of the first element of `b`, which lies before `w`.
    assert!((first[0] / 5e-8 - 1.0).abs() < 1e-3, "{}", first[0]);
}
