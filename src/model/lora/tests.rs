//! Which modules have adapters, and what tensors those are.

use super::*;
use crate::model::config::{Family, Geometry};

fn decoder(family: Family) -> DecoderConfig {
    let sizes = Geometry {
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        num_key_value_heads: if family == Family::Gpt2 { 2 } else { 1 },
        head_dim: None,
        vocab_size: 10,
        max_position_embeddings: 16,
    };
    DecoderConfig::from_scratch(family, &sizes).unwrap()
}

fn config(targets: AdapterTargets, layers: Layers) -> LoraConfig {
    LoraConfig {
        r: 4,
        lora_alpha: 6.0,
        scaling: Scaling::Rank,
        target_modules: targets,
        layers_to_transform: layers,
    }
}

fn names(config: &LoraConfig, family: Family) -> Vec<String> {
    let lora = config.resolve(&decoder(family)).unwrap();
    lora.modules.into_iter().map(|m| m.name).collect()
}

fn named(names: &[&str]) -> AdapterTargets {
    AdapterTargets::Named(names.iter().map(|&name| name.to_owned()).collect())
}

#[test]
fn targets_and_layers_choose_modules() {
    let usual = config(AdapterTargets::Usual, Layers::Top(1));
    assert_eq!(
        names(&usual, Family::Llama),
        [
            "model.layers.2.self_attn.q_proj",
            "model.layers.2.self_attn.v_proj"
        ]
    );
    assert_eq!(names(&usual, Family::Gpt2), ["transformer.h.2.attn.c_attn"]);
    let all = config(AdapterTargets::AllLinear, Layers::All);
    assert_eq!(names(&all, Family::Qwen3).len(), 3 * 7);
    // A name selects every module whose path ends in it, as in PEFT.
    let both = config(named(&["c_proj"]), Layers::These(vec![1]));
    assert_eq!(
        names(&both, Family::Gpt2),
        ["transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_proj"]
    );
    let one = config(named(&["mlp.c_proj"]), Layers::These(vec![0]));
    assert_eq!(names(&one, Family::Gpt2), ["transformer.h.0.mlp.c_proj"]);
}

#[test]
fn tensors_have_the_shapes_of_peft() {
    let config = config(named(&["k_proj"]), Layers::Top(1));
    let specs = config.resolve(&decoder(Family::Llama)).unwrap().tensors();
    let shapes: Vec<(&str, &[usize])> = specs
        .iter()
        .map(|spec| (spec.name.as_str(), &spec.shape[..]))
        .collect();
    let module = "model.layers.2.self_attn.k_proj";
    let (a, b) = (a_of(module), b_of(module));
    assert_eq!(shapes, [(&a[..], &[4, 8][..]), (&b[..], &[4, 4][..])]);
    assert_eq!(
        specs[0].init,
        Init::Uniform {
            bound: 1.0 / 8f64.sqrt()
        }
    );
}

#[test]
fn scales() {
    let mut lora = config(AdapterTargets::Usual, Layers::All)
        .resolve(&decoder(Family::Llama))
        .unwrap();
    assert_eq!(lora.scale(), 1.5);
    lora.scaling = Scaling::RootRank;
    assert_eq!(lora.scale(), 3.0);
}

#[test]
fn what_the_decoder_lacks_is_named() {
    let refused = |targets, layers| {
        let lora = config(targets, layers).resolve(&decoder(Family::Llama));
        lora.unwrap_err().to_string()
    };
    let message = refused(named(&["q_proj", "c_fc"]), Layers::All);
    assert!(
        message.contains("`c_fc`") && message.contains("q_proj, k_proj, v_proj, o_proj"),
        "{message}"
    );
    assert!(refused(AdapterTargets::Usual, Layers::Top(4)).contains("the top 4"));
    assert!(refused(AdapterTargets::Usual, Layers::These(vec![3])).contains("layer 3"));
    assert!(refused(AdapterTargets::Usual, Layers::Top(0)).contains("no module"));
}
