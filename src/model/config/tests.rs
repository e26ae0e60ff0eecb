use super::*;
use crate::config::from_word;

const SIZES: Geometry = Geometry {
    hidden_size: 24,
    intermediate_size: 40,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: None,
    vocab_size: 50,
    max_position_embeddings: 64,
};

fn config(family: Family) -> DecoderConfig {
    let sizes = Geometry {
        num_key_value_heads: if family == Family::Gpt2 { 4 } else { 2 },
        ..SIZES
    };
    DecoderConfig::from_scratch(family, &sizes).expect("the sizes fit")
}

#[test]
fn a_family_is_found_by_its_model_type() {
    for family in Family::ALL {
        assert_eq!(from_word(&family.to_string()), Some(family));
    }
    assert_eq!(from_word::<Family>("gemma"), None);
}

#[test]
fn parameters_are_counted_by_hand() {
    // Two norms, q, k, v, o and the three feed-forward matrices.
    let layer = 2 * 24 + 24 * 24 + 2 * 12 * 24 + 24 * 24 + 3 * 24 * 40;
    let llama = 50 * 24 + 2 * layer + 24;
    let count = |family| -> usize {
        let tensors = config(family).tensors();
        tensors.iter().map(TensorSpec::numel).sum()
    };
    assert_eq!(count(Family::Llama), llama);
    assert_eq!(count(Family::Mistral), llama);
    assert_eq!(count(Family::Qwen2), llama + 2 * (24 + 2 * 12));
    assert_eq!(count(Family::Qwen3), llama + 2 * 2 * 6);
    let gpt2_layer = 2 * 2 * 24 + (72 * 24 + 72) + (24 * 24 + 24) + (40 * 24 + 40) + (24 * 40 + 24);
    assert_eq!(
        count(Family::Gpt2),
        50 * 24 + 64 * 24 + 2 * gpt2_layer + 2 * 24
    );
}

#[test]
fn tensors_come_in_the_order_of_the_forward_pass() {
    let mut config = config(Family::Qwen3);
    config.num_hidden_layers = 1;
    config.tie_word_embeddings = false;
    let names: Vec<_> = config.tensors().into_iter().map(|spec| spec.name).collect();
    let expected = [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.k_norm.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ];
    assert_eq!(names, expected);
}

#[test]
fn gpt2_stacks_and_turns_its_projections_and_starts_those_that_end_small() {
    let specs = config(Family::Gpt2).tensors();
    let of_layer: Vec<_> = specs
        .iter()
        .filter(|spec| layer_of(&spec.name) == Some(1) && spec.shape.len() == 2)
        .map(|spec| (&spec.name[16..], spec.shape.clone(), spec.layout, spec.init))
        .collect();
    let std = |std| Init::Normal { std };
    let (inside, residual) = (std(0.02), std(0.01));
    let expected = [
        ("attn.c_attn.weight", vec![72, 24], inside),
        ("attn.c_proj.weight", vec![24, 24], residual),
        ("mlp.c_fc.weight", vec![40, 24], inside),
        ("mlp.c_proj.weight", vec![24, 40], residual),
    ];
    assert_eq!(
        of_layer,
        expected.map(|(name, shape, init)| (name, shape, StoredLayout::Conv1d, init))
    );
}

#[test]
fn every_tensor_has_its_place_by_its_name() {
    for family in Family::ALL {
        let mut config = config(family);
        config.tie_word_embeddings = false;
        let names = family.names();
        for spec in config.tensors() {
            let norm = spec.name.starts_with(&format!("{}.", names.norm));
            let places = [
                layer_of(&spec.name).is_some_and(|layer| layer < config.num_hidden_layers),
                is_embedding(&spec.name),
                norm,
                spec.name == weight(LM_HEAD),
            ];
            let count = places.iter().filter(|&&place| place).count();
            assert_eq!(count, 1, "{family:?}: {}", spec.name);
            let in_trunk = without_trunk(&spec.name).is_some();
            assert_eq!(in_trunk, spec.name != weight(LM_HEAD), "{}", spec.name);
        }
    }
}

/// Adding a family takes a table of names and a row of fields. No layer may depend on the family:
/// every such layer would have to be found and changed.
#[test]
fn no_layer_asks_for_the_family() {
    for source in [
        include_str!("../block.rs"),
        include_str!("../decoder.rs"),
        include_str!("../decoder/layers.rs"),
        include_str!("../generator.rs"),
        include_str!("../weights.rs"),
    ] {
        assert!(!source.contains("Family::"));
    }
}

#[test]
fn the_head_decides_the_last_tensor() {
    let mut config = config(Family::Llama);
    let last = |config: &DecoderConfig| config.tensors().pop().map(|spec| (spec.name, spec.shape));
    assert_eq!(last(&config), Some(("model.norm.weight".into(), vec![24])));
    config.tie_word_embeddings = false;
    assert_eq!(last(&config), Some(("lm_head.weight".into(), vec![50, 24])));
    config.head = Head::Score;
    assert_eq!(last(&config), Some(("score.weight".into(), vec![1, 24])));
}

#[test]
fn gpt2_projections_are_stored_transposed_and_shrink_into_the_residual() {
    let specs = config(Family::Gpt2).tensors();
    let find = |name: &str| specs.iter().find(|spec| spec.name == name).expect(name);
    let attention = find("transformer.h.0.attn.c_attn.weight");
    assert_eq!(attention.shape, [72, 24]);
    assert_eq!(attention.stored_shape(), [24, 72]);
    assert_eq!(attention.init, Init::Normal { std: 0.02 });
    // Two layers add four terms to the stream.
    let output = find("transformer.h.1.mlp.c_proj.weight");
    assert_eq!(output.init, Init::Normal { std: 0.01 });
    assert_eq!(find("transformer.wpe.weight").stored_shape(), [64, 24]);
    assert_eq!(find("transformer.ln_f.bias").init, Init::Zeros);
}

#[test]
fn windows_are_by_layer() {
    let mut config = config(Family::Qwen2);
    assert_eq!(config.window(0), None);
    config.sliding_window = Some(SlidingWindow {
        size: 8,
        layers: vec![1],
    });
    config
        .validate()
        .expect("a Qwen2 may limit its upper layers");
    assert_eq!((config.window(0), config.window(1)), (None, Some(8)));
    config.family = Family::Mistral;
    let message = config.validate().expect_err("Mistral may not").to_string();
    assert!(
        message.contains("`sliding_window` is 8, but mistral"),
        "{message}"
    );
}

/// The error of `from_scratch` for `sizes` of `family`.
fn refusal(family: Family, sizes: Geometry) -> String {
    DecoderConfig::from_scratch(family, &sizes)
        .expect_err("the sizes do not fit")
        .to_string()
}

#[test]
fn sizes_that_do_not_fit_are_named_by_the_familys_keys() {
    let heads = Geometry {
        num_attention_heads: 5,
        ..SIZES
    };
    let message = refusal(Family::Llama, heads);
    assert!(
        message.contains("`hidden_size` is 24, not a multiple of `num_attention_heads` = 5"),
        "{message}"
    );
    let message = refusal(Family::Gpt2, heads);
    assert!(
        message.contains("`n_embd` is 24, not a multiple of `n_head` = 5"),
        "{message}"
    );
    let message = refusal(
        Family::Llama,
        Geometry {
            num_key_value_heads: 3,
            ..SIZES
        },
    );
    assert!(message.contains("`num_key_value_heads` = 3"), "{message}");
    let message = refusal(
        Family::Llama,
        Geometry {
            num_attention_heads: 8,
            ..SIZES
        },
    );
    assert!(message.contains("`head_dim` is 3"), "{message}");
    assert!(refusal(Family::Gpt2, SIZES).contains("as many key-value heads"));
}

#[test]
fn a_given_head_size_need_not_share_the_width_out() {
    let wide = Geometry {
        num_attention_heads: 5,
        num_key_value_heads: 5,
        head_dim: Some(16),
        ..SIZES
    };
    for family in [Family::Mistral, Family::Qwen2, Family::Qwen3] {
        let config = DecoderConfig::from_scratch(family, &wide).expect("a head size of its own");
        assert_eq!((config.head_dim, config.query_size()), (16, 80));
    }
    assert!(refusal(Family::Llama, wide).contains("`num_attention_heads` = 5"));
    let odd = Geometry {
        head_dim: Some(15),
        ..wide
    };
    assert!(refusal(Family::Qwen3, odd).contains("`head_dim` is 15"));
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_multiplied() {
    for (layers, vocabulary) in [(0, 50), (2, 0), (usize::MAX, 50), (2, usize::MAX)] {
        let sizes = Geometry {
            num_hidden_layers: layers,
            vocab_size: vocabulary,
            ..SIZES
        };
        assert!(refusal(Family::Qwen2, sizes).contains("choose a number from 1 to"));
    }
    let none = Geometry {
        num_attention_heads: 0,
        ..SIZES
    };
    assert!(refusal(Family::Llama, none).contains("`num_attention_heads` is 0"));
}

#[test]
fn numbers_that_break_the_mathematics_are_refused() {
    let mut config = config(Family::Llama);
    config.norm = NormKind::Rms { eps: 0.0 };
    assert!(
        config
            .validate()
            .is_err_and(|e| e.to_string().contains("`rms_norm_eps` is 0"))
    );
    config.norm = NormKind::Rms { eps: 1e-5 };
    config.position = Position::Rope(RopeConfig {
        theta: 1e4,
        scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 4.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 32,
        },
    });
    assert!(
        config
            .validate()
            .is_err_and(|e| e.to_string().contains("`high_freq_factor`"))
    );
    config.position = Position::Rope(RopeConfig {
        theta: f64::NAN,
        scaling: RopeScaling::None,
    });
    assert!(
        config
            .validate()
            .is_err_and(|e| e.to_string().contains("`rope_theta` is NaN"))
    );
}
