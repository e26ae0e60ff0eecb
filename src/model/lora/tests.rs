//! The adapted modules, and the tensors of the adapters.

use super::*;
use crate::config::LayersToTransform::{self, These, Top};
use crate::config::{LoraTable, TargetModules};
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

type Targets = Option<TargetModules>;
type Layers = Option<LayersToTransform>;

fn table(target_modules: Targets, layers_to_transform: Layers) -> LoraTable {
    LoraTable {
        r: Some(4),
        lora_alpha: Some(6.0),
        target_modules,
        layers_to_transform,
        ..LoraTable::default()
    }
}

fn names(table: &LoraTable, family: Family) -> Vec<String> {
    let lora = Lora::new(table, &decoder(family)).unwrap();
    lora.modules.into_iter().map(|m| m.name).collect()
}

fn named(names: &[&str]) -> Targets {
    let names = names.iter().map(|&name| name.to_owned());
    Some(TargetModules::Named(names.collect()))
}

#[test]
fn targets_and_layers_choose_modules() {
    let usual = table(None, Some(Top(1)));
    assert_eq!(
        names(&usual, Family::Llama),
        [
            "model.layers.2.self_attn.q_proj",
            "model.layers.2.self_attn.v_proj"
        ]
    );
    assert_eq!(names(&usual, Family::Gpt2), ["transformer.h.2.attn.c_attn"]);
    let all = table(Some(TargetModules::AllLinear), None);
    assert_eq!(names(&all, Family::Qwen3).len(), 3 * 7);
    // A name selects every module whose path ends in it, as in PEFT.
    let both = table(named(&["c_proj"]), Some(These(vec![1])));
    assert_eq!(
        names(&both, Family::Gpt2),
        ["transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_proj"]
    );
    let one = table(named(&["mlp.c_proj"]), Some(These(vec![0])));
    assert_eq!(names(&one, Family::Gpt2), ["transformer.h.0.mlp.c_proj"]);
}

#[test]
fn tensors_have_the_shapes_of_peft() {
    let table = table(named(&["k_proj"]), Some(Top(1)));
    let specs = Lora::new(&table, &decoder(Family::Llama)).unwrap();
    let specs = specs.tensors();
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
    let mut table = table(None, None);
    let scale = |table: &LoraTable| Lora::new(table, &decoder(Family::Llama)).unwrap().scale();
    assert_eq!(scale(&table), 1.5);
    table.use_rslora = Some(true);
    assert_eq!(scale(&table), 3.0);
    assert_eq!(scale(&LoraTable::default()), 2.0);
}

#[test]
fn what_the_decoder_lacks_is_named() {
    let refused = |targets, layers| {
        let lora = Lora::new(&table(targets, layers), &decoder(Family::Llama));
        lora.unwrap_err().to_string()
    };
    let message = refused(named(&["q_proj", "c_fc"]), None);
    assert!(
        message.contains("`c_fc`") && message.contains("q_proj, k_proj, v_proj, o_proj"),
        "{message}"
    );
    assert!(refused(None, Some(Top(4))).contains("the top 4"));
    assert!(refused(None, Some(These(vec![3]))).contains("layer 3"));
    assert!(refused(None, Some(Top(0))).contains("no module"));
}
