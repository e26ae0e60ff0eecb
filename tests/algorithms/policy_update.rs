//! The actor's loss with all its terms against PyTorch: every entry of `golden/policy_update.json`,
//! made by `golden/make_policy_update.py` in `f64`.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use collimate::ops::backend::Backend;
use collimate::ops::head::{BothLogProbs, Target, both_log_probs};
use collimate::ops::param::{InitialParam, Param, ParamStore, Trainability};
use collimate::rlhf::kl::kl_loss;
use collimate::rlhf::{
    ActorTokens, KlEstimator, KlTerm, LossAggregation, PolicyLoss, PolicyLossConfig, RaggedRows,
    Totals, actor_loss, policy_loss,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{check, gradient};

/// The head computes in `f32`; PyTorch did in `f64`.
const SINGLE_TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Golden {
    lengths: Vec<usize>,
    temperature: f64,
    longest: usize,
    hidden: Vec<Vec<f64>>,
    head: Vec<Vec<f64>>,
    tokens: Vec<u32>,
    kept: Vec<Option<Vec<u32>>>,
    old: Vec<f64>,
    reference: Vec<f64>,
    /// Log-probs over the whole vocabulary.
    whole_reference: Vec<f64>,
    advantages: Vec<f64>,
    lo: f64,
    hi: f64,
    dual: f64,
    kl_coef: f64,
    entropy_coef: f64,
    aggregations: Value,
}

impl Golden {
    fn load() -> Self {
        serde_json::from_str(include_str!("../golden/policy_update.json")).unwrap()
    }

    fn offsets(&self) -> Vec<usize> {
        let ends = self.lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    fn aggregations(&self) -> [(&'static str, LossAggregation); 3] {
        [
            ("token", LossAggregation::Token),
            ("sequence", LossAggregation::Sequence),
            ("constant", LossAggregation::Constant),
        ]
    }

    fn weights(&self, aggregation: LossAggregation) -> Vec<f64> {
        let offsets = self.offsets();
        let rows = RaggedRows::new(&offsets).unwrap();
        let totals = Totals::of(rows, self.longest);
        aggregation.weights(rows, totals).unwrap()
    }

    fn expected<T: DeserializeOwned>(&self, aggregation: &str, key: &str) -> T {
        serde_json::from_value(self.aggregations[aggregation][key].clone())
            .unwrap_or_else(|e| panic!("{aggregation}/{key}: {e}"))
    }

    fn head(&self) -> Arc<Param> {
        let initial = InitialParam {
            name: "head".into(),
            shape: vec![self.head.len(), self.head[0].len()],
            data: self.head.concat().iter().map(|&x| x as f32).collect(),
            training: Trainability::Trained,
        };
        let store = ParamStore::new(vec![initial], &Backend::CPU).unwrap();
        store.get("head").unwrap()
    }

    fn hidden(&self) -> Var {
        let shape = (self.hidden.len(), self.hidden[0].len());
        let values = Tensor::from_vec(self.hidden.concat(), shape, &Device::Cpu).unwrap();
        Var::from_tensor(&values.to_dtype(DType::F32).unwrap()).unwrap()
    }

    fn forward(&self, hidden: &Tensor, head: &Arc<Param>) -> BothLogProbs {
        let target = |(row, (&token, kept)): (usize, (&u32, &Option<Vec<u32>>))| Target {
            row,
            token,
            kept: kept.clone().map(Into::into),
        };
        let tokens = self.tokens.iter().zip(&self.kept).enumerate();
        let targets: Vec<Target> = tokens.map(target).collect();
        both_log_probs(hidden, head, &targets, self.temperature as f32).unwrap()
    }

    /// The log-probs in `f64`, for the formulas that are checked to `f64` precision.
    fn log_probs(&self) -> Var {
        let log_softmax = |(row, hidden): (usize, &Vec<f64>)| {
            let logit = |head: &Vec<f64>| {
                let dot: f64 = hidden.iter().zip(head).map(|(h, w)| h * w).sum();
                dot / self.temperature
            };
            let logits: Vec<f64> = self.head.iter().map(logit).collect();
            let kept = match &self.kept[row] {
                Some(kept) => kept.iter().map(|&id| logits[id as usize]).collect(),
                None => logits.clone(),
            };
            let sum: f64 = kept.iter().map(|x: &f64| x.exp()).sum();
            logits[self.tokens[row] as usize] - sum.ln()
        };
        let all: Vec<f64> = self.hidden.iter().enumerate().map(log_softmax).collect();
        Var::new(all, &Device::Cpu).unwrap()
    }

    fn clip(&self) -> PolicyLossConfig {
        PolicyLossConfig {
            cliprange_low: self.lo,
            cliprange_high: self.hi,
            dual_clip: Some(self.dual),
        }
    }

    fn policy_loss(&self, log_probs: &Tensor, weights: &[f64]) -> PolicyLoss {
        let (old, advantages) = (&self.old, &self.advantages);
        policy_loss(log_probs, old, advantages, weights, &self.clip()).unwrap()
    }
}

#[track_caller]
fn close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= SINGLE_TOLERANCE,
            "{what}[{i}]: found {found}, expected {expected}"
        );
    }
}

#[test]
fn clipped_losses_of_every_aggregation() {
    let golden = Golden::load();
    for (name, aggregation) in golden.aggregations() {
        let (weights, x) = (golden.weights(aggregation), golden.log_probs());
        let policy = golden.policy_loss(&x, &weights);
        let expected: f64 = golden.expected(name, "policy");
        check(&[policy.value], &[expected], name);
        let grad: Vec<f64> = golden.expected(name, "grad_policy");
        check(&gradient(&policy.loss, &x), &grad, name);
        let counts: (usize, usize) = (
            golden.expected(name, "clipped"),
            golden.expected(name, "dual_clipped"),
        );
        assert!(counts.1 > 1, "the dual clip has nothing to do");
        assert_eq!((policy.stats.clipped, policy.stats.dual_clipped), counts);
    }
}

#[test]
fn kl_losses_of_every_aggregation() {
    let golden = Golden::load();
    for (name, aggregation) in golden.aggregations() {
        let (weights, x) = (golden.weights(aggregation), golden.log_probs());
        for (estimator, key) in [
            (KlEstimator::K1, "k1"),
            (KlEstimator::K2, "k2"),
            (KlEstimator::K3, "k3"),
        ] {
            let loss = kl_loss(&x, &golden.reference, estimator, &weights).unwrap();
            let what = format!("{name} {key}");
            let expected: f64 = golden.expected(name, key);
            check(&[loss.to_scalar().unwrap()], &[expected], &what);
            let grad: Vec<f64> = golden.expected(name, &format!("grad_{key}"));
            check(&gradient(&loss, &x), &grad, &what);
        }
    }
}

/// [`actor_loss`] with all terms on, as the update calls it: the clipped loss with dual clip and
/// the entropy over the kept sets, the KL over the whole vocabulary. Values of all terms, and
/// gradients down to the hidden states and the head's weight.
#[test]
fn the_whole_loss_of_every_aggregation() {
    let golden = Golden::load();
    for (name, aggregation) in golden.aggregations() {
        let (hidden, head) = (golden.hidden(), golden.head());
        let BothLogProbs { kept, whole } = golden.forward(&hidden, &head);
        let tokens = ActorTokens {
            log_probs: &kept.log_probs,
            entropy: &kept.entropy,
            old_log_probs: &golden.old,
            advantages: &golden.advantages,
            weights: &golden.weights(aggregation),
            kl: Some(KlTerm {
                log_probs: &whole,
                ref_log_probs: &golden.whole_reference,
                estimator: KlEstimator::K3,
                coef: golden.kl_coef,
            }),
        };
        let found = actor_loss(&tokens, &golden.clip(), golden.entropy_coef).unwrap();
        let total = f64::from(found.loss.to_scalar::<f32>().unwrap());
        for (value, key) in [
            (found.policy, "policy"),
            (found.kl.unwrap(), "whole_kl"),
            (found.entropy.unwrap(), "entropy"),
            (total, "total"),
        ] {
            close(
                &[value],
                &[golden.expected(name, key)],
                &format!("{name} {key}"),
            );
        }
        let counts = (found.stats.clipped, found.stats.dual_clipped);
        let expected: (usize, usize) = (
            golden.expected(name, "clipped"),
            golden.expected(name, "dual_clipped"),
        );
        assert_eq!(counts, expected, "{name}");
        let grads = found.loss.backward().unwrap();
        let of_hidden = flat(grads.get(&hidden).expect("no gradient"));
        let of_head = flat(head.grad().expect("a trained head"));
        for (found, key) in [(of_hidden, "grad_hidden"), (of_head, "grad_head")] {
            let expected: Vec<Vec<f64>> = golden.expected(name, key);
            close(&found, &expected.concat(), &format!("{name} {key}"));
        }
    }
}

/// A term that is off adds nothing: the loss is the clipped loss, to the bit.
#[test]
fn terms_that_are_off_are_not_part_of_the_loss() {
    let golden = Golden::load();
    let (weights, x) = (golden.weights(LossAggregation::Token), golden.log_probs());
    let entropy = Var::from_tensor(&x.ones_like().unwrap()).unwrap();
    let tokens = ActorTokens {
        log_probs: &x,
        entropy: &entropy,
        old_log_probs: &golden.old,
        advantages: &golden.advantages,
        weights: &weights,
        kl: None,
    };
    let found = actor_loss(&tokens, &golden.clip(), 0.0).unwrap();
    let policy = golden.policy_loss(&x, &weights);
    assert_eq!((found.kl, found.entropy), (None, None));
    assert_eq!(found.policy, policy.value);
    assert_eq!(gradient(&found.loss, &x), gradient(&policy.loss, &x));
    assert!(found.loss.backward().unwrap().get(&entropy).is_none());
}

fn flat(x: &Tensor) -> Vec<f64> {
    let x = x.to_dtype(DType::F64).unwrap();
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// A minibatch cut into several passes has the same values and gradients as the minibatch in one
/// pass.
#[test]
fn passes_add_up_to_the_minibatch() {
    let golden = Golden::load();
    let (offsets, x) = (golden.offsets(), golden.log_probs());
    let totals = Totals::of(RaggedRows::new(&offsets).unwrap(), golden.longest);
    for (name, aggregation) in golden.aggregations() {
        let whole = golden.policy_loss(&x, &golden.weights(aggregation));
        let (mut value, mut grad) = (0.0, Vec::new());
        for bounds in [&offsets[..3], &offsets[2..]] {
            let (start, end) = (bounds[0], bounds[bounds.len() - 1]);
            let own: Vec<usize> = bounds.iter().map(|at| at - start).collect();
            let weights = aggregation
                .weights(RaggedRows::new(&own).unwrap(), totals)
                .unwrap();
            let part = Golden {
                old: golden.old[start..end].to_vec(),
                advantages: golden.advantages[start..end].to_vec(),
                ..Golden::load()
            };
            let x = Var::from_tensor(&x.narrow(0, start, end - start).unwrap()).unwrap();
            let loss = part.policy_loss(&x, &weights);
            value += loss.value;
            grad.extend(gradient(&loss.loss, &x));
        }
        check(&[value], &[whole.value], name);
        check(&grad, &gradient(&whole.loss, &x), name);
    }
}
