//! Files that are refused, each by the key that is wrong.

use std::fs;

use super::changed;
use crate::model::hf_config::{CONFIG, HfConfig, HfConfigError};

/// The name of a golden model and changes of its `config.json`, then words of the message, indented
/// by four spaces.
const REFUSED: &str = r#"
llama {"model_type": "gemma2"}
    `model_type` is "gemma2", which is not supported; supported: llama, mistral
llama {"model_type": "<absent>"}
    `model_type` is missing
llama {"hidden_size": "<absent>"}
    `hidden_size` is missing
llama {"hidden_size": "big"}
    `hidden_size` is "big"; expected a whole number
llama {"hidden_size": 31}
    `hidden_size` is 31, not a multiple
llama {"num_hidden_layers": 18446744073709551615}
    `num_hidden_layers` is
mistral_swa {"num_hidden_layers": 18446744073709551615}
    `num_hidden_layers` is
llama {"num_attention_heads": 0}
    `num_attention_heads` is 0
llama {"hidden_act": "relu"}
    `hidden_act` is "relu"
gpt2 {"activation_function": "silu"}
    supported: gelu_new
gpt2 {"scale_attn_by_inverse_layer_idx": true}
    `scale_attn_by_inverse_layer_idx` is true
gpt2 {"n_head": 5}
    `n_embd` is 32, not a multiple of `n_head` = 5
llama {"rope_scaling": {"rope_type": "yarn"}}
    `rope_scaling.rope_type` is "yarn"
llama {"rope_scaling": {"type": "linear"}}
    `rope_scaling.factor` is missing
llama {"rope_parameters": {"full_attention": {}}}
    `rope_parameters.full_attention`
llama {"partial_rotary_factor": 0.5}
    `partial_rotary_factor` is 0.5
llama {"quantization_config": {"bits": 4}}
    `quantization_config`
llama {"eos_token_id": [2, "x"]}
    `eos_token_id` is [2,"x"]
llama {"architectures": ["LlamaForTokenClassification"]}
    supported: LlamaForCausalLM
llama_reward {"id2label": {"0": "a", "1": "b"}}
    `id2label`
llama_reward {"id2label": "<absent>"}
    `num_labels` is missing
qwen2 {"use_sliding_window": true, "sliding_window": 4, "layer_types": ["chunked_attention"]}
    `layer_types`
# Without a window transformers fails at these layers, and so does any reader that knows them.
qwen2 {"use_sliding_window": false,
  "layer_types": ["full_attention", "sliding_attention", "full_attention"]}
    `layer_types`
qwen3 {"use_sliding_window": false,
  "layer_types": ["full_attention", "linear_attention", "full_attention"]}
    `layer_types`
llama {"residual_multiplier": 0.22}
    `residual_multiplier` is 0.22, which is not supported; supported: 1
llama {"embedding_multiplier": 12.0}
    `embedding_multiplier`
llama {"attention_multiplier": 0.0078125}
    `attention_multiplier`
llama {"logits_scaling": 8.0}
    `logits_scaling`
mistral {"final_logit_softcapping": 30.0}
    `final_logit_softcapping`
qwen2 {"use_mrope": true}
    `use_mrope`
llama {"no_rope_layers": [1, 1, 0]}
    `no_rope_layers`
llama {"is_causal": false}
    `is_causal` is false
llama {"quantization": {"bits": 4, "group_size": 64}}
    `quantization`
gpt2 {"add_cross_attention": true}
    `add_cross_attention`
gpt2 {"scale_attn_weights": false}
    `scale_attn_weights`
"#;

#[test]
fn what_cannot_be_read_is_named() {
    let (mut case, mut count) = (String::new(), 0);
    let lines = REFUSED.lines().filter(|line| !line.starts_with('#'));
    for line in lines {
        let Some(expected) = line.strip_prefix("    ") else {
            case += line;
            continue;
        };
        let (name, changes) = case.split_once(' ').expect("a model and changes");
        let changes = serde_json::from_str(changes).expect(&case);
        let message = changed(name, changes, None).expect_err(&case);
        assert!(message.contains(expected), "{case}: {message}");
        assert!(message.contains(CONFIG), "{case}: {message}");
        case.clear();
        count += 1;
    }
    assert_eq!(count, 35, "a case was not read");
}

#[test]
fn a_folder_without_a_configuration_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let message = HfConfig::read(folder.path())
        .expect_err("nothing")
        .to_string();
    assert!(message.contains("config.json: cannot be read"), "{message}");
    fs::write(folder.path().join(CONFIG), "{ \"a\": ").expect("written");
    assert!(matches!(
        HfConfig::read(folder.path()),
        Err(HfConfigError::Syntax { .. })
    ));
}
