//! Our defaults against those of TRL, and the names that `docs/coming-from-trl.md` lists.

use serde::Serialize;
use serde_json::Value;

use super::*;
use crate::config::check::Checker;
use crate::config::{AdvantageEstimator, Dpo, Orpo, Ppo, Reward, Sft, names, written::key_names};

/// Compares each field of TRL's class with our default as its row says.
fn check(class: &str, ours: &impl Serialize, rows: &[&[Row]]) {
    let golden = include_str!("../../../tests/golden/trl_defaults.json");
    let golden: Value = serde_json::from_str(golden).unwrap();
    let (theirs, ours) = (&golden[class], serde_json::to_value(ours).unwrap());
    let rows: Vec<&Row> = rows.iter().flat_map(|rows| rows.iter()).collect();
    for (field, theirs) in theirs.as_object().expect("a class of TRL's") {
        let row = rows.iter().find(|(name, _)| is_named(name, field));
        let (_, row) = row.unwrap_or_else(|| panic!("{class}: TRL's {field} has no row"));
        let default = |key: &str| {
            let found = ours.get(key);
            found.unwrap_or_else(|| {
                panic!("[{class}] has no {key}, which stands beside TRL's {field}")
            })
        };
        match row {
            Same(key) | Acts(key, _) => {
                let found = default(key);
                let words = match row {
                    Acts(_, words) => words,
                    _ => "no difference",
                };
                assert!(
                    is_same(found, theirs),
                    "[{class}] {key} is {found}, TRL's {field} {theirs} ({words})"
                );
            }
            Differs(key, reason) => {
                let found = default(key);
                assert!(
                    !is_same(found, theirs),
                    "[{class}] {key} no longer differs ({reason})"
                );
            }
            // A key of the same name would be compared.
            Absent(reason) => assert!(
                ours.get(field).is_none(),
                "[{class}] {field} is there after all ({reason})"
            ),
        }
    }
}

/// The default `[ppo]` with this estimator, unset keys filled.
fn with(estimator: AdvantageEstimator) -> Ppo {
    let mut ppo = Ppo::default();
    ppo.objective.advantage_estimator = estimator;
    ppo.fill(Some("reward/final".into()), None, &mut Checker::flags());
    ppo
}

/// Whether two defaults are equal: numbers by value, a list of one (TRL's `["sigmoid"]`) as its
/// item.
fn is_same(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (ours, Value::Array(items)) if items.len() == 1 => is_same(ours, &items[0]),
        (Value::Number(ours), Value::Number(theirs)) => ours.as_f64() == theirs.as_f64(),
        (ours, theirs) => ours == theirs,
    }
}

#[test]
fn every_default_of_trls_is_ours_or_differs_for_a_reason() {
    check("sft", &Sft::default(), &[SHARED, SUPERVISED, SFT]);
    let pairs = |own| [SHARED, SUPERVISED, pairs::REFERENCE, own];
    check("reward", &Reward::default(), &pairs(pairs::REWARD));
    check("dpo", &Dpo::default(), &pairs(pairs::DPO));
    check("cpo", &Dpo::default(), &[pairs::CPO]);
    check("orpo", &Orpo::default(), &pairs(pairs::ORPO));
    // The first row that names a field is its own.
    check("ppo", &Ppo::default(), &[PPO, SHARED, ON_POLICY]);
    let shared = [SHARED, ON_POLICY, pairs::REFERENCE].concat();
    let grpo = with(AdvantageEstimator::Grpo);
    check("grpo", &grpo, &[groups::GRPO, groups::BOTH, &shared]);
    let rloo = with(AdvantageEstimator::Rloo);
    check("rloo", &rloo, &[groups::RLOO, groups::BOTH, &shared]);
}

/// The names in the first column of the page's tables on TRL.
fn names_on_the_page() -> Vec<&'static str> {
    let page = include_str!("../../../docs/coming-from-trl.md");
    let (_, keys) = page.split_once("## Keys: from TRL").unwrap();
    let (keys, _) = keys.split_once("## Keys: from OpenRLHF").unwrap();
    let rows = keys.lines().filter(|line| line.starts_with("| `"));
    let first = rows.filter_map(|row| row.split('|').nth(1));
    let names = first.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    names.filter(|name| !name.contains('*')).collect()
}

#[test]
fn a_name_on_the_page_is_a_key_or_is_explained() {
    let tables = [
        ("sft", key_names(&Sft::default()).unwrap()),
        ("reward", key_names(&Reward::default()).unwrap()),
        ("dpo", key_names(&Dpo::default()).unwrap()),
        ("orpo", key_names(&Orpo::default()).unwrap()),
        ("ppo", key_names(&Ppo::default()).unwrap()),
    ];
    let names = names_on_the_page();
    assert!(names.len() > 60, "{names:?}");
    for name in names {
        let known = tables.iter().any(|(table, keys)| {
            keys.iter().any(|key| key == name)
                || names::alias(name, keys).is_some()
                || counterpart(table, name).is_some()
        });
        assert!(
            known,
            "docs/coming-from-trl.md lists {name}, which no message explains"
        );
    }
}
