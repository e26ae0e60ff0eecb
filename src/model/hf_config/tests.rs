//! `config.json` and `generation_config.json` of the golden models, and of changed ones, are read.

mod refused;
mod written;

use serde_json::json;
use std::fs;

use super::*;
use crate::config::ScoreAt;
use crate::model::config::{
    Activation, Family, Head, NormKind, Position, QkNorm, RopeConfig, RopeScaling, SlidingWindow,
};
use crate::model::weights::SaveDtype;

/// The folder of a golden model.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/models")
        .join(name)
}

const GOLDEN: [&str; 10] = [
    "llama",
    "llama_old_dialect",
    "llama3_tied",
    "llama_reward",
    "mistral",
    "mistral_swa",
    "qwen2",
    "qwen3",
    "gpt2",
    "gpt2_bare",
];

/// The expected configuration of the golden Llama; those of the others are differences from it.
fn golden_llama() -> DecoderConfig {
    DecoderConfig {
        family: Family::Llama,
        hidden_size: 32,
        intermediate_size: 56,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        vocab_size: 128,
        max_position_embeddings: 128,
        norm: NormKind::Rms { eps: 1e-5 },
        position: rope(10_000.0, RopeScaling::None),
        activation: Activation::SwiGlu,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: QkNorm::Absent,
        sliding_window: None,
        tie_word_embeddings: false,
        initializer_range: 0.02,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: Some(0),
        head: Head::LanguageModel,
    }
}

fn rope(theta: f64, scaling: RopeScaling) -> Position {
    Position::Rope(RopeConfig { theta, scaling })
}

fn expected(name: &str) -> DecoderConfig {
    let llama = golden_llama();
    match name {
        "llama" | "llama_old_dialect" => llama,
        "llama3_tied" => DecoderConfig {
            tie_word_embeddings: true,
            position: rope(
                500_000.0,
                RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_position_embeddings: 32,
                },
            ),
            ..llama
        },
        "llama_reward" => DecoderConfig {
            head: Head::Score,
            ..llama
        },
        "mistral" => DecoderConfig {
            family: Family::Mistral,
            ..llama
        },
        "mistral_swa" => DecoderConfig {
            family: Family::Mistral,
            sliding_window: Some(SlidingWindow {
                size: 8,
                layers: vec![0, 1, 2],
            }),
            ..llama
        },
        "qwen2" => DecoderConfig {
            family: Family::Qwen2,
            qkv_bias: true,
            tie_word_embeddings: true,
            position: rope(1_000_000.0, RopeScaling::None),
            ..llama
        },
        "qwen3" => DecoderConfig {
            family: Family::Qwen3,
            head_dim: 16,
            qk_norm: QkNorm::PerHead,
            position: rope(1_000_000.0, RopeScaling::None),
            ..llama
        },
        "gpt2" | "gpt2_bare" => DecoderConfig {
            family: Family::Gpt2,
            intermediate_size: 128,
            num_key_value_heads: 4,
            norm: NormKind::Layer { eps: 1e-5 },
            position: Position::Learned,
            activation: Activation::GeluTanh,
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
            tie_word_embeddings: true,
            pad_token_id: None,
            ..llama
        },
        other => panic!("no golden model {other}"),
    }
}

#[test]
fn every_golden_model_is_read() {
    for name in GOLDEN {
        let config = HfConfig::read(&golden(name)).expect(name);
        assert_eq!(config.decoder, expected(name), "{name}");
        assert_eq!(config.stop_ids, [2], "{name}");
    }
}

/// Writes `config` and reads it back, with the two files as JSON.
fn rewritten(config: &HfConfig, dtype: SaveDtype) -> (HfConfig, Value, Option<Value>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    config.write(folder.path(), dtype).expect("written");
    let json = |name: &str| {
        let text = fs::read(folder.path().join(name)).ok()?;
        Some(serde_json::from_slice(&text).expect("JSON"))
    };
    let again = HfConfig::read(folder.path()).expect("read back");
    (
        again,
        json(CONFIG).expect("config.json"),
        json(GENERATION_CONFIG),
    )
}

/// Reads the golden model `name` with some keys of its `config.json` changed.
fn changed(name: &str, changes: Value, generation: Option<Value>) -> Result<HfConfig, String> {
    let text = fs::read(golden(name).join(CONFIG)).expect("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&text).expect("JSON");
    for (key, value) in changes.as_object().expect("an object").clone() {
        match value.as_str() {
            Some("<absent>") => config.remove(&key),
            _ => config.insert(key, value),
        };
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let put = |name, value: Value| {
        fs::write(folder.path().join(name), value.to_string()).expect("written");
    };
    put(CONFIG, Value::Object(config));
    if let Some(generation) = generation {
        put(GENERATION_CONFIG, generation);
    }
    HfConfig::read(folder.path()).map_err(|error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    })
}

#[test]
fn stop_ids_are_those_of_both_files() {
    let stops = |config: Value, generation| {
        let read = changed("llama", json!({ "eos_token_id": config }), generation);
        read.expect("read").stop_ids
    };
    assert_eq!(
        stops(json!(2), Some(json!({ "eos_token_id": [7, 8] }))),
        [7, 8, 2]
    );
    let one = Some(json!({ "eos_token_id": 9 }));
    assert_eq!(stops(json!([2, 9]), one), [9, 2]);
    assert_eq!(stops(json!([2, 5]), Some(json!({}))), [2, 5]);
    assert_eq!(stops(json!([2, 5]), None), [2, 5]);
    assert_eq!(stops(Value::Null, None), [0_u32; 0]);
}

#[test]
fn rotary_settings_are_read_in_both_dialects() {
    let read = |changes: Value| {
        let config = changed("llama_old_dialect", changes, None);
        config.expect("read").decoder.position
    };
    let linear = RopeScaling::Linear { factor: 2.0 };
    let old = json!({ "rope_theta": 5e5, "rope_scaling": { "type": "linear", "factor": 2 } });
    assert_eq!(read(old), rope(5e5, linear));
    let new = json!({
        "rope_theta": "<absent>", "rope_scaling": "<absent>",
        "rope_parameters": { "rope_type": "linear", "factor": 2.0, "rope_theta": 5e5 },
    });
    assert_eq!(read(new), rope(5e5, linear));
    let llama3 = json!({ "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    } });
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 128,
    };
    assert_eq!(read(llama3), rope(1e4, scaling));
    let neither = json!({ "rope_theta": "<absent>", "rope_scaling": "<absent>" });
    assert_eq!(read(neither), rope(1e4, RopeScaling::None));
}

#[test]
fn absent_keys_have_the_values_of_transformers() {
    let absent = |name, key: &str| {
        let config = changed(name, json!({ key: "<absent>" }), None);
        config.expect("read").decoder
    };
    assert_eq!(
        absent("llama", "num_key_value_heads").num_key_value_heads,
        4
    );
    assert_eq!(absent("llama", "head_dim").head_dim, 8);
    assert_eq!(absent("qwen3", "head_dim").head_dim, 128);
    assert_eq!(
        absent("llama", "rms_norm_eps").norm,
        NormKind::Rms { eps: 1e-6 }
    );
    assert!(absent("gpt2", "tie_word_embeddings").tie_word_embeddings);
    assert!(!absent("llama3_tied", "tie_word_embeddings").tie_word_embeddings);
    let window = absent("mistral", "sliding_window").sliding_window;
    assert_eq!(window.map(|window| window.size), Some(4096));
    let qwen = json!({ "use_sliding_window": true, "sliding_window": 4, "max_window_layers": 2,
        "layer_types": "<absent>" });
    let decoder = changed("qwen2", qwen, None).expect("read").decoder;
    assert_eq!((decoder.window(1), decoder.window(2)), (None, Some(4)));
    let minus = changed("llama", json!({ "pad_token_id": -1 }), None).expect("read");
    assert_eq!(minus.decoder.pad_token_id, None);
}

#[test]
fn an_original_context_at_the_top_comes_first() {
    let scaling = json!({ "original_max_position_embeddings": 32, "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    } });
    let config = changed("llama_old_dialect", scaling, None).expect("read");
    let Position::Rope(rope) = config.decoder.position else {
        panic!("rotary positions")
    };
    let RopeScaling::Llama3 {
        original_max_position_embeddings: original,
        ..
    } = rope.scaling
    else {
        panic!("{rope:?}")
    };
    assert_eq!(original, 32);
}

#[test]
fn a_reward_model_says_where_it_is_read() {
    let at = |pad: Value, eos: Value, generation| {
        let changes = json!({ "pad_token_id": pad, "eos_token_id": eos });
        changed("llama_reward", changes, generation)
            .expect("read")
            .score_at
    };
    assert_eq!(at(json!(0), json!(2), None), ScoreAt::Eos);
    assert_eq!(at(json!(2), json!(2), None), ScoreAt::LastNonPad);
    assert_eq!(at(json!(4), json!([2, 4]), None), ScoreAt::LastNonPad);
    assert_eq!(
        at(json!(4), json!(2), Some(json!({ "eos_token_id": 4 }))),
        ScoreAt::LastNonPad
    );
    assert_eq!(at(Value::Null, json!(2), None), ScoreAt::Eos);
    let language = changed("llama", json!({ "pad_token_id": 2 }), None).expect("read");
    assert_eq!(
        language.score_at,
        ScoreAt::Eos,
        "a language model has no score"
    );
    // The folder's own position is written unchanged.
    let mut config = HfConfig::read(&golden("llama_reward")).expect("read");
    (config.decoder.pad_token_id, config.score_at) = (Some(2), ScoreAt::LastNonPad);
    let (again, json, _) = rewritten(&config, SaveDtype::Float32);
    assert_eq!(
        (again.score_at, &json["pad_token_id"]),
        (ScoreAt::LastNonPad, &json!(2))
    );
}
