//! Every configuration key takes effect where it should.
//!
//! Each row of a table changes one key of a tiny run and states the effect: other weights; the same
//! weights but another logged value or file, with the reason; or the same weights, for keys that
//! `config::diff` lets change when a run is continued. A key without a row fails the test. Whether
//! a value has the right effect is tested elsewhere: `trainer` checks the formulas as a whole.
//!
//! To add a key, add a row to the table of its stage: `row("sft.key", "value")`, with
//! `.under("sft.other=1")` if it only acts together with other keys, and `.stays()`, `.logs(…)`,
//! `.writes(…)` or `.elsewhere(…)` if the weights do not show the effect.

#[path = "keys/bench.rs"]
mod bench;
#[path = "keys/names.rs"]
mod names;
#[path = "stages/orpo_table.rs"]
mod orpo_table;
#[path = "keys/ppo.rs"]
mod ppo;
#[path = "keys/rewards.rs"]
mod rewards;
#[path = "keys/row.rs"]
mod row;
#[path = "keys/supervised.rs"]
mod supervised;
#[path = "stages/support.rs"]
#[allow(
    dead_code,
    reason = "rows may move the run's folder, which some of it takes for granted"
)]
mod support;
#[path = "keys/training.rs"]
mod training;

use std::collections::BTreeSet;

use row::Row;

/// The rows of all tables.
fn rows() -> Vec<Row> {
    let endpoint = "http://localhost:1";
    let tables = [
        supervised::shared(),
        supervised::pretrain(),
        supervised::sft(),
        supervised::dpo(),
        supervised::orpo(),
        supervised::reward("reward"),
        supervised::reward("judge"),
        ppo::start(),
        ppo::objective(),
        ppo::rollout(),
        rewards::models(),
        rewards::rules(),
        rewards::others(endpoint),
    ];
    tables.into_iter().flatten().collect()
}

#[test]
fn every_key_has_a_row() {
    let rows = rows();
    let known: BTreeSet<String> = names::all();
    let tried: BTreeSet<String> = rows.iter().map(|row| row.key.clone()).collect();
    let missing: Vec<&String> = known.difference(&tried).collect();
    assert!(missing.is_empty(), "keys without a row: {missing:?}");
    let unknown: Vec<&String> = tried.difference(&known).collect();
    assert!(
        unknown.is_empty(),
        "rows of keys that are none: {unknown:?}"
    );
}
