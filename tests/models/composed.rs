//! The composed path of devices without kernels, run on the CPU: golden gradients with and without
//! recomputation, generation from cached rows, an optimizer step.

use collimate::model::config::{Activation, Family, Head};
use collimate::model::{Gradient, Recompute};
use collimate::ops::backend::Backend;
use collimate::ops::param::ParamStore;
use collimate::train::optimizer::{AdamW, AdamWConfig, StepOutcome, global_norm};

use crate::differences::{decoder, outputs, two_layers};
use crate::golden::{backward_of_mean_nll, check_gradients, check_greedy};
use crate::support::{
    Anyhow, COMPOSED, Expected, LANGUAGE_MODELS, gap, load, noise, store, tensor,
};

#[test]
fn the_composed_path_has_the_golden_gradients() -> Anyhow {
    for name in LANGUAGE_MODELS {
        let (expected, model) = (
            Expected::read(name)?,
            load(name, Head::LanguageModel, &COMPOSED)?,
        );
        for recompute in [Recompute::None, Recompute::Block] {
            backward_of_mean_nll(&model, &expected, recompute)?;
            check_gradients(name, &model, &expected)?;
        }
    }
    Ok(())
}

#[test]
fn the_composed_path_has_the_golden_continuations() -> Anyhow {
    let mut names = LANGUAGE_MODELS.into_iter();
    names.try_for_each(|name| check_greedy(name, &COMPOSED))
}

/// A model's outputs and all its gradients, for a loss with random weights.
fn probe(
    family: Family,
    activation: Activation,
    recompute: Recompute,
    backend: &Backend,
) -> Anyhow<[Vec<f32>; 2]> {
    let mut config = two_layers(family)?;
    config.activation = activation;
    let model = decoder(config, backend)?;
    model.params().zero_grad()?;
    let y = outputs(&model, Gradient::Record(recompute))?;
    (&y * tensor(y.dims(), 20))?.sum_all()?.backward()?;
    let gradients = model.params().arena().expect("trained").to_vec1()?;
    Ok([y.to_vec1()?, gradients])
}

/// Cut distributions and exact GELU, which no fixture has, against the kernels.
#[test]
fn models_say_the_same_on_both_paths() -> Anyhow {
    for (family, activation) in [
        (Family::Qwen3, Activation::SwiGlu),
        (Family::Gpt2, Activation::Gelu),
    ] {
        let kernels = probe(family, activation, Recompute::None, &Backend::CPU)?;
        for recompute in [Recompute::None, Recompute::Block] {
            let composed = probe(family, activation, recompute, &COMPOSED)?;
            for (found, wanted) in composed.iter().zip(&kernels) {
                let size = wanted.iter().fold(1f32, |m, v| m.max(v.abs()));
                let gap = gap(found, wanted);
                assert!(
                    gap < 1e-5 * size,
                    "{family:?} {recompute:?}: {gap} of {size}"
                );
            }
        }
    }
    Ok(())
}

const ADAMW: AdamWConfig = AdamWConfig {
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    max_grad_norm: 1.0,
};

/// Values and moments after three steps along different gradients, the last step at half the rate.
fn three_steps(backend: &Backend) -> Anyhow<[Vec<f32>; 3]> {
    let params: ParamStore = store(&[("w", &[6, 4]), ("b", &[6])], backend)?;
    let mut optimizer = AdamW::new(&params, ADAMW)?;
    for (step, rate) in [(0, 0.02), (1, 0.02), (2, 0.01)] {
        params.zero_grad()?;
        for (stream, param) in (40 + 2 * step..).zip(params.trained()) {
            let gradient = noise(param.value().elem_count(), stream);
            param.accumulate_with(|g| g.copy_from_slice(&gradient))?;
        }
        let moved = StepOutcome::Moved {
            grad_norm: global_norm(&params)?,
        };
        assert_eq!(optimizer.step(&params, |_| rate)?, moved);
    }
    let values = params.trained().map(|p| p.value().flatten_all()?.to_vec1());
    let values: Vec<Vec<f32>> = values.collect::<candle_core::Result<_>>()?;
    let [first, second] = optimizer.moments()?.map(|m| m.into_owned());
    Ok([values.concat(), first, second])
}

#[test]
fn optimizer_steps_agree() -> Anyhow {
    let (kernels, composed) = (three_steps(&Backend::CPU)?, three_steps(&COMPOSED)?);
    for (found, wanted) in composed.iter().zip(&kernels) {
        // Rounding of three steps for values of size one.
        assert!(gap(found, wanted) < 1e-6, "{}", gap(found, wanted));
    }
    Ok(())
}
