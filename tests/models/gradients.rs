//! Finite differences of every parameter of two-layer models, packed with three segments; and each operation against the
//! composition of candle operations that is its oracle, forward and backward.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use collimate::model::config::{DecoderConfig, Family, Geometry, Head};
use collimate::model::hf_config::HfConfig;
use collimate::model::{Decoder, Gradient, Recompute};
use collimate::ops::activation::{gelu_tanh, swiglu, swiglu_composed};
use collimate::ops::attention::{Attention, Segments, attend, composed};
use collimate::ops::embedding;
use collimate::ops::head::{Target, composed as head_composed, token_log_probs};
use collimate::ops::linear::{Linear, Projection};
use collimate::ops::norm::Norm;
use collimate::ops::param::{Initial, ParamStore, Training};
use collimate::ops::rope::Rotation;
use rollout::random::{Key, Purpose};

use crate::support::{Anyhow, gap};

fn noise(count: usize, stream: u64) -> Vec<f32> {
    let mut draws = vec![0f64; count];
    Key::new(17, Purpose::Init).fill_normal(stream, &mut draws);
    draws.into_iter().map(|x| x as f32).collect()
}

fn tensor(shape: &[usize], stream: u64) -> Tensor {
    Tensor::from_vec(noise(shape.iter().product(), stream), shape, &Device::Cpu)
        .expect("shape fits")
}

fn store(shapes: &[(&str, &[usize])]) -> Result<ParamStore> {
    let initial = shapes.iter().enumerate().map(|(i, (name, shape))| Initial {
        name: (*name).to_owned(),
        shape: shape.to_vec(),
        data: noise(shape.iter().product(), 100 + i as u64),
        training: Training::Trained,
    });
    ParamStore::new(initial.collect(), &Device::Cpu)
}

/// Result, gradient of the input, gradients of the parameters, for the loss Σ r·y with random r.
fn probe(
    params: &ParamStore,
    x: &Tensor,
    op: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<[Vec<f32>; 3]> {
    let x = Var::from_tensor(x)?;
    params.zero_grad()?;
    let y = op(x.as_tensor())?;
    let grads = (&y * tensor(y.dims(), 9))?.sum_all()?.backward()?;
    let dx = grads
        .get(&x)
        .map_or(Ok(Vec::new()), |g| g.flatten_all()?.to_vec1())?;
    let dp = params.arena().map_or(Ok(Vec::new()), |a| a.to_vec1())?;
    Ok([y.flatten_all()?.to_vec1()?, dx, dp])
}

/// The fused and the composed form agree; the tolerance covers f32 sums of some hundred terms of size one.
fn same(
    what: &str,
    params: &ParamStore,
    x: &Tensor,
    fused: impl Fn(&Tensor) -> Result<Tensor>,
    slow: impl Fn(&Tensor) -> Result<Tensor>,
) -> Anyhow {
    let (fused, slow) = (probe(params, x, fused)?, probe(params, x, slow)?);
    for (part, (a, b)) in ["result", "input gradient", "parameter gradients"]
        .iter()
        .zip(fused.iter().zip(&slow))
    {
        let size = b.iter().fold(1f32, |m, v| m.max(v.abs()));
        assert!(
            gap(a, b) <= 1e-5 * size,
            "{what}, {part}: {} of {size}",
            gap(a, b)
        );
    }
    Ok(())
}

#[test]
fn operations_agree_with_their_oracles() -> Anyhow {
    let none = store(&[])?;
    let params = store(&[("a", &[40, 24]), ("b", &[9, 24]), ("c", &[9])])?;
    let parts = vec![
        Projection {
            weight: params.get("a")?,
            bias: None,
        },
        Projection {
            weight: params.get("b")?,
            bias: Some(params.get("c")?),
        },
    ];
    let linear = Linear::new(parts)?;
    same(
        "linear",
        &params,
        &tensor(&[130, 24], 1),
        |x| linear.forward(x),
        |x| linear.composed(x),
    )?;

    let params = store(&[("w", &[24]), ("b", &[24])])?;
    let rms = Norm::Rms {
        weight: params.get("w")?,
        eps: 1e-5,
    };
    let layer = Norm::Layer {
        weight: params.get("w")?,
        bias: params.get("b")?,
        eps: 1e-5,
    };
    let x = tensor(&[150, 24], 2);
    same(
        "rms norm",
        &params,
        &x,
        |x| rms.forward(x),
        |x| rms.composed(x),
    )?;
    same(
        "layer norm",
        &params,
        &x,
        |x| layer.forward(x),
        |x| layer.composed(x),
    )?;
    let x = tensor(&[70, 100], 3);
    same(
        "head norm",
        &params,
        &x,
        |x| rms.forward_groups(x, 24, 3),
        |x| rms.composed_groups(x, 24, 3),
    )?;

    let rotation = Rotation::new(vec![1.0, 0.3, 0.01]);
    let angles = rotation.angles(&(0..30).collect::<Vec<_>>());
    same(
        "rope",
        &none,
        &tensor(&[30, 20], 4),
        |x| angles.rotate(x, 3),
        |x| angles.composed(x, 3),
    )?;
    same(
        "swiglu",
        &none,
        &tensor(&[40, 22], 5),
        swiglu,
        swiglu_composed,
    )?;
    same(
        "gelu",
        &none,
        &tensor(&[40, 22], 6),
        gelu_tanh,
        Tensor::gelu,
    )?;

    let table = store(&[("table", &[10, 6])])?;
    let ids = [3, 9, 3, 0, 3];
    let (t, u) = (table.get("table")?, table.get("table")?);
    same(
        "embedding",
        &table,
        &tensor(&[1], 7),
        move |_| embedding::embed(&t, &ids),
        move |_| embedding::composed(&u, &ids),
    )
}

#[test]
fn attention_agrees_with_its_oracle() -> Anyhow {
    let none = store(&[])?;
    for (query_heads, kv_heads, head_dim, window) in [
        (4, 2, 8, None),
        (3, 3, 32, None),
        (6, 1, 20, Some(7)),
        (2, 1, 16, Some(90)),
    ] {
        let spec = Attention {
            query_heads,
            kv_heads,
            head_dim,
            scale: 0.25,
            window,
        };
        let segments = Segments::from_lengths([1, 23, 150, 7]);
        let x = tensor(&[181, spec.columns()], 8);
        let what = format!("attention {spec:?}");
        same(
            &what,
            &none,
            &x,
            |x| attend(x, &segments, spec),
            |x| composed(x, &segments, spec),
        )?;
    }
    Ok(())
}

#[test]
fn head_agrees_with_its_oracle() -> Anyhow {
    let params = store(&[("head", &[50, 12])])?;
    let head = params.get("head")?;
    let kept: Arc<[u32]> = [2u32, 3, 30, 49].into();
    let targets: Vec<Target> = (0..200)
        .map(|i| match i % 3 {
            0 => Target {
                row: i / 2,
                token: 30,
                kept: Some(kept.clone()),
            },
            _ => Target::whole(i / 2, (i * 7 % 50) as u32),
        })
        .collect();
    let both = |r: collimate::ops::head::TokenLogProbs| Tensor::stack(&[r.log_probs, r.entropy], 1);
    same(
        "head",
        &params,
        &(tensor(&[100, 12], 10) * 0.5)?,
        |x| both(token_log_probs(x, &head, &targets, 0.8)?),
        |x| both(head_composed(x, &head, &targets, 0.8)?),
    )
}

/// Two layers of each family's parts, small enough for finite differences.
fn two_layers(family: Family, head: Head) -> Anyhow<Decoder> {
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
    config.head = head;
    config.initializer_range = 0.3;
    config.tie_word_embeddings = family == Family::Gpt2 || family == Family::Qwen2;
    Ok(Decoder::fresh(
        HfConfig::new(config),
        1,
        |_| Training::Trained,
        &Device::Cpu,
    )?)
}

/// Three segments; log-probs, entropies or scores, mixed with fixed weights.
fn loss(model: &Decoder, head: Head) -> Result<Tensor> {
    let ids: Vec<u32> = (0..17).map(|i| (i * 11 + 3) % 30).collect();
    let segments = Segments::from_lengths([6, 3, 8]);
    let hidden = model.forward(&ids, &segments, Gradient::Record(Recompute::None))?;
    if head == Head::Score {
        let rows: Vec<u32> = (0..17).collect();
        return (model.scores(&hidden, &rows)? * tensor(&[17], 20))?.sum_all();
    }
    let rows = segments.iter().flat_map(|r| r.start..r.end - 1);
    let targets: Vec<Target> = rows.map(|row| Target::whole(row, ids[row + 1])).collect();
    let found = model.log_probs(&hidden, &targets, 1.3)?;
    let n = targets.len();
    (found.log_probs * tensor(&[n], 20))?.sum_all()?
        + (found.entropy * tensor(&[n], 21))?.sum_all()?
}

/// Central difference of the loss along `direction`, which leaves the parameter as it was up to rounding.
fn slope(model: &Decoder, head: Head, name: &str, direction: &[f32], step: f32) -> Anyhow<f64> {
    let param = model.params().get(name)?;
    let shift =
        |by: f32| param.update(|v| v.iter_mut().zip(direction).for_each(|(v, d)| *v += by * d));
    let value = || Ok::<_, candle_core::Error>(f64::from(loss(model, head)?.to_scalar::<f32>()?));
    shift(step)?;
    let above = value()?;
    shift(-2.0 * step)?;
    let below = value()?;
    shift(step)?;
    Ok((above - below) / (2.0 * f64::from(step)))
}

/// Differences along a random direction of each parameter, extrapolated from two steps (Richardson), which leaves an error of
/// fourth order in the step. The losses are f32 of size 10, so the rounding of a quotient is about 1e-6·10/step = 2e-3.
fn check_finite_differences(family: Family, head: Head) -> Anyhow {
    let model = two_layers(family, head)?;
    model.params().zero_grad()?;
    loss(&model, head)?.backward()?;
    let names: Vec<String> = model
        .params()
        .trained()
        .map(|p| p.name().to_owned())
        .collect();
    for (i, name) in names.iter().enumerate() {
        let param = model.params().get(name)?;
        let direction = noise(param.value().elem_count(), 300 + i as u64);
        let (near, far) = (
            slope(&model, head, name, &direction, 4e-3)?,
            slope(&model, head, name, &direction, 8e-3)?,
        );
        let numeric = (4.0 * near - far) / 3.0;
        let grad = param
            .grad()
            .expect("trained")
            .flatten_all()?
            .to_vec1::<f32>()?;
        let analytic: f64 = grad
            .iter()
            .zip(&direction)
            .map(|(g, d)| f64::from(g * d))
            .sum();
        let size = grad.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
        assert!(
            (numeric - analytic).abs() < 3e-3 * size + 5e-3,
            "{family:?} {head:?} {name}: {numeric} and {analytic} of {size}"
        );
        assert!(size > 1e-6, "{family:?} {name}: the gradient is zero");
    }
    Ok(())
}

#[test]
fn finite_differences_of_every_parameter() -> Anyhow {
    for family in Family::ALL {
        check_finite_differences(family, Head::LanguageModel)?;
    }
    check_finite_differences(Family::Llama, Head::Score)
}
