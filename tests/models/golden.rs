//! Logits, log-probs, entropies, greedy continuations and every gradient of the fixtures.

use std::sync::Arc;

use candle_core::Tensor;
use collimate::model::config::Head;
use collimate::model::generator::Generator;
use collimate::model::{Decoder, Gradient, Recompute};
use collimate::ops::backend::Backend;
use collimate::ops::head::Target;
use collimate::reward::RewardModel;
use rollout::{Decoding, GenerationSettings, Request, generate};

use crate::support::{Anyhow, Expected, LANGUAGE_MODELS, gap, load, with_each_kernel};

/// Tolerance of the fixtures, which are `f32` on both sides.
pub const TOLERANCE: f32 = 1e-4;

/// Targets for every token but a row's first, each predicted at the position before it.
pub fn next_tokens(rows: &[Vec<u32>]) -> Vec<Target> {
    let mut start = 0;
    let mut targets = Vec::new();
    for row in rows {
        targets.extend(
            row.windows(2)
                .enumerate()
                .map(|(i, pair)| Target::whole(start + i, pair[1])),
        );
        start += row.len();
    }
    targets
}

/// The first `take(n)` values of each padded row of an expected `[rows, positions]` tensor.
pub fn expected_rows(
    expected: &Expected,
    name: &str,
    take: impl Fn(usize) -> usize,
) -> Anyhow<Vec<f32>> {
    let table = expected.tensors[name].to_vec2::<f32>()?;
    Ok(table
        .iter()
        .zip(&expected.rows)
        .flat_map(|(row, ids)| row[..take(ids.len())].to_vec())
        .collect())
}

/// Checks the logits of every row and returns the hidden states.
pub fn check_logits(name: &str, model: &Decoder, expected: &Expected) -> Anyhow<Tensor> {
    let (ids, segments) = expected.packed();
    let hidden = model.forward(&ids, &segments, Gradient::Skip)?;
    let logits = model.logits(&hidden)?;
    for (row, range) in segments.iter().enumerate() {
        let found = logits.narrow(0, range.start, range.len())?;
        let wanted = expected.tensors["logits"].get(row)?;
        let wanted = wanted.narrow(0, 0, range.len())?;
        let gap = gap(
            &found.flatten_all()?.to_vec1()?,
            &wanted.flatten_all()?.to_vec1()?,
        );
        assert!(gap < TOLERANCE, "{name} logits of row {row}: {gap}");
    }
    Ok(hidden)
}

#[test]
fn logits_log_probs_and_entropies() -> Anyhow {
    with_each_kernel(|backend| {
        for name in LANGUAGE_MODELS {
            let (expected, model) = (
                Expected::read(name)?,
                load(name, Head::LanguageModel, backend)?,
            );
            let hidden = check_logits(name, &model, &expected)?;
            let found = model.log_probs(&hidden, &next_tokens(&expected.rows), 1.0)?;
            let wanted = expected_rows(&expected, "logprobs", |n| n - 1)?;
            assert!(
                gap(&found.log_probs.to_vec1()?, &wanted) < TOLERANCE,
                "{name} log-probs"
            );
            let wanted = expected_rows(&expected, "entropy", |n| n - 1)?;
            assert!(
                gap(&found.entropy.to_vec1()?, &wanted) < TOLERANCE,
                "{name} entropy"
            );
        }
        Ok(())
    })
}

/// Checks that no gradient is missing and that each is within `TOLERANCE` of its norm.
pub fn check_gradients(name: &str, model: &Decoder, expected: &Expected) -> Anyhow {
    assert_eq!(model.params().unreached(), Vec::<&str>::new(), "{name}");
    for param in model.params().trained() {
        let bare = param.name().trim_start_matches("transformer.");
        let wanted = [param.name(), bare]
            .iter()
            .find_map(|n| expected.tensors.get(&format!("grad.{n}")));
        let wanted =
            wanted.unwrap_or_else(|| panic!("{name}: no expected gradient for {}", param.name()));
        let found = param.grad().expect("trained").clone();
        let wanted = if wanted.dims() == found.dims() && !is_conv1d(name, bare) {
            wanted.clone()
        } else {
            wanted.t()?
        };
        let distance = (found - &wanted)?
            .sqr()?
            .sum_all()?
            .sqrt()?
            .to_scalar::<f32>()?;
        let norm = wanted.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?;
        assert!(
            distance <= TOLERANCE * norm,
            "{name} {}: {distance:e} of {norm:e}",
            param.name()
        );
    }
    Ok(())
}

fn is_conv1d(model: &str, parameter: &str) -> bool {
    model.starts_with("gpt2")
        && parameter.contains(".c_")
        && parameter.ends_with("weight")
        && !parameter.contains("lora_")
}

/// Backpropagates the mean next-token loss and returns it.
pub fn backward_of_mean_nll(
    model: &Decoder,
    expected: &Expected,
    recompute: Recompute,
) -> Anyhow<Tensor> {
    let (ids, segments) = expected.packed();
    let hidden = model.forward(&ids, &segments, Gradient::Record(recompute))?;
    let loss = model
        .log_probs(&hidden, &next_tokens(&expected.rows), 1.0)?
        .log_probs
        .mean_all()?
        .neg()?;
    model.params().zero_grad()?;
    loss.backward()?;
    Ok(loss)
}

#[test]
fn loss_and_every_gradient() -> Anyhow {
    with_each_kernel(|backend| {
        for name in LANGUAGE_MODELS {
            let (expected, model) = (
                Expected::read(name)?,
                load(name, Head::LanguageModel, backend)?,
            );
            let loss = backward_of_mean_nll(&model, &expected, Recompute::None)?;
            let wanted = expected.tensors["loss"].to_vec1::<f32>()?;
            assert!(
                gap(&[loss.to_scalar()?], &wanted) < TOLERANCE,
                "{name} loss"
            );
            check_gradients(name, &model, &expected)?;
            let kept = model.params().arena().expect("trained").to_vec1::<f32>()?;
            backward_of_mean_nll(&model, &expected, Recompute::Block)?;
            assert_eq!(
                model.params().arena().expect("trained").to_vec1::<f32>()?,
                kept,
                "{name}: recomputed"
            );
        }
        Ok(())
    })
}

/// Checks the fixture's greedy tokens and their log-probs.
pub fn check_greedy(name: &str, backend: &Backend) -> Anyhow {
    let (expected, model) = (
        Expected::read(name)?,
        load(name, Head::LanguageModel, backend)?,
    );
    let request = |(key, row): (usize, &Vec<u32>)| Request {
        key: key as u64,
        prompt: row.clone(),
        max_new_tokens: 20,
        min_new_tokens: 0,
        samples: 1,
    };
    let requests: Vec<Request> = expected.rows.iter().enumerate().map(request).collect();
    let settings = GenerationSettings {
        decoding: Decoding::Greedy,
        ..GenerationSettings::default()
    };
    let output = generate(
        &mut Generator::new(&model),
        &requests,
        &settings,
        &mut |_| {},
    )?;
    let tokens = expected.tensors["greedy"].to_vec2::<i64>()?;
    let log_probs = expected.tensors["greedy_logprobs"].to_vec2::<f32>()?;
    for (i, completion) in output.completions.iter().enumerate() {
        let found: Vec<i64> = completion.tokens.iter().map(|&t| i64::from(t)).collect();
        assert_eq!(found, tokens[i], "{name} row {i}");
        assert!(
            gap(&completion.log_probs, &log_probs[i]) < TOLERANCE,
            "{name} row {i}"
        );
    }
    Ok(())
}

#[test]
fn greedy_continuations_are_transformers() -> Anyhow {
    with_each_kernel(|backend| {
        let mut names = LANGUAGE_MODELS.into_iter();
        names.try_for_each(|name| check_greedy(name, backend))
    })
}

#[test]
fn reward_model_scores_and_gradients() -> Anyhow {
    with_each_kernel(|backend| {
        let (name, expected) = ("llama_reward", Expected::read("llama_reward")?);
        check_reward_model(name, &load(name, Head::Score, backend)?, &expected)
    })
}

/// Checks the scores at every position, and every gradient of a loss on the scores at the end.
pub fn check_reward_model(name: &str, model: &Decoder, expected: &Expected) -> Anyhow {
    let (ids, segments) = expected.packed();
    let hidden = model.forward(&ids, &segments, Gradient::Record(Recompute::None))?;
    let wanted = expected_rows(expected, "token_scores", |n| n)?;
    assert!(gap(&model.scores(&hidden)?.to_vec1()?, &wanted) < TOLERANCE);
    let last: Vec<u32> = segments.iter().map(|rows| rows.end as u32 - 1).collect();
    let record = Gradient::Record(Recompute::None);
    let scores = model.scores(&model.forward_at(&ids, &segments, Some(last.into()), record)?)?;
    if let Some(wanted) = expected.tensors.get("scores") {
        assert!(gap(&scores.to_vec1()?, &wanted.to_vec1()?) < TOLERANCE);
    }
    let loss = (scores.sqr()?.mean_all()? * 0.5)?;
    model.params().zero_grad()?;
    loss.backward()?;
    check_gradients(name, model, expected)
}

#[test]
fn an_empty_sequence_has_no_score() -> Anyhow {
    let model = RewardModel::new(load("llama_reward", Head::Score, &Backend::CPU)?);
    let refused = model
        .score(&[&[5, 6], &[]], 64)
        .expect_err("an empty sequence");
    assert!(
        refused.to_string().contains("sequence 1 is empty"),
        "{refused}"
    );
    Ok(())
}

/// A kept set that is the whole vocabulary gives the uncut distribution.
#[test]
fn a_kept_set_of_everything_changes_nothing() -> Anyhow {
    let (expected, model) = (
        Expected::read("llama")?,
        load("llama", Head::LanguageModel, &Backend::CPU)?,
    );
    let (ids, segments) = expected.packed();
    let hidden = model.forward(&ids, &segments, Gradient::Skip)?;
    let everything: Arc<[u32]> = (0..128).collect();
    let whole = next_tokens(&expected.rows);
    let kept: Vec<Target> = whole
        .iter()
        .map(|t| Target {
            kept: Some(everything.clone()),
            ..t.clone()
        })
        .collect();
    let (a, b) = (
        model.log_probs(&hidden, &whole, 0.7)?,
        model.log_probs(&hidden, &kept, 0.7)?,
    );
    assert_eq!(a.log_probs.to_vec1::<f32>()?, b.log_probs.to_vec1::<f32>()?);
    assert_eq!(a.entropy.to_vec1::<f32>()?, b.entropy.to_vec1::<f32>()?);
    Ok(())
}
