use std::path::Path;

use super::*;
use crate::config::diff::{Effect, diff};
use crate::config::{Config, Override, Stage};

const HEAD: &str = "[run]\nname = \"trial\"\n[model]\nfrom = \"base\"\n";
const PPO: &str = "[ppo]\nprompts = \"prompts.jsonl\"\nmax_steps = 4\n";

/// One of each type with its required keys, as a file would have it.
const ALL: &str = r#"
[[ppo.rewards]]
type = "model"
path = "scorer"
[[ppo.rewards]]
type = "ensemble"
paths = ["a", "b"]
combine = "mean_minus_deviation"
deviations = 0.5
[[ppo.rewards]]
type = "classifier"
path = "toxic"
label = "harmless"
[[ppo.rewards]]
type = "exact"
extract = "<a>(.*)</a>"
[[ppo.rewards]]
type = "numeric"
weight = 2
[[ppo.rewards]]
type = "regex"
pattern = "^Yes"
[[ppo.rewards]]
type = "length"
max = 40
[[ppo.rewards]]
type = "json"
keys = ["name"]
[[ppo.rewards]]
type = "repetition"
ngram = 2
[[ppo.rewards]]
type = "program"
command = ["python3", "reward.py"]
[[ppo.rewards]]
type = "http"
url = "http://localhost:8000/score"
retries = 1
"#;

fn resolve(text: &str, overrides: &[&str]) -> Result<Config, String> {
    let overrides: Result<Vec<Override>, _> = overrides.iter().map(|o| o.parse()).collect();
    let document = Document::parse(text, Path::new("trial.toml")).map_err(|e| e.to_string())?;
    let document = overrides.and_then(|overrides| document.with(&overrides));
    let config = document.and_then(|document| Config::resolve(&document));
    config.map_err(|error| error.to_string())
}

fn with(rewards: &str) -> String {
    [HEAD, PPO, rewards].concat()
}

#[track_caller]
fn components(rewards: &str, overrides: &[&str]) -> Vec<RewardComponent> {
    resolve(&with(rewards), overrides)
        .unwrap()
        .ppo
        .unwrap()
        .rewards
}

#[track_caller]
fn refused(rewards: &str, overrides: &[&str], says: &[&str]) {
    let error = resolve(&with(rewards), overrides).unwrap_err();
    for part in says {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
}

#[test]
fn every_type_is_read_and_written_back() {
    let config = resolve(&with(ALL), &[]).unwrap();
    let rewards = &config.ppo.as_ref().unwrap().rewards;
    let names: Vec<&str> = rewards
        .iter()
        .map(|component| component.name.as_str())
        .collect();
    assert_eq!(names, RewardKind::words());
    let numeric = &rewards[4];
    assert_eq!(numeric.weight, 2.0);
    let RewardKind::Numeric(rule) = &numeric.kind else {
        panic!("{numeric:?}")
    };
    assert_eq!(
        (rule.answer_key.as_str(), rule.pass, rule.fail),
        ("answer", 1.0, 0.0)
    );
    let written = config.to_toml().unwrap();
    assert_eq!(written.matches("[[ppo.rewards]]").count(), 11, "{written}");
    assert_eq!(resolve(&written, &[]).unwrap(), config, "{written}");
}

#[test]
fn a_reward_model_is_the_shorthand_of_one_component() {
    let text = format!("{HEAD}{PPO}reward_model = \"scorer\"\n");
    let ppo = resolve(&text, &[]).unwrap().ppo.unwrap();
    let [only] = ppo.reward_components().try_into().unwrap();
    assert_eq!((only.name.as_str(), only.weight), ("model", 1.0));
    assert_eq!(only.folders(), [Path::new("scorer")]);
    let beside = "[[ppo.rewards]]\ntype = \"regex\"\npattern = \"a\"\n";
    let error = resolve(&[&text, beside].concat(), &[]).unwrap_err();
    assert!(
        error.contains("ppo.reward_model = \"scorer\" (trial.toml:8)"),
        "{error}"
    );
    assert!(
        error.contains("no effect beside [[ppo.rewards]]"),
        "{error}"
    );
}

#[test]
fn a_model_without_a_path_is_the_one_that_reward_trains() {
    let model = "[[ppo.rewards]]\ntype = \"model\"\n";
    let stage = format!("{model}[reward]\ndata = \"pairs.jsonl\"\n");
    let trained = Path::new("runs/trial/reward/final");
    assert_eq!(components(&stage, &[])[0].folders(), [trained]);
    let says = [
        "ppo.rewards[0].path (trial.toml:8): is required",
        "[reward] table",
    ];
    refused(model, &[], &says);
    // No other type needs a model.
    components("[[ppo.rewards]]\ntype = \"repetition\"\n", &[]);
    let none = resolve(&with(""), &[]).unwrap_err();
    assert!(
        none.contains("ppo.reward_model") && none.contains("[[ppo.rewards]]"),
        "{none}"
    );
}

#[test]
fn names_are_told_from_each_other() {
    let twice = "[[ppo.rewards]]\ntype = \"repetition\"\n".repeat(2);
    let says = [
        "ppo.rewards[1].name = \"repetition\"",
        "is also the name of ppo.rewards[0]",
    ];
    refused(&twice, &[], &says);
    components(&twice, &["ppo.rewards[1].name=again"]);
    refused(&twice, &["ppo.rewards[1].name=a/b"], &["letters, digits"]);
}

#[test]
fn unknown_keys_and_types_are_refused_with_the_nearest() {
    let regex = |key: &str| format!("[[ppo.rewards]]\ntype = \"regex\"\npattern = \"a\"\n{key}\n");
    let says = "ppo.rewards[0].wieght (trial.toml:11): unknown key; did you mean `weight`?";
    refused(&regex("wieght = 2"), &[], &[says]);
    // A key of another type is none of this one's.
    let says = [
        "ppo.rewards[0].tolerance",
        "[ppo.rewards[0]] has type, pattern, pass, fail, name, weight",
    ];
    refused(&regex("tolerance = 2"), &[], &says);
    let says = "ppo.rewards[0].weight = \"much\" (trial.toml:11): invalid type: string \"much\", \
                expected a number";
    refused(&regex("weight = \"much\""), &[], &[says]);
    let says = [
        "ppo.rewards[0].type = \"regexp\" (trial.toml:9)",
        "did you mean \"regex\"?",
    ];
    refused("[[ppo.rewards]]\ntype = \"regexp\"\n", &[], &says);
    refused(
        "[[ppo.rewards]]\nname = \"a\"\n",
        &[],
        &["ppo.rewards[0].type", "is required", "repetition"],
    );
    refused(
        "[ppo.rewards]\ntype = \"regex\"\n",
        &[],
        &["ppo.rewards (trial.toml:8)", "write [[ppo.rewards]]"],
    );
}

#[test]
fn overrides_reach_single_tables_and_replace_all() {
    let text = "[[ppo.rewards]]\ntype = \"repetition\"\nngram = 0\n";
    let says = "ppo.rewards[0].ngram = 0 (trial.toml:10): must be at least 1";
    refused(text, &[], &[says]);
    let set = components(
        text,
        &["ppo.rewards[0].ngram=4", "ppo.rewards[0].weight=0.5"],
    );
    assert_eq!(set[0].weight, 0.5);
    refused(
        text,
        &["ppo.rewards[0].ngram=-1"],
        &["--set ppo.rewards[0].ngram=-1"],
    );
    let says =
        "--set ppo.rewards[1].ngram=1: trial.toml has 1 tables [[ppo.rewards]], counted from 0";
    refused(text, &["ppo.rewards[1].ngram=1"], &[says]);
    // Without its place a table is not known from the others.
    let unplaced = [
        "--set ppo.rewards.weight=1: ppo.rewards is a list (of 1 in trial.toml)",
        "--set ppo.rewards[0].weight=… or --set ppo.rewards.0.weight=…",
    ];
    refused(text, &["ppo.rewards.weight=1"], &unplaced);
    let dotted = components(text, &["ppo.rewards.0.ngram=4", "ppo.rewards.0.weight=0.5"]);
    assert_eq!(dotted, set);
    let other = "ppo.rewards=[{type=\"regex\", pattern=\"(\"}]";
    refused(
        text,
        &[other],
        &[
            "ppo.rewards[0].pattern = \"(\" (--set ppo.rewards=",
            "not a regular expression",
        ],
    );
    let all = components(text, &["ppo.rewards=[{type=\"json\"}]"]);
    assert_eq!((all.len(), all[0].name.as_str()), (1, "json"));
    for wrong in [
        "ppo.rewards[0]=1",
        "ppo.rewards[x].a=1",
        "ppo.rewards[0].a.b=1",
        "ppo.rewards.x.a=1",
        "ppo.rewards..a=1",
        "ppo.a.b.c=1",
    ] {
        let error = wrong
            .parse::<Override>()
            .map(|_| ())
            .map_err(|e| e.to_string());
        // The first is a key of a strange name, which the table refuses.
        match wrong {
            "ppo.rewards[0]=1" => refused(text, &[wrong], &["unknown key"]),
            _ => assert!(error.unwrap_err().contains("TABLE.KEY=VALUE"), "{wrong}"),
        }
    }
}

#[test]
fn values_that_cannot_be_are_refused() {
    for (index, key, value, says) in [
        (0, "weight", "inf", "must be finite"),
        (1, "paths", "[\"a\"]", "two at least"),
        (1, "combine", "mean", "no effect without combine"),
        (1, "combine", "median", "unknown word"),
        (2, "max_length", "2", "at least 8"),
        (2, "label", "1.5", "a label's name or its index"),
        (3, "extract", "\"(\"", "not a regular expression"),
        (3, "answer_key", "prompt", "holds the answer"),
        (4, "tolerance", "-1.0", "zero or larger"),
        (5, "pattern", "\"\"", "is required"),
        (5, "pass", "0", "score alike"),
        (6, "min", "41", "is above max = 40"),
        (7, "fail", "nan", "must be finite"),
        (9, "command", "[]", "is required"),
        (9, "timeout_seconds", "0", "larger than 0"),
        (10, "url", "localhost", "http://"),
        (10, "batch_size", "0", "at least 1"),
        (10, "backoff_seconds", "120", "between 0 and 60"),
    ] {
        let set = format!("ppo.rewards[{index}].{key}={value}");
        refused(ALL, &[&set], &[says, &format!("ppo.rewards[{index}].")]);
    }
    let unheard = "[[ppo.rewards]]\ntype = \"json\"\nweight = 0\n";
    refused(unheard, &[], &["ppo.rewards", "every weight is 0"]);
}

#[test]
fn changes_are_named_by_table_and_key() {
    let config = |overrides: &[&str]| resolve(&with(ALL), overrides).unwrap();
    let changed = |overrides: &[&str]| {
        let changes = diff(&config(&[]), &config(overrides)).unwrap();
        let change =
            |c: crate::config::diff::Change| (c.to_string(), c.effect, c.concerns(Stage::Ppo));
        changes.into_iter().map(change).collect::<Vec<_>>()
    };
    let weight = "ppo.rewards[4].weight: 2.0 → 3.0".to_owned();
    let retries = "ppo.rewards[10].retries: 1 → 5".to_owned();
    assert_eq!(
        changed(&["ppo.rewards[4].weight=3", "ppo.rewards[10].retries=5"]),
        [
            (weight, Effect::ChangesResult, true),
            (retries, Effect::Harmless, true)
        ]
    );
    let fewer = changed(&["ppo.rewards=[{type=\"json\"}]"]);
    // Without a reward model the critic starts from the policy.
    assert!(
        fewer
            .iter()
            .any(|(change, ..)| change.starts_with("ppo.critic_from"))
    );
    assert_eq!((fewer.len(), fewer[0].1), (2, Effect::ChangesResult));
}

#[test]
fn folders_are_what_a_resumed_run_checks() {
    let config = resolve(&with(ALL), &[]).unwrap();
    let read = config.models_read(Stage::Ppo);
    let folders: Vec<&str> = read
        .iter()
        .filter(|(key, _)| *key == "rewards")
        .map(|(_, folder)| folder.to_str().unwrap())
        .collect();
    assert_eq!(folders, ["scorer", "a", "b", "toxic"]);
    let mut config = config;
    let moved = config.model_folders_mut(&[Stage::Ppo]);
    assert!(
        ["scorer", "a", "b", "toxic"]
            .iter()
            .all(|f| moved.iter().any(|m| m.as_path() == Path::new(f)))
    );
}
