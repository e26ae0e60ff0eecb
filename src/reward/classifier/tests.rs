//! Logits against those of transformers, from the script in `tests/golden`.

use std::fs;
use std::path::PathBuf;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::*;

fn golden(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/classifiers");
    folder.join(name)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A copy of a classifier with another `config.json`.
fn with_config(name: &str, change: impl FnOnce(&mut Map<String, Value>)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        fs::copy(golden(name).join(file), folder.path().join(file)).unwrap();
    }
    let mut config = json_of(&golden(name).join("config.json"));
    change(config.as_object_mut().unwrap());
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

fn config(folder: &Path) -> ClassifierReward {
    ClassifierReward {
        path: folder.to_owned(),
        label: Some(Label::Index(0)),
        ..ClassifierReward::default()
    }
}

fn load(folder: &Path) -> Classifier {
    Classifier::load(&config(folder)).unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(folder: &Path) -> String {
    Classifier::load(&config(folder)).err().unwrap().to_string()
}

/// Holds the logits of every case of `name` against `classifier`'s.
fn assert_golden(classifier: &Classifier, name: &str, key: &str) {
    let expected = json_of(&golden(name).join("expected.json"));
    let cases = expected["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let (text, pair) = (case["text"].as_str().unwrap(), case["pair"].as_str());
        let logits = classifier.logits(text, pair).unwrap();
        let expected: Vec<f64> = serde_json::from_value(case[key].clone()).unwrap();
        assert_eq!(logits.len(), expected.len(), "{name}");
        for (found, expected) in logits.iter().zip(&expected) {
            // f32 sums in another order than PyTorch's, through three or four layers.
            let close = (f64::from(*found) - expected).abs() < 2e-5 * (1.0 + expected.abs());
            assert!(close, "{name}, {text:?}: {logits:?} for {}", case[key]);
        }
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for name in ["bert", "deberta_v3", "deberta_v2", "modernbert"] {
        assert_golden(&load(&golden(name)), name, "logits");
    }
}

#[test]
fn modern_bert_pools_by_the_mean_where_it_is_told_to() {
    let folder = with_config("modernbert", |config| {
        config.insert("classifier_pooling".into(), json!("mean"));
    });
    assert_golden(&load(folder.path()), "modernbert", "mean_logits");
}

#[test]
fn both_dialects_of_modern_bert_are_read() {
    let folder = with_config("modernbert", |config| {
        for key in ["rope_parameters", "layer_types", "norm_eps"] {
            config.remove(key);
        }
        let hub = json!({
            "global_rope_theta": 160000.0,
            "local_rope_theta": 10000.0,
            "layer_norm_eps": 1e-5,
            "global_attn_every_n_layers": 3,
        });
        config.extend(hub.as_object().unwrap().clone());
    });
    assert_golden(&load(folder.path()), "modernbert", "logits");
}

#[test]
fn sharded_weights_and_old_names_are_read() {
    let folder = with_config("bert", |_| {});
    let file = folder.path().join("model.safetensors");
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let (mut shards, mut index) = (vec![Default::default(); 2], Map::new());
    let mut names: Vec<_> = tensors.into_iter().collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    for (place, (name, tensor)) in names.into_iter().enumerate() {
        let old = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        let old = old.replace("LayerNorm.bias", "LayerNorm.beta");
        index.insert(old.clone(), json!(format!("{}.safetensors", place % 2)));
        let shard: &mut std::collections::HashMap<String, Tensor> = &mut shards[place % 2];
        shard.insert(old, tensor);
    }
    fs::remove_file(file).unwrap();
    for (place, shard) in shards.iter().enumerate() {
        let bytes = safetensors::serialize(shard, None).unwrap();
        fs::write(folder.path().join(format!("{place}.safetensors")), bytes).unwrap();
    }
    let index = json!({"metadata": {}, "weight_map": index}).to_string();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert_golden(&load(folder.path()), "bert", "logits");
}

fn score(classifier: &Classifier, prompt: &str, text: &str) -> f32 {
    let completion = RewardInput {
        prompt,
        text,
        ids: &[],
        states: None,
        response: Vec::new(),
        fields: &Map::new(),
    };
    let batch = RewardBatch {
        completions: &[completion],
        pass_tokens: 1,
    };
    classifier.scores(&batch).unwrap()[0]
}

#[test]
fn the_score_is_a_labels_logit_or_probability() {
    let classifier = |label: Label, output| {
        let config = ClassifierReward {
            label: Some(label),
            output,
            ..config(&golden("bert"))
        };
        Classifier::load(&config).unwrap()
    };
    let logits = load(&golden("bert")).logits("sad", None).unwrap();
    let named = |output| {
        score(
            &classifier(Label::Name("positive".into()), output),
            "the cat",
            "sad",
        )
    };
    assert_eq!(named(ClassifierOutput::Logit), logits[2]);
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
    let expected = (weights[2] / weights.iter().sum::<f64>()) as f32;
    assert!((named(ClassifierOutput::Probability) - expected).abs() < 1e-6);
    assert_eq!(
        score(
            &classifier(Label::Index(2), ClassifierOutput::Logit),
            "",
            "sad"
        ),
        logits[2]
    );
    // A lone label is its own probability: 1 / (1 + e⁻ˣ).
    let lone = ClassifierReward {
        label: None,
        output: ClassifierOutput::Probability,
        ..config(&golden("deberta_v2"))
    };
    let lone = Classifier::load(&lone).unwrap();
    let logit = f64::from(lone.logits("sad", None).unwrap()[0]);
    let expected = (1.0 / (1.0 + (-logit).exp())) as f32;
    assert!((score(&lone, "", "sad") - expected).abs() < 1e-6);
}

#[test]
fn labels_that_do_not_exclude_each_other_have_probabilities_of_their_own() {
    let folder = with_config("bert", |config| {
        config.insert("problem_type".into(), json!("multi_label_classification"));
    });
    let several = Classifier::load(&ClassifierReward {
        output: ClassifierOutput::Probability,
        ..config(folder.path())
    });
    let several = several.unwrap();
    let logit = f64::from(several.logits("sad", None).unwrap()[0]);
    let expected = (1.0 / (1.0 + (-logit).exp())) as f32;
    assert!((score(&several, "", "sad") - expected).abs() < 1e-6);
}

#[test]
fn a_classifier_reads_what_it_is_told_to() {
    let reads = |reads| {
        let config = ClassifierReward {
            reads,
            ..config(&golden("bert"))
        };
        score(
            &Classifier::load(&config).unwrap(),
            "the king was",
            " very sad",
        )
    };
    let logit =
        |text: &str, pair: Option<&str>| load(&golden("bert")).logits(text, pair).unwrap()[0];
    assert_eq!(reads(ClassifierInput::Completion), logit(" very sad", None));
    assert_eq!(
        reads(ClassifierInput::Text),
        logit("the king was very sad", None)
    );
    assert_eq!(
        reads(ClassifierInput::Pair),
        logit("the king was", Some(" very sad"))
    );
    assert_ne!(reads(ClassifierInput::Text), reads(ClassifierInput::Pair));
}

#[test]
fn longer_texts_are_cut_to_max_length() {
    let config = |max_length| ClassifierReward {
        max_length,
        ..config(&golden("bert"))
    };
    let logit = |max_length, text: &str| {
        let classifier = Classifier::load(&config(max_length)).unwrap();
        classifier.logits(text, None).unwrap()[0]
    };
    let text = "the cat saw the old king and the dog";
    // Ten tokens are [CLS], eight words and [SEP].
    assert_eq!(
        logit(Some(10), text),
        logit(None, text.trim_end_matches(" dog"))
    );
    assert_ne!(logit(Some(10), text), logit(None, text));
    // More than the model has positions for is cut to those.
    let long = "cat ".repeat(100);
    assert_eq!(logit(Some(1000), &long), logit(None, &"cat ".repeat(22)));
}

#[test]
fn labels_that_are_not_there_are_refused_with_those_that_are() {
    let labels = "0 \"negative\", 1 \"neutral\", 2 \"positive\"";
    for (label, says) in [
        (None, "has several labels"),
        (Some(Label::Index(3)), "has no label 3"),
        (
            Some(Label::Name("POSITIVE".into())),
            "has no label \"POSITIVE\"",
        ),
    ] {
        let config = ClassifierReward {
            label,
            ..config(&golden("bert"))
        };
        let error = Classifier::load(&config).err().unwrap().to_string();
        assert!(error.contains(says) && error.contains(labels), "{error}");
    }
}

#[test]
fn what_is_not_computed_is_refused() {
    for (name, key, value) in [
        ("bert", "model_type", json!("roberta")),
        ("bert", "is_decoder", json!(true)),
        ("bert", "hidden_act", json!("swish")),
        ("bert", "position_embedding_type", json!("relative_key")),
        ("bert", "hidden_size", Value::Null),
        ("bert", "num_attention_heads", json!(0)),
        ("bert", "intermediate_size", json!(0)),
        ("bert", "max_position_embeddings", json!(0)),
        ("deberta_v3", "num_attention_heads", json!(0)),
        ("deberta_v3", "attention_head_size", json!(0)),
        ("modernbert", "num_attention_heads", json!(0)),
        ("modernbert", "num_attention_heads", json!(1000)),
        ("modernbert", "hidden_size", json!(0)),
        ("modernbert", "vocab_size", json!(0)),
        ("bert", "num_hidden_layers", json!(4)),
        ("bert", "num_hidden_layers", json!(2)),
        ("deberta_v3", "num_hidden_layers", json!(2)),
        ("bert", "max_position_embeddings", json!("x")),
        ("bert", "id2label", json!({"1": "a"})),
        ("bert", "id2label", json!({"0": "a", "1": "b"})),
        ("deberta_v3", "conv_kernel_size", json!(3)),
        ("deberta_v3", "num_attention_heads", json!(3)),
        ("modernbert", "norm_bias", json!(true)),
        ("modernbert", "hidden_activation", json!("relu")),
        ("modernbert", "classifier_pooling", json!("max")),
        ("modernbert", "rope_scaling", json!({"rope_type": "yarn"})),
        (
            "modernbert",
            "layer_types",
            json!([
                "full_attention",
                "full_attention",
                "sliding_attention",
                "full_attention"
            ]),
        ),
        ("modernbert", "num_hidden_layers", json!(5)),
    ] {
        let folder = with_config(name, |config| {
            config.insert(key.into(), value.clone());
        });
        let error = refusal(folder.path());
        assert!(
            error.contains(folder.path().to_str().unwrap()),
            "{key}: {error}"
        );
    }
}

#[test]
fn a_missing_file_is_named() {
    let folder = with_config("modernbert", |_| {});
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(refusal(folder.path()).contains("tokenizer.json"));
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(refusal(folder.path()).contains("no model.safetensors"));
    assert!(refusal(Path::new("no/such/folder")).contains("config.json"));
}
