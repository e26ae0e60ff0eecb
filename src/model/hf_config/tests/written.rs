//! Configurations are written and read back.

use serde_json::json;

use super::{GOLDEN, golden, rewritten};
use crate::model::config::{DecoderConfig, Family, Geometry, Head, SlidingWindow};
use crate::model::hf_config::HfConfig;
use crate::model::weights::SaveDtype;

#[test]
fn what_is_written_is_read_back() {
    for name in GOLDEN {
        let config = HfConfig::read(&golden(name)).expect(name);
        let (again, json, generation) = rewritten(&config, SaveDtype::Bfloat16);
        assert_eq!(again.decoder, config.decoder, "{name}");
        assert_eq!(again.stop_ids, config.stop_ids, "{name}");
        assert_eq!(json["torch_dtype"], "bfloat16", "{name}");
        assert!(json.get("dtype").is_none() && json.get("rope_parameters").is_none());
        assert_eq!(json["transformers_version"], "5.24.0", "{name} lost a key");
        let language_model = config.decoder.head == Head::LanguageModel;
        assert_eq!(generation.is_some(), language_model, "{name}");
    }
}

#[test]
fn a_model_from_scratch_is_read_back() {
    let sizes = Geometry {
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        head_dim: None,
        vocab_size: 50,
        max_position_embeddings: 64,
    };
    for family in Family::ALL {
        let mut decoder = DecoderConfig::from_scratch(family, &sizes).expect("sizes that fit");
        decoder.eos_token_ids = vec![3, 4];
        let (again, json, generation) =
            rewritten(&HfConfig::new(decoder.clone()), SaveDtype::Float32);
        assert_eq!(again.decoder, decoder, "{family:?}");
        assert_eq!(again.stop_ids, [3, 4], "{family:?}");
        assert_eq!(
            json["architectures"],
            json!([family.architecture(Head::LanguageModel)])
        );
        assert_eq!(generation.expect("a file")["eos_token_id"], json!([3, 4]));
    }
}

#[test]
fn windows_in_some_layers_survive() {
    let mut config = HfConfig::read(&golden("qwen2")).expect("qwen2");
    config.decoder.sliding_window = Some(SlidingWindow {
        size: 16,
        layers: vec![1, 2],
    });
    let (again, json, _) = rewritten(&config, SaveDtype::Float32);
    assert_eq!(again.decoder, config.decoder);
    assert_eq!(json["max_window_layers"], 1);
    let kinds = ["full_attention", "sliding_attention", "sliding_attention"];
    assert_eq!(json["layer_types"], json!(kinds));
}

#[test]
fn a_language_model_becomes_a_scoring_model() {
    let mut config = HfConfig::read(&golden("llama")).expect("llama");
    config.decoder.head = Head::Score;
    let (again, json, generation) = rewritten(&config, SaveDtype::Float32);
    assert_eq!(again.decoder.head, Head::Score);
    assert_eq!(
        json["architectures"],
        json!(["LlamaForSequenceClassification"])
    );
    assert_eq!(json["id2label"], json!({ "0": "LABEL_0" }));
    assert_eq!(json["num_labels"], 1);
    assert_eq!(generation, None);
}

#[test]
fn a_scoring_model_is_not_padded_with_its_end_token() {
    let mut config = HfConfig::read(&golden("llama_reward")).expect("llama_reward");
    assert_eq!(config.scoring_pad_id(), Some(0));
    for pad in [None, Some(2), Some(128)] {
        config.decoder.pad_token_id = pad;
        assert_eq!(config.scoring_pad_id(), Some(1), "BOS in place of {pad:?}");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let refused = config.write(folder.path(), SaveDtype::Float32);
        let message = refused.expect_err("refused").to_string();
        assert!(
            message.contains("`pad_token_id` that no sequence ends in"),
            "{message}"
        );
    }
    config.decoder.bos_token_id = Some(2);
    assert_eq!(config.scoring_pad_id(), None);
}
