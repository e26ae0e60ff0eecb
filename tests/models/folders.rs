//! A model folder must hold exactly the tensors of the model that its configuration describes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;

use collimate::model::Decoder;
use collimate::model::config::{Head, Init, StoredLayout, TensorSpec};
use collimate::model::hf_config::HfConfig;
use collimate::model::weights::{SaveDtype, Weights, WeightsError, save};
use collimate::ops::backend::Backend;
use collimate::ops::param::Trainability;
use tempfile::TempDir;

use crate::support::{Anyhow, folder};

/// A copy of a fixture with other tensors and another `config.json`.
fn copy(
    name: &str,
    tensors: impl Fn(&mut Vec<TensorSpec>),
    config: impl Fn(String) -> String,
) -> Anyhow<TempDir> {
    let (from, to) = (folder(name), tempfile::tempdir()?);
    let mut specs = HfConfig::read(&from)?.decoder.tensors();
    let weights = Weights::open(&from)?;
    tensors(&mut specs);
    let fetch = |spec: &TensorSpec| {
        let found = weights.load(spec);
        Ok::<_, WeightsError>(Cow::Owned(found.unwrap_or(vec![0.5; spec.numel()])))
    };
    save(
        to.path(),
        &specs,
        SaveDtype::Float32,
        u64::MAX,
        &BTreeMap::new(),
        fetch,
    )?;
    let text = fs::read_to_string(from.join("config.json"))?;
    fs::write(to.path().join("config.json"), config(text))?;
    Ok(to)
}

fn load(folder: &TempDir, head: Head) -> Result<Decoder, String> {
    Decoder::load(
        folder.path(),
        head,
        0,
        |_| Trainability::Frozen,
        &Backend::CPU,
    )
    .map_err(|e| e.to_string())
}

fn extra(name: &str, shape: &[usize]) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        shape: shape.to_vec(),
        layout: StoredLayout::OutIn,
        init: Init::Zeros,
    }
}

#[track_caller]
fn assert_says<T>(refused: Result<T, String>, parts: &[&str]) {
    let message = refused.err().expect("refused");
    for part in parts {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
}

#[test]
fn a_reward_model_without_its_head_is_refused() -> Anyhow {
    let headless = |specs: &mut Vec<TensorSpec>| specs.retain(|s| s.name != "score.weight");
    let model = copy("llama_reward", headless, |config| config)?;
    assert_says(load(&model, Head::Score), &["no tensor `score.weight`"]);
    let reward = Decoder::load_reward_model(model.path(), |_| Trainability::Frozen, &Backend::CPU);
    assert_says(
        reward.map_err(|e| e.to_string()),
        &["model.safetensors", "no tensor `score.weight`"],
    );
    Ok(())
}

#[test]
fn a_language_model_gets_a_fresh_scalar_head() -> Anyhow {
    let drawn = |seed| -> Anyhow<Vec<f32>> {
        let all = |_: &_| Trainability::Trained;
        let model = Decoder::load(&folder("llama"), Head::Score, seed, all, &Backend::CPU)?;
        let head = model.params().get("score.weight")?;
        Ok(head.value().flatten_all()?.to_vec1()?)
    };
    assert_eq!(drawn(1)?, drawn(1)?);
    assert_ne!(drawn(1)?, drawn(2)?);
    Ok(())
}

#[test]
fn weights_beyond_the_configuration_are_refused() -> Anyhow {
    let fewer = |config: String| {
        let changed = config.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2");
        assert_ne!(changed, config);
        changed
    };
    let model = copy("llama", |_| {}, fewer)?;
    let says = [
        "`model.layers.2.input_layernorm.weight`",
        "6 more",
        "num_hidden_layers",
    ];
    assert_says(load(&model, Head::LanguageModel), &says);

    // Qwen2's biases, with a configuration that has none.
    let unbiased = |config: String| {
        config
            .replace("\"qwen2\"", "\"llama\"")
            .replace("Qwen2For", "LlamaFor")
    };
    let model = copy("qwen2", |_| {}, unbiased)?;
    let says = ["q_proj.bias`", "attention_bias"];
    assert_says(load(&model, Head::LanguageModel), &says);
    Ok(())
}

#[test]
fn what_means_nothing_may_be_left_over() -> Anyhow {
    let surplus = |specs: &mut Vec<TensorSpec>| {
        specs.extend([
            extra("score.weight", &[1, 32]),
            extra("model.layers.0.self_attn.rotary_emb.inv_freq", &[4]),
        ]);
    };
    let model = copy("llama3_tied", surplus, |config| config)?;
    load(&model, Head::LanguageModel).expect("a tied model");
    load(&model, Head::Score).expect("with a fresh head");
    let masks = |specs: &mut Vec<TensorSpec>| {
        specs.extend([
            extra("transformer.h.0.attn.bias", &[1, 1, 8, 8]),
            extra("transformer.h.0.attn.masked_bias", &[1]),
        ]);
    };
    let model = copy("gpt2", masks, |config| config)?;
    load(&model, Head::LanguageModel).expect("with causal masks");
    let model = copy("llama", |_| {}, |config| config)?;
    load(&model, Head::Score).expect("an untied language model");
    Ok(())
}

/// transformers 5 does not tie a head that differs from the embedding, and transformers 4 does:
/// which of the two is meant cannot be known.
#[test]
fn a_tied_head_must_be_the_embedding() -> Anyhow {
    let other = |specs: &mut Vec<TensorSpec>| specs.push(extra("lm_head.weight", &[128, 32]));
    let model = copy("llama3_tied", other, |config| config)?;
    let says = [
        "`lm_head.weight`",
        "`model.embed_tokens.weight` differ",
        "tie_word_embeddings",
    ];
    assert_says(load(&model, Head::LanguageModel), &says);
    // A reward model uses neither tensor.
    load(&model, Head::Score).expect("with a fresh head");
    let untied = |config: String| {
        config.replace(
            "\"tie_word_embeddings\": true",
            "\"tie_word_embeddings\": false",
        )
    };
    let model = copy("llama3_tied", other, untied)?;
    load(&model, Head::LanguageModel).expect("an untied model");

    // A separate head with the same values, as `.bin` files and some converters leave it.
    let tied = copy("llama3_tied", |_| {}, |config| config)?;
    let (weights, specs) = (
        Weights::open(tied.path())?,
        HfConfig::read(tied.path())?.decoder.tensors(),
    );
    let mut twice = specs.clone();
    twice.push(TensorSpec {
        name: "lm_head.weight".to_owned(),
        ..specs[0].clone()
    });
    let fetch = |spec: &TensorSpec| {
        let spec = if spec.name == "lm_head.weight" {
            &specs[0]
        } else {
            spec
        };
        weights.load(spec).map(Cow::Owned)
    };
    let to = tempfile::tempdir()?;
    save(
        to.path(),
        &twice,
        SaveDtype::Float32,
        u64::MAX,
        &BTreeMap::new(),
        fetch,
    )?;
    fs::copy(
        tied.path().join("config.json"),
        to.path().join("config.json"),
    )?;
    load(&to, Head::LanguageModel).expect("a head that is the embedding");
    Ok(())
}
