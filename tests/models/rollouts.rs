//! The generator's tokens and log-probs are those of the training forward pass, bit for bit,
//! whatever the batch and the cache.

use candle_core::Tensor;
use collimate::model::config::{Family, Head, TensorSpec, layer_of};
use collimate::model::generator::Generator;
use collimate::model::hf_config::HfConfig;
use collimate::model::{Decoder, Gradient, Recompute};
use collimate::ops::backend::Backend;
use collimate::ops::head::Target;
use collimate::ops::param::{Operand, Trainability};
use collimate::random::Purpose;
use kernels::attention::Segments;
use kernels::host::product::ProductKernel;
use kernels::random::Key;
use kernels::random::rand::Rng;
use rollout::{
    CacheBudget, Completion, Decoding, GenerationOutput, GenerationSettings, Model as _, Request,
    Sampling, generate,
};

use crate::differences::{outputs, two_layers};
use crate::support::{Anyhow, llama, load, with_each_kernel};

/// Requests with prompts and limits of different lengths.
fn requests(count: u64, vocabulary: u32, samples: usize) -> Vec<Request> {
    let key = Key::new(11, Purpose::Split);
    let request = |i: u64| {
        let mut stream = key.stream(i, 0);
        let length = stream.random_range(1..=40);
        Request {
            key: i,
            prompt: (0..length)
                .map(|_| stream.random_range(0..vocabulary))
                .collect(),
            max_new_tokens: stream.random_range(1..=60),
            min_new_tokens: 0,
            samples,
        }
    };
    (0..count).map(request).collect()
}

fn run(
    model: &Decoder,
    requests: &[Request],
    sampling: Sampling,
    max_batch: usize,
    cache: CacheBudget,
) -> Anyhow<GenerationOutput> {
    let settings = GenerationSettings {
        decoding: Decoding::Sample(sampling),
        key: Key::new(5, Purpose::Sample),
        max_batch,
        cache,
        prefill_tokens: 37,
        stop_ids: &[0, 1],
        ..GenerationSettings::default()
    };
    Ok(generate(
        &mut Generator::new(model),
        requests,
        &settings,
        &mut |_| {},
    )?)
}

/// Compares every recorded log-prob, of the draw and over the whole vocabulary, with one packed
/// training forward pass over all sequences: bit for bit, where the backend decodes exactly.
fn assert_equal_to_training(
    model: &Decoder,
    requests: &[Request],
    output: &GenerationOutput,
    sampling: Sampling,
) -> Anyhow {
    let (mut ids, mut lengths, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    for completion in &output.completions {
        let prompt = &requests[completion.request].prompt;
        for (i, (&token, kept)) in completion.tokens.iter().zip(&completion.kept).enumerate() {
            targets.push(Target {
                row: ids.len() + prompt.len() + i - 1,
                token,
                kept: kept.clone(),
            });
        }
        ids.extend(prompt.iter().chain(&completion.tokens));
        lengths.push(prompt.len() + completion.tokens.len());
    }
    let hidden = model.forward(&ids, &Segments::from_lengths(lengths), Gradient::Skip)?;
    let training = model.both_log_probs(&hidden, &targets, sampling.temperature)?;
    let whole: Vec<Target> = targets
        .iter()
        .map(|t| Target::whole(t.row, t.token))
        .collect();
    let alone = model.log_probs(&hidden, &whole, sampling.temperature)?;
    let recorded = |of: fn(&Completion) -> &[f32]| -> Vec<f32> {
        output.completions.iter().flat_map(of).copied().collect()
    };
    let exactly = model.params().backend().decodes_exactly();
    for (recorded, found) in [
        (recorded(|c| &c.log_probs), training.kept.log_probs),
        (recorded(over_all), training.whole),
        (recorded(over_all), alone.log_probs),
    ] {
        let found = found.to_vec1::<f32>()?;
        let same = |(a, b): (&f32, &f32)| match exactly {
            true => a.to_bits() == b.to_bits(),
            // A device splits the context of a cache, and sums in another order.
            false => (a - b).abs() < 2e-5 * (1.0 + b.abs()),
        };
        assert_eq!(recorded.len(), found.len());
        let different = recorded.iter().zip(&found).position(|pair| !same(pair));
        let pair = different.map(|i| (recorded[i], found[i]));
        assert!(pair.is_none(), "a log-prob and training's: {pair:?}");
    }
    Ok(())
}

/// The recorded log-prob of each token over the whole vocabulary.
fn over_all(completion: &Completion) -> &[f32] {
    match completion.kept.iter().any(Option::is_some) {
        true => &completion.whole_log_probs,
        false => &completion.log_probs,
    }
}

/// Samples with a cache that is too small, and in batches of several sizes.
pub fn check(model: &Decoder, vocabulary: u32, sampling: Sampling) -> Anyhow {
    // An emulated device is slow.
    let (count, tokens) = match model.params().backend().decodes_exactly() {
        true => (64, 640),
        false => (12, 256),
    };
    let requests = requests(count, vocabulary, 1);
    let tight = run(model, &requests, sampling, 64, CacheBudget::Tokens(tokens))?;
    assert_equal_to_training(model, &requests, &tight, sampling)?;
    let mut largest = 0;
    for max_batch in [1, 7, 64] {
        let roomy = run(
            model,
            &requests,
            sampling,
            max_batch,
            CacheBudget::Unlimited,
        )?;
        assert_eq!(roomy.completions, tight.completions, "batch {max_batch}");
        largest = roomy.stats.peak_blocks;
    }
    assert!(
        tight.stats.reserved_blocks < largest,
        "the cache was meant to be too small for all"
    );
    Ok(())
}

/// A head of 8 columns takes the cache space of 16 for its values on the CPU, and a budget in bytes
/// accounts for it.
#[test]
fn a_budget_in_bytes_counts_the_padding() -> Anyhow {
    let model = llama(32, 2, 4, 2, 64, Head::LanguageModel, &Backend::CPU)?;
    let block = 2 * 2 * (8 + 16) * 16 * size_of::<f32>();
    assert_eq!(Generator::new(&model).cache_spec().block_bytes, block);
    let requests = requests(8, 64, 1);
    let budget = CacheBudget::Bytes(10 * block - 1);
    let output = run(&model, &requests, Sampling::default(), 8, budget)?;
    assert_eq!(output.stats.reserved_blocks, 9);
    Ok(())
}

/// The forward pass with a graph, the one without, and the one that records only above a frozen
/// layer.
#[test]
fn recording_changes_no_bit_whatever_is_trained() -> Anyhow {
    with_each_kernel(|backend| {
        let bits = |x: Tensor| -> Anyhow<Vec<u32>> {
            Ok(x.to_vec1::<f32>()?.iter().map(|x| x.to_bits()).collect())
        };
        for family in Family::ALL {
            for frozen in [0, 1, 2] {
                let training = |spec: &TensorSpec| match layer_of(&spec.name) {
                    Some(layer) if layer >= frozen => Trainability::Trained,
                    None if frozen == 0 || spec.name.contains("norm") => Trainability::Trained,
                    _ => Trainability::Frozen,
                };
                let config = HfConfig::new(two_layers(family)?);
                let model = Decoder::fresh(config, 1, training, backend)?;
                let skipped = bits(outputs(&model, Gradient::Skip)?)?;
                for recompute in [Recompute::None, Recompute::Block] {
                    let recorded = bits(outputs(&model, Gradient::Record(recompute))?)?;
                    assert_eq!(recorded, skipped, "{family:?}, {frozen} layers frozen");
                }
            }
        }
        Ok(())
    })
}

/// A packed second copy of the weights is freed with the generator.
#[test]
fn panels_are_given_back_after_generation() -> Anyhow {
    for kernel in ProductKernel::available() {
        let model = llama(32, 2, 4, 2, 64, Head::LanguageModel, &Backend::Host(kernel))?;
        let packed = |model: &Decoder| -> Anyhow<usize> {
            let matrices = model.params().iter().filter(|p| p.dims().len() == 2);
            let operands = matrices.map(|p| Ok(matches!(p.operand()?, Operand::Panels(_))));
            let packed: Vec<bool> = operands.collect::<Anyhow<_>>()?;
            Ok(packed.into_iter().filter(|p| *p).count())
        };
        let generator = Generator::new(&model);
        assert!(packed(&model)? > 0);
        drop(generator);
        assert_eq!(packed(&model)?, 0);
    }
    Ok(())
}

#[test]
fn the_quickstart_model_in_a_cache_too_small() -> Anyhow {
    with_each_kernel(|backend| {
        check(
            &llama(192, 4, 6, 6, 2048, Head::LanguageModel, backend)?,
            2048,
            Sampling::default(),
        )
    })
}

#[test]
fn hidden_size_576_in_a_cache_too_small() -> Anyhow {
    with_each_kernel(|backend| {
        let model = llama(576, 2, 9, 3, 512, Head::LanguageModel, backend)?;
        check(
            &model,
            512,
            Sampling {
                temperature: 0.8,
                ..Sampling::default()
            },
        )
    })
}

#[test]
fn cut_distributions_and_every_family() -> Anyhow {
    with_each_kernel(|backend| {
        let sampling = Sampling {
            temperature: 0.9,
            top_k: 20,
            top_p: 0.9,
            min_p: 0.02,
        };
        for name in ["llama3_tied", "qwen2", "qwen3", "mistral_swa", "gpt2"] {
            let model = load(name, Head::LanguageModel, backend)?;
            check(&model, 128, sampling)?;
        }
        Ok(())
    })
}

#[test]
fn samples_of_one_prompt_share_its_blocks_and_keep_their_bits() -> Anyhow {
    with_each_kernel(|backend| {
        let model = llama(64, 2, 4, 2, 256, Head::LanguageModel, backend)?;
        let requests = requests(6, 256, 5);
        let output = run(
            &model,
            &requests,
            Sampling::default(),
            16,
            CacheBudget::Unlimited,
        )?;
        assert_eq!(output.completions.len(), 30);
        let prompts: usize = requests.iter().map(|r| r.prompt.len()).sum();
        assert_eq!(output.stats.prefill_tokens, prompts);
        assert_equal_to_training(&model, &requests, &output, Sampling::default())
    })
}
