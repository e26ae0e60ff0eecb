//! Gradients against finite differences: of every operation's input and parameters, and of every
//! parameter of two-layer models, on three packed segments.
//!
//! A loss is Σ r·y in `f64` with random r, so its noise is the `f32` rounding of y alone. Slopes
//! are taken along random directions and extrapolated from two step sizes (Richardson), which
//! leaves an error of fourth order in the step. Slope and gradient must agree within a share of the
//! gradient's norm of half a hundredth or less: a gradient of the wrong sign or without a factor is
//! off by about the whole norm.

use std::sync::Arc;

use candle_core::{Result, Tensor, Var};
use collimate::model::config::{Activation, DecoderConfig, Family, Geometry, Head, SlidingWindow};
use collimate::model::hf_config::HfConfig;
use collimate::model::{Decoder, Gradient, Recompute};
use collimate::ops::activation::{gelu, gelu_tanh, swiglu};
use collimate::ops::attention::attend;
use collimate::ops::backend::Backend;
use collimate::ops::embedding::embed;
use collimate::ops::head::{BothLogProbs, Target, TokenLogProbs, both_log_probs, token_log_probs};
use collimate::ops::linear::{Linear, Projection};
use collimate::ops::norm::Norm;
use collimate::ops::param::{Param, ParamStore, Trainability};
use collimate::ops::rope::Rotation;
use kernels::attention::Segments;

use crate::gradients::adapted;
use crate::support::{Anyhow, attention, noise, store, tensor, with_each_kernel};

/// Number of random directions for each gradient.
const DIRECTIONS: u64 = 3;

/// Σ r·y in f64.
fn dot(y: &[f32], r: &[f32]) -> f64 {
    assert_eq!(y.len(), r.len());
    y.iter()
        .zip(r)
        .map(|(y, r)| f64::from(*y) * f64::from(*r))
        .sum()
}

/// The slope of `value` at `at` along `direction`.
fn slope(
    at: &[f32],
    direction: &[f32],
    step: f32,
    value: &impl Fn(&[f32]) -> Result<f64>,
) -> Result<f64> {
    let moved = |by: f32| -> Vec<f32> {
        let pairs = at.iter().zip(direction);
        pairs.map(|(x, d)| d.mul_add(by, *x)).collect()
    };
    let central = |step: f32| {
        let rise = value(&moved(step))? - value(&moved(-step))?;
        Ok::<_, candle_core::Error>(rise / (2.0 * f64::from(step)))
    };
    Ok((4.0 * central(step)? - central(2.0 * step)?) / 3.0)
}

/// Step size and tolerance of a comparison.
#[derive(Clone, Copy)]
struct Bounds {
    /// Step of the differences.
    step: f32,
    /// Largest allowed distance, as a share of the gradient's norm.
    slack: f64,
}

/// Compares `gradient` with the slopes of `value` at `at`.
fn check(
    what: &str,
    at: &[f32],
    gradient: &[f32],
    bounds: Bounds,
    value: impl Fn(&[f32]) -> Result<f64>,
) -> Anyhow {
    let norm = dot(gradient, gradient).sqrt();
    assert!(norm > 1e-3, "{what}: the gradient is {norm}");
    for stream in 300..300 + DIRECTIONS {
        let direction = noise(at.len(), stream);
        let numeric = slope(at, &direction, bounds.step, &value)?;
        let distance = (numeric - dot(gradient, &direction)).abs();
        assert!(
            distance < bounds.slack * norm,
            "{what}: a distance of {distance:e}, the gradient is {norm:e}"
        );
    }
    Ok(())
}

/// Does [`check`] for a parameter, and restores its value.
fn check_param(
    what: &str,
    param: &Param,
    bounds: Bounds,
    value: impl Fn() -> Result<f64>,
) -> Anyhow {
    let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
    let (at, gradient) = (flat(param.value())?, flat(param.grad().expect("trained"))?);
    let what = format!("{what}, {}", param.name());
    check(&what, &at, &gradient, bounds, |moved| {
        param.update(|v| v.copy_from_slice(moved))?;
        let value = value();
        param.update(|v| v.copy_from_slice(&at))?;
        value
    })
}

/// Checks an operation's gradients of its input and parameters; the largest distance seen is 5e-5.
fn operation(
    what: &str,
    params: &ParamStore,
    x: &Tensor,
    op: impl Fn(&Tensor) -> Result<Tensor>,
) -> Anyhow {
    let bounds = Bounds {
        step: 5e-3,
        slack: 2e-4,
    };
    let input = Var::from_tensor(x)?;
    params.zero_grad()?;
    let y = op(input.as_tensor())?;
    let r = tensor(y.dims(), 9);
    let grads = (&y * &r)?.sum_all()?.backward()?;
    let r = r.flatten_all()?.to_vec1::<f32>()?;
    let value = |x: &Tensor| Ok(dot(&op(x)?.flatten_all()?.to_vec1()?, &r));
    if let Some(gradient) = grads.get(&input) {
        let (at, gradient) = (
            x.flatten_all()?.to_vec1()?,
            gradient.flatten_all()?.to_vec1()?,
        );
        check(&format!("{what}, input"), &at, &gradient, bounds, |moved| {
            value(&Tensor::from_slice(moved, x.dims(), x.device())?)
        })?;
    }
    params
        .trained()
        .try_for_each(|param| check_param(what, param, bounds, || value(x)))
}

#[test]
fn linear_layers_and_embeddings_match_finite_differences() -> Anyhow {
    with_each_kernel(|backend| {
        let params = store(&[("a", &[20, 12]), ("b", &[9, 12]), ("c", &[9])], backend)?;
        let part = |weight, bias: Option<&str>| {
            Ok::<_, candle_core::Error>(Projection::new(
                params.get(weight)?,
                bias.map(|name| params.get(name)).transpose()?,
            ))
        };
        let linear = Linear::new(vec![part("a", None)?, part("b", Some("c"))?])?;
        operation("linear", &params, &tensor(&[30, 12], 1), |x| {
            linear.forward(x)
        })?;
        let (params, linear) = adapted(backend)?;
        operation("adapted linear", &params, &tensor(&[30, 24], 1), |x| {
            linear.forward(x)
        })?;
        let params = store(&[("table", &[10, 6])], backend)?;
        let table = params.get("table")?;
        operation("embedding", &params, &tensor(&[1], 7), |_| {
            embed(&table, &[3, 9, 3, 0, 3])
        })
    })
}

#[test]
fn norms_match_finite_differences() -> Anyhow {
    with_each_kernel(|backend| {
        let params = store(&[("w", &[24])], backend)?;
        let rms = Norm::Rms {
            weight: params.get("w")?,
            eps: 1e-5,
        };
        let x = tensor(&[70, 24], 2);
        operation("rms norm", &params, &x, |x| rms.forward(x))?;
        let rows = tensor(&[20, 100], 3);
        operation("head norm", &params, &rows, |x| {
            rms.forward_groups(x, 24, 3)
        })?;
        let params = store(&[("w", &[24]), ("b", &[24])], backend)?;
        let layer = Norm::Layer {
            weight: params.get("w")?,
            bias: params.get("b")?,
            eps: 1e-5,
        };
        operation("layer norm", &params, &x, |x| layer.forward(x))
    })
}

#[test]
fn rotations_and_activations_match_finite_differences() -> Anyhow {
    with_each_kernel(|backend| {
        let none = store(&[], backend)?;
        let angles = Rotation::new(vec![1.0, 0.3, 0.01]).angles(&(0..30).collect::<Vec<_>>());
        operation("rope", &none, &tensor(&[30, 20], 4), |x| {
            angles.rotate(x, 3, backend)
        })?;
        let x = tensor(&[40, 22], 5);
        operation("swiglu", &none, &x, |x| swiglu(x, backend))?;
        operation("gelu, tanh form", &none, &x, |x| gelu_tanh(x, backend))?;
        operation("gelu", &none, &x, |x| gelu(x, backend))
    })
}

#[test]
fn attention_matches_finite_differences() -> Anyhow {
    with_each_kernel(|backend| {
        let none = store(&[], backend)?;
        for shape in [
            (4, 2, 8, None),
            (3, 3, 20, Some(7)),
            (2, 1, 16, Some(1)),
            (2, 1, 8, Some(70)),
        ] {
            let spec = attention(shape);
            let segments = Segments::from_lengths([1, 23, 80]);
            let x = tensor(&[104, spec.columns()], 8);
            operation(&format!("{spec:?}"), &none, &x, |x| {
                attend(x, &segments, spec, backend)
            })?;
        }
        Ok(())
    })
}

#[test]
fn the_head_matches_finite_differences_whole_and_cut() -> Anyhow {
    with_each_kernel(|backend| {
        let params = store(&[("head", &[50, 12])], backend)?;
        let head = params.get("head")?;
        let targets = targets(100, 50, |i| i / 2, |i| (i * 7 % 50) as u32);
        let both = |r: TokenLogProbs| Tensor::stack(&[r.log_probs, r.entropy], 1);
        operation("head", &params, &(tensor(&[50, 12], 10) * 0.5)?, |x| {
            both(token_log_probs(x, &head, &targets, 0.8)?)
        })?;
        let all = |r: BothLogProbs| Tensor::stack(&[r.kept.log_probs, r.kept.entropy, r.whole], 1);
        operation(
            "head, both log-probs",
            &params,
            &(tensor(&[50, 12], 10) * 0.5)?,
            |x| all(both_log_probs(x, &head, &targets, 0.8)?),
        )?;
        operation(
            "head, over all alone",
            &params,
            &(tensor(&[50, 12], 10) * 0.5)?,
            |x| Ok(both_log_probs(x, &head, &targets, 0.8)?.whole),
        )
    })
}

/// Targets of which every third is renormalised over its own token and the multiples of three.
fn targets(
    count: usize,
    vocabulary: u32,
    row: impl Fn(usize) -> usize,
    token: impl Fn(usize) -> u32,
) -> Vec<Target> {
    let kept = |token| -> Arc<[u32]> {
        let is_kept = |id: &u32| *id == token || id.is_multiple_of(3);
        (0..vocabulary).filter(is_kept).collect()
    };
    let target = |i: usize| Target {
        kept: i.is_multiple_of(3).then(|| kept(token(i))),
        ..Target::whole(row(i), token(i))
    };
    (0..count).map(target).collect()
}

/// A two-layer model with the parts of a family, small enough for finite differences.
pub fn two_layers(family: Family) -> Anyhow<DecoderConfig> {
    let sizes = Geometry {
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: if family == Family::Gpt2 { 4 } else { 2 },
        head_dim: None,
        vocab_size: 30,
        max_position_embeddings: 32,
    };
    let mut config = DecoderConfig::from_scratch(family, &sizes)?;
    config.initializer_range = 0.3;
    config.tie_word_embeddings = family == Family::Gpt2 || family == Family::Qwen2;
    Ok(config)
}

pub fn decoder(config: DecoderConfig, backend: &Backend) -> Anyhow<Decoder> {
    let all = |_: &_| Trainability::Trained;
    Ok(Decoder::fresh(HfConfig::new(config), 1, all, backend)?)
}

/// The outputs for three segments: log-probs and entropies of whole and cut distributions and
/// log-probs over the whole vocabulary, or scores.
pub fn outputs(model: &Decoder, gradient: Gradient) -> Result<Tensor> {
    let ids: Vec<u32> = (0..17).map(|i| (i * 11 + 3) % 30).collect();
    let segments = Segments::from_lengths([6, 3, 8]);
    if model.decoder_config().head == Head::Score {
        return model.scores(&model.forward(&ids, &segments, gradient)?);
    }
    let rows: Vec<usize> = segments.iter().flat_map(|r| r.start..r.end - 1).collect();
    let wanted = rows.iter().map(|&row| row as u32).collect();
    let hidden = model.forward_at(&ids, &segments, Some(wanted), gradient)?;
    let targets = targets(rows.len(), 30, |i| i, |i| ids[rows[i] + 1]);
    let BothLogProbs { kept, whole } = model.both_log_probs(&hidden, &targets, 1.3)?;
    Tensor::cat(&[kept.log_probs, kept.entropy, whole], 0)
}

/// Checks every parameter of a model. At this step size, curvature and rounding weigh alike, and
/// the largest distance seen is a thousandth.
fn check_model(
    what: &str,
    config: DecoderConfig,
    recompute: Recompute,
    backend: &Backend,
) -> Anyhow {
    check_trained(what, &decoder(config, backend)?, recompute)
}

/// Checks every trained parameter of a model.
pub fn check_trained(what: &str, model: &Decoder, recompute: Recompute) -> Anyhow {
    let bounds = Bounds {
        step: 2e-3,
        slack: 5e-3,
    };
    model.params().zero_grad()?;
    let y = outputs(model, Gradient::Record(recompute))?;
    let r = tensor(y.dims(), 20);
    (&y * &r)?.sum_all()?.backward()?;
    assert_eq!(model.params().unreached(), Vec::<&str>::new(), "{what}");
    let r = r.to_vec1::<f32>()?;
    let value = || Ok(dot(&outputs(model, Gradient::Skip)?.to_vec1()?, &r));
    model
        .params()
        .trained()
        .try_for_each(|param| check_param(what, param, bounds, value))
}

#[test]
fn every_family_matches_finite_differences() -> Anyhow {
    with_each_kernel(|backend| {
        for family in Family::ALL {
            check_model(
                &family.to_string(),
                two_layers(family)?,
                Recompute::None,
                backend,
            )?;
        }
        let mut scoring = two_layers(Family::Llama)?;
        scoring.head = Head::Score;
        check_model("a scalar head", scoring, Recompute::None, backend)
    })
}

#[test]
fn a_sliding_window_matches_finite_differences() -> Anyhow {
    let mut config = two_layers(Family::Mistral)?;
    config.sliding_window = Some(SlidingWindow {
        size: 3,
        layers: vec![0, 1],
    });
    check_model("a window of 3", config, Recompute::None, &Backend::CPU)
}

/// Exact GELU has no chained operation: its layers run one operation after the other, and are
/// recomputed as a whole.
#[test]
fn exact_gelu_matches_finite_differences_kept_and_recomputed() -> Anyhow {
    let mut config = two_layers(Family::Gpt2)?;
    config.activation = Activation::Gelu;
    check_model("exact GELU", config.clone(), Recompute::None, &Backend::CPU)?;
    check_model(
        "exact GELU, recomputed",
        config,
        Recompute::Block,
        &Backend::CPU,
    )
}

#[test]
fn recomputed_blocks_match_finite_differences() -> Anyhow {
    with_each_kernel(|backend| {
        check_model(
            "recomputed",
            two_layers(Family::Qwen3)?,
            Recompute::Block,
            backend,
        )
    })
}
