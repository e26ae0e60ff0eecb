//! Every key of the configuration arrives where it is to act.
//!
//! Each row of a table changes one key of a tiny run and says what becomes of the result: other weights; the same weights and another
//! logged value or file, with the reason; or the same weights, for keys that `config::diff` lets change while a run continues. A key
//! without a row fails. That an arriving value has the right effect is held elsewhere: `trainer` for the formulas as a whole.
//!
//! To add a key, add a row to the table of its stage: `row("sft.key", "value")`, with `.under("sft.other=1")` where it acts in company
//! alone, and `.stays()`, `.logs(…)`, `.writes(…)` or `.elsewhere(…)` where weights do not tell.

#[path = "keys/bench.rs"]
mod bench;
#[path = "keys/names.rs"]
mod names;
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
