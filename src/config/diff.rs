//! Changes between two configurations, and whether the run's result changes with them.
//!
//! A continued run must end in the same bits as an uninterrupted one. Keys of saving, logging and
//! threads may therefore change, keys of training may not.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use toml::{Table, Value};

use super::written::to_table;
use super::{Config, ConfigError, Stage};

/// Replaces the run's folder in the paths that are compared.
const OWN_FOLDER: &str = "<run>";

/// One key whose value differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key in full, such as `ppo.kl_coef`, or the name of a table that one side lacks.
    pub key: String,
    /// Old value as TOML; `None` if it was unset.
    pub old: Option<String>,
    /// New value as TOML; `None` if it is unset.
    pub new: Option<String>,
    /// Whether the result of the run changes.
    pub effect: Effect,
}

/// Whether a change alters the result of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The weights differ: a continued run must not change this key.
    ChangesResult,
    /// The weights stay the same.
    Harmless,
}

impl Change {
    /// Whether the change is in the table of `stage` or in a table that all stages share.
    pub fn concerns(&self, stage: Stage) -> bool {
        let table = self.key.split('.').next().unwrap_or_default();
        table == stage.name() || !super::names::is_stage(table)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "unset".into());
        write!(
            f,
            "{}: {} → {}",
            self.key,
            shown(&self.old),
            shown(&self.new)
        )
    }
}

/// The keys in which `old` and `new` differ, in alphabetical order.
///
/// A stage that only one of them has is one harmless change, named by its table: keys of other
/// stages name the folders that they take from it.
///
/// # Errors
/// If a path is not UTF-8.
pub fn diff(old: &Config, new: &Config) -> Result<Vec<Change>, ConfigError> {
    let (before, after) = (to_table(&rebased(old))?, to_table(&rebased(new))?);
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut changes = Vec::new();
    for name in names {
        match (table(&before, name), table(&after, name)) {
            (Some(before), Some(after)) => changes.extend(diff_table(name, before, after)),
            (before, _) => changes.push(whole_table(name, before.is_some())),
        }
    }
    for change in &mut changes {
        name_folder(&mut change.old, old);
        name_folder(&mut change.new, new);
    }
    Ok(changes)
}

/// `config` with its own models named relative to the run's folder, which may be moved.
fn rebased(config: &Config) -> Config {
    let mut config = config.clone();
    let folder = config.run.folder();
    for model in config.model_folders_mut(&Stage::ALL) {
        if let Ok(inside) = model.strip_prefix(&folder) {
            *model = Path::new(OWN_FOLDER).join(inside);
        }
    }
    config
}

/// Puts the run's folder for the word that stands for it in a value.
fn name_folder(value: &mut Option<String>, config: &Config) {
    if let Some(value) = value {
        *value = value.replace(OWN_FOLDER, &config.run.folder().display().to_string());
    }
}

fn table<'a>(tables: &'a Table, name: &str) -> Option<&'a Table> {
    tables.get(name).and_then(Value::as_table)
}

fn whole_table(name: &str, was_there: bool) -> Change {
    let present = Some("present".to_string());
    let (old, new) = if was_there {
        (present, None)
    } else {
        (None, present)
    };
    Change {
        key: name.into(),
        old,
        new,
        effect: Effect::Harmless,
    }
}

fn diff_table(name: &str, old: &Table, new: &Table) -> Vec<Change> {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differing = keys
        .into_iter()
        .filter(|key| old.get(*key) != new.get(*key));
    let change = |key: &String| match (tables(old.get(key)), tables(new.get(key))) {
        // Arrays of tables of one length differ in keys of their tables.
        (Some(before), Some(after)) if before.len() == after.len() => {
            let pairs = before.into_iter().zip(after).enumerate();
            let items = pairs.map(|(index, (before, after))| {
                diff_table(&format!("{name}.{key}[{index}]"), before, after)
            });
            items.flatten().collect()
        }
        _ => vec![Change {
            key: format!("{name}.{key}"),
            old: old.get(key).map(Value::to_string),
            new: new.get(key).map(Value::to_string),
            effect: effect(name, key, old, new),
        }],
    };
    differing.flat_map(change).collect()
}

fn tables(value: Option<&Value>) -> Option<Vec<&Table>> {
    value?.as_array()?.iter().map(Value::as_table).collect()
}

fn effect(table: &str, key: &str, old: &Table, new: &Table) -> Effect {
    let harmless = match (table, key) {
        // Sums do not depend on threads, nor weights on the run's folder.
        ("run", "dir" | "name" | "threads" | "max_bad_steps") => true,
        (_, "save_steps" | "keep_last" | "keep_every" | "log_steps") => true,
        // Recomputed activations are the same bits as kept ones.
        (_, "recompute") => true,
        // With early stopping, evaluations decide when training ends. Their prompts never change,
        // or the closing table would compare different measurements.
        (_, "eval_steps") => {
            let patience = old.get("early_stopping_patience");
            patience.is_none_or(|patience| *patience == Value::Integer(0))
        }
        // Draws are keyed by sequence and position, not by the other sequences in the batch.
        ("ppo", "rollout_batch" | "cache_bytes" | "cache_tokens") => true,
        // Recorded log-probs have the bits of recomputed ones.
        ("ppo", "rescore") => true,
        // Without skipping there was no bad record; with it the stage fails beyond the limit.
        (_, "bad_records" | "max_bad_share") => true,
        // Time limits do not change scores.
        (_, "timeout_seconds" | "retries" | "backoff_seconds" | "token_env") => true,
        (_, "max_steps") => only_longer(old, new),
        _ => false,
    };
    if harmless {
        Effect::Harmless
    } else {
        Effect::ChangesResult
    }
}

/// Whether more steps leave the earlier ones unchanged: only with a constant learning rate, because
/// a decay depends on the last step.
fn only_longer(old: &Table, new: &Table) -> bool {
    let steps = |table: &Table| {
        table
            .get("max_steps")
            .and_then(Value::as_integer)
            .unwrap_or(0)
    };
    let constant = old.get("lr_scheduler_type").and_then(Value::as_str) == Some("constant");
    constant && steps(old) > 0 && steps(new) > steps(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::resolve;

    fn changes(overrides: &[&str]) -> Vec<(String, Effect)> {
        let (old, new) = (resolve(&[]).unwrap(), resolve(overrides).unwrap());
        diff(&old, &new)
            .unwrap()
            .into_iter()
            .map(|change| (change.key, change.effect))
            .collect()
    }

    #[test]
    fn nothing_changed() {
        assert_eq!(changes(&[]), vec![]);
    }

    #[test]
    fn saving_is_harmless_and_training_is_not() {
        let found = changes(&[
            "ppo.save_steps=3",
            "run.threads=1",
            "ppo.kl_coef=0.1",
            "run.seed=5",
        ]);
        let expected = [
            ("ppo.kl_coef", Effect::ChangesResult),
            ("ppo.save_steps", Effect::Harmless),
            ("run.seed", Effect::ChangesResult),
            ("run.threads", Effect::Harmless),
        ];
        assert_eq!(
            found,
            expected.map(|(key, effect)| (key.to_string(), effect))
        );
    }

    #[test]
    fn more_steps_are_harmless_only_under_a_constant_rate() {
        // The sample's [ppo] has a constant rate and 40 steps, its [pretrain] a cosine and 100.
        assert_eq!(
            changes(&["ppo.max_steps=50"]),
            vec![("ppo.max_steps".into(), Effect::Harmless)]
        );
        assert_eq!(
            changes(&["ppo.max_steps=30"]),
            vec![("ppo.max_steps".into(), Effect::ChangesResult)]
        );
        assert_eq!(
            changes(&["pretrain.max_steps=200"]),
            vec![("pretrain.max_steps".into(), Effect::ChangesResult)]
        );
    }

    #[test]
    fn how_epochs_are_cut_and_warmed_up_changes_the_result() {
        for set in [
            "sft.dataloader_drop_last=true",
            "ppo.warmup_steps=3",
            "sft.warmup_steps=3",
        ] {
            let key = set.split('=').next().unwrap();
            assert_eq!(changes(&[set]), [(key.into(), Effect::ChangesResult)]);
        }
        // A warm-up does not look at the end either.
        let warm = |steps: &str| resolve(&["ppo.warmup_steps=3", steps]).unwrap();
        let found = diff(&warm("ppo.max_steps=40"), &warm("ppo.max_steps=50")).unwrap();
        assert_eq!(found[0].effect, Effect::Harmless);
    }

    #[test]
    fn evaluations_matter_where_they_stop_training() {
        let effect = |stage: &[&str]| {
            let old = resolve(stage).unwrap();
            let new = resolve(&[stage, &["sft.eval_steps=7"]].concat()).unwrap();
            let changes = diff(&old, &new).unwrap();
            assert_eq!((changes.len(), &*changes[0].key), (1, "sft.eval_steps"));
            changes[0].effect
        };
        let held_out = "sft.eval_fraction=0.1";
        assert_eq!(effect(&[held_out]), Effect::Harmless);
        let patient = ["sft.early_stopping_patience=3", held_out];
        assert_eq!(effect(&patient), Effect::ChangesResult);
    }

    #[test]
    fn a_moved_run_has_the_same_models() {
        let found = changes(&["run.name=moved", "run.dir=elsewhere"]);
        assert!(
            found.iter().all(|(_, effect)| *effect == Effect::Harmless),
            "{found:?}"
        );
        assert!(
            found.iter().all(|(key, _)| key.starts_with("run.")),
            "{found:?}"
        );
    }

    #[test]
    fn a_model_of_the_run_is_shown_with_its_folder() {
        let (old, new) = (resolve(&["sft.from=given"]), resolve(&["run.name=mine"]));
        let found = diff(&old.unwrap(), &new.unwrap()).unwrap();
        let from = found.iter().find(|change| change.key == "sft.from");
        let shown = from.unwrap().to_string();
        assert_eq!(shown, "sft.from: \"given\" → \"runs/mine/pretrain/final\"");
    }

    #[test]
    fn what_evaluations_measure_on_stays() {
        let held_out = "ppo.eval_prompts=held_out.jsonl";
        let (old, new) = (
            resolve(&[held_out]),
            resolve(&[held_out, "ppo.eval_seed=9"]),
        );
        let found = diff(&old.unwrap(), &new.unwrap()).unwrap();
        assert_eq!(found[0].key, "ppo.eval_seed");
        assert_eq!(found[0].effect, Effect::ChangesResult);
    }

    #[test]
    fn a_change_shows_both_values_and_whom_it_concerns() {
        let (old, new) = (
            resolve(&[]).unwrap(),
            resolve(&["ppo.score_clip=5.0"]).unwrap(),
        );
        let change = &diff(&old, &new).unwrap()[0];
        assert_eq!(change.to_string(), "ppo.score_clip: unset → 5.0");
        assert!(change.concerns(Stage::Ppo) && !change.concerns(Stage::Sft));
    }
}
