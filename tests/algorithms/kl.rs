//! The KL estimators against PyTorch, also far from the reference: every entry of `golden/kl.json`,
//! made by `golden/make_kl.py`.

use candle_core::{DType, Device, Tensor, Var};
use collimate::rlhf::KlEstimator;
use collimate::rlhf::kl::kl_loss;
use serde_json::Value;

const ESTIMATORS: [(KlEstimator, &str); 3] = [
    (KlEstimator::K1, "k1"),
    (KlEstimator::K2, "k2"),
    (KlEstimator::K3, "k3"),
];

/// The golden numbers for one float type.
struct Case(Value);

impl Case {
    fn load(float: &str) -> Self {
        let json: Value = serde_json::from_str(include_str!("../golden/kl.json")).unwrap();
        Self(json[float].clone())
    }

    fn list(&self, key: &str) -> Vec<f64> {
        serde_json::from_value(self.0[key].clone()).unwrap()
    }
}

/// Asserts a relative error of at most `share`, or an absolute one for numbers below 1: they span
/// 26 orders of magnitude.
#[track_caller]
fn check_relative(found: &[f64], expected: &[f64], share: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= share * expected.abs().max(1.0),
            "{what}[{i}]: found {found}, expected {expected}"
        );
    }
}

#[test]
fn estimates_of_each_token() {
    let case = Case::load("float64");
    let (log_probs, reference) = (case.list("log_probs"), case.list("reference"));
    for (estimator, key) in ESTIMATORS {
        let found = estimator.per_token(&log_probs, &reference).unwrap();
        check_relative(&found, &case.list(key), 1e-12, key);
    }
    let k3 = case.list("k3");
    let beyond = k3.iter().filter(|&&k3| k3 > 10.0).count();
    assert!(beyond >= 10, "the tokens lie close to the reference");
}

/// `f32` log-probs are subtracted in `f64` here and in `f32` in PyTorch, which costs k3 up to 60 ·
/// 2⁻²⁴ of its size.
#[test]
fn losses_and_gradients_of_both_floats() {
    for (float, dtype, share) in [
        ("float64", DType::F64, 1e-12),
        ("float32", DType::F32, 5e-6),
    ] {
        let case = Case::load(float);
        let (log_probs, reference) = (case.list("log_probs"), case.list("reference"));
        let x = Tensor::new(log_probs, &Device::Cpu).unwrap();
        let x = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
        for (estimator, key) in ESTIMATORS {
            let weights = vec![1.0; reference.len()];
            let loss = kl_loss(&x, &reference, estimator, &weights).unwrap();
            let grads = loss.backward().unwrap();
            let wide = |x: &Tensor| -> Vec<f64> {
                let x = x.to_dtype(DType::F64).unwrap();
                x.flatten_all().unwrap().to_vec1().unwrap()
            };
            let (what, sum) = (format!("{float} {key}"), case.list(key).iter().sum());
            check_relative(&wide(&loss), &[sum], share, &what);
            let found = wide(grads.get(&x).expect("no gradient"));
            check_relative(&found, &case.list(&format!("grad_{key}")), share, &what);
        }
    }
}
