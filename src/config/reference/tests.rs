use std::path::Path;

use super::*;
use crate::config::names;
use crate::config::written::key_names;

/// Set to write the page instead of comparing it.
const BLESS: &str = "COLLIMATE_BLESS";

#[test]
fn the_page_is_what_the_types_say() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(&page, markdown()).unwrap();
    }
    let found = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        found == markdown(),
        "docs/configuration.md is stale; {BLESS}=1 cargo test --release --lib config::reference \
         renews it"
    );
}

#[test]
fn every_table_and_key_is_described_in_one_sentence() {
    for table in tables() {
        let sentence = |text: &str| {
            let text = text.replace("et al. ", "").replace("eq. ", "");
            text.ends_with('.') && !text.contains(". ")
        };
        assert!(
            sentence(&table.summary),
            "{:?}: {}",
            table.names,
            table.summary
        );
        for key in &table.keys {
            let name = format!("{}.{}", table.names[0], key.name);
            assert!(sentence(&key.summary), "{name}: {}", key.summary);
            assert!(
                key.words.iter().all(|(_, meaning)| meaning.ends_with('.')),
                "{name}"
            );
        }
    }
    for table in names::tables() {
        assert!(
            tables()
                .iter()
                .any(|known| known.names.iter().any(|n| n == table)),
            "{table}"
        );
    }
}

/// A key that the file takes is in the reference, and no other.
#[test]
fn the_keys_are_those_that_a_file_may_have() {
    let config = crate::config::tests::resolve(&[]).unwrap();
    let known = [
        ("run", key_names(&config.run)),
        ("model", key_names(&config.model)),
        ("tokenizer", key_names(&config.tokenizer)),
        ("pretrain", key_names(&config.pretrain)),
        ("sft", key_names(&config.sft)),
        ("dpo", key_names(&config.dpo)),
        ("judge", key_names(&config.judge)),
        ("ppo", key_names(&config.ppo)),
        ("sft.lora", key_names(&LoraTable::default())),
    ];
    for (name, expected) in known {
        let tables = tables();
        let table = tables
            .iter()
            .find(|table| table.names.iter().any(|n| n == name));
        let mut found: Vec<_> = table
            .unwrap()
            .keys
            .iter()
            .map(|key| key.name.clone())
            .collect();
        let mut expected = expected.unwrap();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn defaults_bounds_and_words_are_those_of_the_types() {
    let says = |name: &str, parts: &[&str]| {
        let text = explain(Some(name)).unwrap();
        for part in parts {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    };
    says(
        "ppo.kl_coef",
        &[
            "ppo.kl_coef (number, at most",
            "default: 0.05)",
            "reference",
        ],
    );
    says(
        "ppo.kl_estimator",
        &["k1, k2, k3", "k3 in the loss", "- k2: "],
    );
    says("sft.learning_rate", &["default: 2e-5"]);
    says("judge.learning_rate", &["default: 1e-5"]);
    says("pretrain.data", &["required", "list of paths", "weight"]);
    says("model.family", &["default: \"llama\"", "- gpt2: "]);
    says("ppo.lora.r", &["default: 16"]);
    says("ppo.rewards[0].tolerance", &["default: 1e-6"]);
    says("ppo.rewards.type", &["- repetition: "]);
    says(
        "tokenizer.vocab_size",
        &["at most 1000000", "default: 2048"],
    );
    says("ppo", &["[ppo]: ", "kl_coef (", "max_new_tokens ("]);
    says("kl_coef", &["ppo.kl_coef ("]);
    assert!(explain(None).unwrap().contains("ppo.rewards.exact"));
}

#[test]
fn a_near_miss_leads_to_the_name_that_was_meant() {
    let refused = |name: &str| explain(Some(name)).unwrap_err().to_string();
    assert!(refused("ppo.kl_coeff").ends_with("did you mean `ppo.kl_coef`?"));
    assert!(refused("ppo.lr").ends_with("did you mean `ppo.learning_rate`?"));
    assert!(refused("pppo").ends_with("did you mean `ppo`?"));
    assert!(refused("kl_coeff").ends_with("did you mean `kl_coef`?"));
    assert!(refused("ppo.epsilon").ends_with("TRL's `epsilon` is `cliprange` here"));
    assert!(refused("quux").contains("`collimate config` lists"));
}
