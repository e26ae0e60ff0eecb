//! Each operation against the composition of candle operations that serves as its oracle, forward
//! and backward.

use std::sync::Arc;

use candle_core::{Result, Tensor, Var};
use collimate::ops::activation::{gelu, gelu_tanh, swiglu, swiglu_composed};
use collimate::ops::adapter::Adapter;
use collimate::ops::attention::{attend, composed};
use collimate::ops::backend::Backend;
use collimate::ops::embedding;
use collimate::ops::head::{
    BothLogProbs, Target, both_log_probs, composed as head_composed, composed_both, token_log_probs,
};
use collimate::ops::linear::{Linear, Projection};
use collimate::ops::norm::Norm;
use collimate::ops::param::ParamStore;
use collimate::ops::rope::Rotation;
use kernels::attention::Segments;

use crate::support::{Anyhow, attention, gap, store, tensor, with_each_kernel};

/// Result, gradient of the input and gradients of the parameters, for the loss Σ r·y with random r.
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

/// Asserts that the fused and the composed form agree; the tolerance covers `f32` sums of some
/// hundred terms of size one.
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

/// Three projections computed side by side, the first and the last with adapters.
pub fn adapted(backend: &Backend) -> Result<(ParamStore, Linear)> {
    let params = store(
        &[
            ("a", &[40, 24]),
            ("a.A", &[3, 24]),
            ("a.B", &[40, 3]),
            ("b", &[9, 24]),
            ("b.bias", &[9]),
            ("c", &[16, 24]),
            ("c.A", &[5, 24]),
            ("c.B", &[16, 5]),
        ],
        backend,
    )?;
    let adapter = |name: &str, scale| {
        Ok::<_, candle_core::Error>(Adapter {
            a: params.get(&format!("{name}.A"))?,
            b: params.get(&format!("{name}.B"))?,
            scale,
        })
    };
    let mut parts = vec![
        Projection::new(params.get("a")?, None),
        Projection::new(params.get("b")?, Some(params.get("b.bias")?)),
        Projection::new(params.get("c")?, None),
    ];
    parts[0].adapter = Some(adapter("a", 0.5)?);
    parts[2].adapter = Some(adapter("c", 1.5)?);
    let linear = Linear::new(parts)?;
    Ok((params, linear))
}

#[test]
fn an_adapter_of_another_shape_is_refused() -> Anyhow {
    let params = store(
        &[("w", &[4, 6]), ("a", &[2, 6]), ("b", &[6, 2])],
        &Backend::CPU,
    )?;
    let mut part = Projection::new(params.get("w")?, None);
    part.adapter = Some(Adapter {
        a: params.get("a")?,
        b: params.get("b")?,
        scale: 1.0,
    });
    let refused = Linear::new(vec![part]).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("do not fit its shape [4, 6]"), "{refused}");
    Ok(())
}

#[test]
fn operations_agree_with_their_oracles() -> Anyhow {
    with_each_kernel(|backend| {
        linear_layers(backend)?;
        norms(backend)?;
        rotations_and_activations(backend)?;
        embeddings(backend)
    })
}

fn linear_layers(backend: &Backend) -> Anyhow {
    let params = store(&[("a", &[40, 24]), ("b", &[9, 24]), ("c", &[9])], backend)?;
    let parts = vec![
        Projection::new(params.get("a")?, None),
        Projection::new(params.get("b")?, Some(params.get("c")?)),
    ];
    let linear = Linear::new(parts)?;
    same(
        "linear",
        &params,
        &tensor(&[130, 24], 1),
        |x| linear.forward(x),
        |x| linear.composed(x),
    )?;

    let (params, linear) = adapted(backend)?;
    same(
        "adapted linear",
        &params,
        &tensor(&[130, 24], 11),
        |x| linear.forward(x),
        |x| linear.composed(x),
    )
}

fn norms(backend: &Backend) -> Anyhow {
    let params = store(&[("w", &[24]), ("b", &[24])], backend)?;
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
    for (what, norm) in [("rms norm", &rms), ("layer norm", &layer)] {
        same(what, &params, &x, |x| norm.forward(x), |x| norm.composed(x))?;
    }
    same(
        "head norm",
        &params,
        &tensor(&[70, 100], 3),
        |x| rms.forward_groups(x, 24, 3),
        |x| rms.composed_groups(x, 24, 3),
    )
}

fn rotations_and_activations(backend: &Backend) -> Anyhow {
    let none = store(&[], backend)?;
    let rotation = Rotation::new(vec![1.0, 0.3, 0.01]);
    let angles = rotation.angles(&(0..30).collect::<Vec<_>>());
    same(
        "rope",
        &none,
        &tensor(&[30, 20], 4),
        |x| angles.rotate(x, 3, backend),
        |x| angles.composed(x, 3),
    )?;
    let x = tensor(&[40, 22], 5);
    same("swiglu", &none, &x, |x| swiglu(x, backend), swiglu_composed)?;
    let x = tensor(&[40, 22], 6);
    same("gelu", &none, &x, |x| gelu_tanh(x, backend), Tensor::gelu)?;
    same(
        "gelu, exact",
        &none,
        &x,
        |x| gelu(x, backend),
        Tensor::gelu_erf,
    )
}

fn embeddings(backend: &Backend) -> Anyhow {
    let params = store(&[("table", &[10, 6])], backend)?;
    let table = params.get("table")?;
    let ids = [3, 9, 3, 0, 3];
    same(
        "embedding",
        &params,
        &tensor(&[1], 7),
        |_| embedding::embed(&table, &ids),
        |_| embedding::composed(&table, &ids),
    )
}

#[test]
fn attention_agrees_with_its_oracle() -> Anyhow {
    with_each_kernel(|backend| {
        let none = store(&[], backend)?;
        for shape in [
            (4, 2, 8, None),
            (3, 3, 32, None),
            (6, 1, 20, Some(7)),
            (2, 1, 16, Some(90)),
        ] {
            let spec = attention(shape);
            let segments = Segments::from_lengths([0, 1, 23, 0, 150, 7]);
            let x = tensor(&[181, spec.columns()], 8);
            let what = format!("attention {spec:?}");
            same(
                &what,
                &none,
                &x,
                |x| attend(x, &segments, spec, backend),
                |x| composed(x, &segments, spec),
            )?;
        }
        Ok(())
    })
}

#[test]
fn head_agrees_with_its_oracle() -> Anyhow {
    with_each_kernel(|backend| {
        let params = store(&[("head", &[50, 12])], backend)?;
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
        let both =
            |r: collimate::ops::head::TokenLogProbs| Tensor::stack(&[r.log_probs, r.entropy], 1);
        same(
            "head",
            &params,
            &(tensor(&[100, 12], 10) * 0.5)?,
            |x| both(token_log_probs(x, &head, &targets, 0.8)?),
            |x| both(head_composed(x, &head, &targets, 0.8)?),
        )?;
        let all = |r: BothLogProbs| Tensor::stack(&[r.kept.log_probs, r.kept.entropy, r.whole], 1);
        same(
            "head, whole and cut",
            &params,
            &(tensor(&[100, 12], 10) * 0.5)?,
            |x| all(both_log_probs(x, &head, &targets, 0.8)?),
            |x| all(composed_both(x, &head, &targets, 0.8)?),
        )?;
        // The gradient of a single projection takes a separate code path.
        for part in 0..3 {
            let one = |r: BothLogProbs| match part {
                0 => Ok(r.kept.log_probs),
                1 => Ok(r.kept.entropy),
                _ => Ok(r.whole),
            };
            same(
                "head, one result",
                &params,
                &(tensor(&[100, 12], 10) * 0.5)?,
                |x| one(both_log_probs(x, &head, &targets, 0.8)?),
                |x| one(composed_both(x, &head, &targets, 0.8)?),
            )?;
        }
        Ok(())
    })
}

/// Log-probs of kept sets and of the whole vocabulary have the same bits together as each alone.
#[test]
fn both_log_probs_of_the_head_are_those_of_each() -> Anyhow {
    with_each_kernel(|backend| {
        let params = store(&[("head", &[500, 12])], backend)?;
        let head = params.get("head")?;
        let kept: Arc<[u32]> = (0..500).filter(|id| id % 7 == 3).collect();
        let target = |i: usize| match i % 3 {
            0 => Target {
                kept: Some(kept.clone()),
                ..Target::whole(i, 24)
            },
            _ => Target::whole(i, (i * 7 % 500) as u32),
        };
        let cut: Vec<Target> = (0..90).map(target).collect();
        let whole: Vec<Target> = cut.iter().map(|t| Target::whole(t.row, t.token)).collect();
        let hidden = tensor(&[90, 12], 10);
        let values = |x: Tensor| x.to_vec1::<f32>();
        for temperature in [1.0, 0.7] {
            let both = both_log_probs(&hidden, &head, &cut, temperature)?;
            let own = token_log_probs(&hidden, &head, &cut, temperature)?;
            let over_all = token_log_probs(&hidden, &head, &whole, temperature)?;
            assert_eq!(values(both.kept.log_probs)?, values(own.log_probs)?);
            assert_eq!(values(both.kept.entropy)?, values(own.entropy)?);
            assert_eq!(values(both.whole)?, values(over_all.log_probs)?);
            let uncut = both_log_probs(&hidden, &head, &whole, temperature)?;
            let over_all = token_log_probs(&hidden, &head, &whole, temperature)?;
            assert_eq!(values(uncut.whole)?, values(over_all.log_probs.clone())?);
            assert_eq!(values(uncut.kept.log_probs)?, values(over_all.log_probs)?);
        }
        Ok(())
    })
}
