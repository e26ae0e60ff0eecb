//! The names of all keys, taken from the config structs: a field added to one of them adds a name
//! here.

use std::collections::BTreeSet;

use collimate::config::{
    Dpo, LoraTable, ModelConfig, Orpo, Ppo, Pretrain, Reward, RewardComponent, RewardKind, Run,
    SaveDtype, Sft, TokenizerTable,
};
use serde::Serialize;
use serde_json::Value;

/// `TABLE.KEY` of all tables; a key of a `lora` table is `TABLE.lora.KEY`, one of a reward
/// `ppo.rewards.TYPE.KEY`.
pub fn all() -> BTreeSet<String> {
    let model = ModelConfig {
        start: None,
        save_dtype: SaveDtype::default(),
    };
    let mut names = BTreeSet::new();
    add(&mut names, "run", &Run::default());
    add(&mut names, "model", &model);
    add(&mut names, "tokenizer", &TokenizerTable::default());
    add(&mut names, "pretrain", &Pretrain::default());
    add(&mut names, "sft", &Sft::default());
    add(&mut names, "dpo", &Dpo::default());
    add(&mut names, "orpo", &Orpo::default());
    add(&mut names, "reward", &Reward::default());
    add(&mut names, "judge", &Reward::default());
    add(&mut names, "ppo", &Ppo::default());
    for table in ["sft", "dpo", "orpo", "reward", "judge", "ppo"] {
        // The table itself is not a key beside the keys in it.
        assert!(names.remove(&format!("{table}.lora")), "{table}");
        add(&mut names, &format!("{table}.lora"), &LoraTable::default());
    }
    for kind in kinds() {
        add_reward(&mut names, kind);
    }
    names
}

/// In serialised form, an unset key is present as null.
fn add(names: &mut BTreeSet<String>, table: &str, value: &impl Serialize) {
    let value = serde_json::to_value(value).expect("JSON");
    let keys = value.as_object().expect("a table").keys();
    names.extend(keys.map(|key| format!("{table}.{key}")));
}

fn add_reward(names: &mut BTreeSet<String>, kind: RewardKind) {
    let word = kind.word();
    let value = serde_json::to_value(RewardComponent::new(kind)).expect("JSON");
    for key in value.as_object().map(|keys| keys.keys()).expect("a table") {
        names.insert(match key.as_str() {
            "type" | "name" | "weight" => format!("ppo.rewards.{key}"),
            _ => format!("ppo.rewards.{word}.{key}"),
        });
    }
}

/// One example of every type of reward.
fn kinds() -> Vec<RewardKind> {
    let known = |kind: &RewardKind| match kind {
        RewardKind::Model(_)
        | RewardKind::Ensemble(_)
        | RewardKind::Classifier(_)
        | RewardKind::Exact(_)
        | RewardKind::Numeric(_)
        | RewardKind::Regex(_)
        | RewardKind::Length(_)
        | RewardKind::Json(_)
        | RewardKind::Repetition(_)
        | RewardKind::Program(_)
        // A new variant fails to compile here: add it to the list below.
        | RewardKind::Http(_) => true,
    };
    let kinds = vec![
        RewardKind::Model(Default::default()),
        RewardKind::Ensemble(Default::default()),
        RewardKind::Classifier(Default::default()),
        RewardKind::Exact(Default::default()),
        RewardKind::Numeric(Default::default()),
        RewardKind::Regex(Default::default()),
        RewardKind::Length(Default::default()),
        RewardKind::Json(Default::default()),
        RewardKind::Repetition(Default::default()),
        RewardKind::Program(Default::default()),
        RewardKind::Http(Default::default()),
    ];
    assert!(kinds.iter().all(known));
    kinds
}

/// The keys of a value that is itself a table.
#[test]
fn an_unset_key_has_a_name() {
    let names = all();
    for unset in [
        "model.hidden_size",
        "ppo.score_clip",
        "sft.lora.target_modules",
    ] {
        assert!(names.contains(unset), "{unset}");
    }
    let nested = |value: Value| value.as_object().is_some_and(|keys| !keys.is_empty());
    let ppo = serde_json::to_value(Ppo::default()).expect("JSON");
    let tables = ppo.as_object().expect("a table").clone();
    assert!(!tables.into_iter().any(|(_, value)| nested(value)));
}
