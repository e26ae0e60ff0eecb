//! `[[ppo.rewards]]` as a user runs it: a weighted sum whose components are logged and which reads
//! the records' own fields.

use serde_json::{Value, json};

use crate::on_policy::number;
use crate::refusal::refused;
use crate::support::{Line, Workspace, lines, prompt, read, records};

/// Answers each line with 0.25 for every completion in it, and records the questions.
const SCRIPT: &str = r#"echo started >&2
while read -r line; do
  printf '%s\n' "$line" >> asked.jsonl
  scores=$(printf '%s' "$line" | grep -o '"completion":' | sed 's/.*/0.25/' | tr '\n' ',')
  echo "[${scores%,}]"
done
"#;

const MODEL: &str = "[[ppo.rewards]]\ntype = \"model\"\npath = \"models/reward\"\n";
const LENGTH: &str =
    "[[ppo.rewards]]\ntype = \"length\"\nname = \"short\"\nweight = -0.5\nmax = 6\nmargin = 4\n";
const EXACT: &str =
    "[[ppo.rewards]]\ntype = \"exact\"\nanswer_key = \"word\"\nextract = \"(\\\\w+)\\\\.?$\"\n";
const PROGRAM: &str =
    "[[ppo.rewards]]\ntype = \"program\"\nweight = 2\ncommand = [\"sh\", \"reward.sh\"]\n";

/// A prompt with a reference answer and one more field.
fn answered(i: usize) -> Value {
    let mut record = prompt(i);
    record["word"] = json!(["dog", "boat", "house"][i % 3]);
    record["number"] = json!(i);
    record
}

/// Trained models, and a configuration whose `[[ppo.rewards]]` are these tables.
fn workspace(rewards: &[&str]) -> Workspace {
    let workspace = Workspace::trained();
    let config = String::from_utf8(read(&workspace.path("config.toml"))).expect("UTF-8");
    let config = config.replace("reward_model = \"models/reward\"\n", "");
    workspace.write("config.toml", &(config + "\n" + &rewards.concat()));
    workspace.write("prompts.jsonl", &records(0, 30, answered));
    workspace.write("prompts_eval.jsonl", &records(60, 8, answered));
    workspace.write("reward.sh", SCRIPT);
    workspace
}

#[track_caller]
fn assert_sum(line: &Line, total: &str, prefix: &str) {
    let component = |name: &str| number(line, &format!("{prefix}{name}"));
    let expected = component("model") - 0.5 * component("short")
        + component("exact")
        + 2.0 * component("program");
    let found = number(line, total);
    assert!(
        (found - expected).abs() < 1e-5,
        "{found} {expected} {line:?}"
    );
    assert_eq!(component("program"), 0.25, "{line:?}");
}

#[test]
fn a_weighted_sum_trains_and_logs_its_components() {
    let workspace = workspace(&[MODEL, LENGTH, EXACT, PROGRAM]);
    let ended = workspace.succeed("ppo config.toml");
    assert!(ended.stderr.contains("started"), "{}", ended.stderr);
    let metrics = workspace.metrics("trial", "ppo");
    let iterations: Vec<&Line> = metrics.iter().filter(|l| number(l, "step") > 0.0).collect();
    assert_eq!(iterations.len(), 6);
    for line in &iterations {
        assert_sum(line, "objective/scores", "reward/");
        assert_eq!(number(line, "policy/first_ratio_max_dev"), 0.0, "{line:?}");
    }
    let short = iterations.iter().map(|line| number(line, "reward/short"));
    assert!(
        short.clone().any(|score| score > 0.0 && score < 1.0),
        "{metrics:?}"
    );
    for line in metrics
        .iter()
        .filter(|line| line.contains_key("eval/score"))
    {
        assert_sum(line, "eval/score", "eval/reward/");
    }
    let samples = lines(&workspace.stage("trial", "ppo").join("samples.jsonl"));
    assert_eq!(samples.len(), 3 * 8);
    for sample in &samples {
        let rewards = sample["rewards"].as_object().expect("components");
        let of = |name: &str| rewards[name].as_f64().expect("a score");
        let sum = of("model") - 0.5 * of("short") + of("exact") + 2.0 * of("program");
        assert!((number(sample, "score") - sum).abs() < 1e-5, "{sample:?}");
        let (tokens, index) = (number(sample, "tokens"), number(sample, "index") as usize);
        assert_eq!(
            of("short"),
            (1.0 - (tokens - 6.0).max(0.0) / 4.0).max(0.0),
            "{sample:?}"
        );
        let completion = sample["completion"].as_str().expect("a text");
        let word = answered(60 + index)["word"].clone();
        // The pattern matches the last word, before at most one full stop.
        let stem = completion.strip_suffix('.').unwrap_or(completion);
        let last = stem
            .rsplit(|c: char| !(c.is_alphanumeric() || c == '_'))
            .next();
        let right = last.is_some_and(|last| last == word);
        assert_eq!(of("exact"), f64::from(u8::from(right)), "{sample:?}");
    }
}

/// Two different models, separately and combined in each way: an ensemble's score is its rule
/// applied to the models' scores.
#[test]
fn an_ensemble_combines_models_that_disagree() {
    let other = MODEL.replace("models/reward", "runs/other/reward/final");
    let named = |table: &str, name: &str| format!("{table}name = \"{name}\"\n");
    let ensemble = |name: &str, rule: &str| {
        let paths = "paths = [\"models/reward\", \"runs/other/reward/final\"]\n";
        format!("[[ppo.rewards]]\ntype = \"ensemble\"\nname = \"{name}\"\n{paths}{rule}\n")
    };
    let deviation = "combine = \"mean_minus_deviation\"\ndeviations = 2.0";
    let workspace = workspace(&[
        &named(MODEL, "a"),
        &named(&other, "b"),
        &ensemble("mean", "combine = \"mean\""),
        &ensemble("least", "combine = \"minimum\""),
        &ensemble("sure", deviation),
    ]);
    workspace.succeed("reward config.toml --set run.name=other --set run.seed=9");
    workspace.succeed("ppo config.toml --set ppo.max_steps=1");
    let samples = lines(&workspace.stage("trial", "ppo").join("samples.jsonl"));
    assert!(!samples.is_empty());
    for sample in &samples {
        let rewards = sample["rewards"].as_object().expect("components");
        let of = |name: &str| rewards[name].as_f64().expect("a score");
        let (a, b) = (of("a"), of("b"));
        assert!((a - b).abs() > 1e-3, "they agree: {sample:?}");
        // The standard deviation of two numbers is half their distance.
        let (mean, deviation) = ((a + b) / 2.0, (a - b).abs() / 2.0);
        for (name, expected) in [
            ("mean", mean),
            ("least", a.min(b)),
            ("sure", mean - 2.0 * deviation),
        ] {
            assert!((of(name) - expected).abs() < 1e-5, "{name}: {sample:?}");
        }
    }
}

#[test]
fn programs_are_asked_with_the_fields_of_the_record() {
    let workspace = workspace(&[MODEL, PROGRAM]);
    workspace.succeed(
        "ppo config.toml --set ppo.max_steps=1 --set ppo.eval_prompts= \
                       --set ppo.lexicon= --set ppo.eval_samples=256 --set ppo.eval_steps=0",
    );
    let asked = lines(&workspace.path("asked.jsonl"));
    let [batch] = asked.as_slice() else {
        panic!("{} questions", asked.len())
    };
    let completions = batch["completions"].as_array().expect("a list");
    assert_eq!(completions.len(), 16);
    for completion in completions {
        let fields = &completion["fields"];
        let place = fields["number"].as_u64().expect("a number") as usize;
        let record = answered(place);
        assert_eq!(completion["prompt"], record["prompt"]);
        assert_eq!(fields, &json!({"word": record["word"], "number": place}));
        assert!(!completion["prompt_ids"].as_array().expect("ids").is_empty());
        let ids = completion["completion_ids"].as_array().expect("ids");
        assert!((1..=12).contains(&ids.len()), "{completion}");
    }
}

#[test]
fn one_model_of_weight_one_is_the_shorthand() {
    let (long, short) = (workspace(&[MODEL]), Workspace::trained());
    for workspace in [&long, &short] {
        workspace.succeed("ppo config.toml --set ppo.max_steps=2");
    }
    assert!(long.weights("trial", "ppo") == short.weights("trial", "ppo"));
    // An ensemble of one model twice equals that model, and so does its minimum.
    let twice =
        "[[ppo.rewards]]\ntype = \"ensemble\"\npaths = [\"models/reward\", \"models/reward\"]\n";
    for combine in ["minimum", "mean_minus_deviation"] {
        let ensemble = workspace(&[twice, &format!("combine = \"{combine}\"\n")]);
        ensemble.succeed("ppo config.toml --set ppo.max_steps=2");
        assert!(
            ensemble.weights("trial", "ppo") == short.weights("trial", "ppo"),
            "{combine}"
        );
    }
}

#[test]
fn a_classifier_scores_beside_a_model() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/classifiers/bert");
    let classifier = format!(
        "[[ppo.rewards]]\ntype = \"classifier\"\npath = \"{folder}\"\nlabel = \"positive\"\n\
         output = \"probability\"\n"
    );
    let workspace = workspace(&[MODEL, &classifier]);
    workspace.succeed("ppo config.toml --set ppo.max_steps=1");
    for line in workspace
        .metrics("trial", "ppo")
        .iter()
        .filter(|l| number(l, "step") > 0.0)
    {
        let share = number(line, "reward/classifier");
        assert!(share > 0.0 && share < 1.0, "{line:?}");
    }
}

#[test]
fn what_scores_must_stay_what_it_was() {
    let workspace = workspace(&[MODEL, PROGRAM]);
    workspace.succeed("ppo config.toml --set ppo.max_steps=2");
    let longer = "ppo config.toml --set ppo.max_steps=3";
    workspace.succeed(&format!(
        "{longer} --set ppo.rewards[1].timeout_seconds=9.0"
    ));
    let longer = "ppo config.toml --set ppo.max_steps=4";
    workspace.write("reward.sh", &SCRIPT.replace("0.25", "0.5"));
    refused(&workspace, longer, &["ppo.rewards", "other contents"]);
    workspace.write("reward.sh", SCRIPT);
    let weight = format!("{longer} --set ppo.rewards[1].weight=3");
    refused(&workspace, &weight, &["ppo.rewards[1].weight: 2.0 → 3.0"]);
}

#[test]
fn mistakes_are_named() {
    let unanswered = workspace(&[MODEL, EXACT]);
    unanswered.write("prompts.jsonl", &records(0, 2, answered));
    unanswered.write(
        "prompts_eval.jsonl",
        &(records(0, 1, answered) + &records(1, 1, prompt)),
    );
    let says = [
        "ppo.eval_prompts",
        "prompts_eval.jsonl:2",
        "reward `exact`",
        "no field `word`",
    ];
    refused(&unanswered, "ppo config.toml", &says);

    let models = workspace(&[LENGTH]);
    let says = ["ppo.critic_from", "needs a reward model"];
    let start = "ppo config.toml --set ppo.critic_from=reward_model";
    refused(&models, start, &says);

    let silent = workspace(&[MODEL, PROGRAM]);
    silent.write("reward.sh", "echo no such module >&2; exit 7\n");
    let says = [
        "no such module",
        "reward `program`",
        "sh reward.sh",
        "exit status: 7",
    ];
    refused(&silent, "ppo config.toml", &says);

    let missing = MODEL.replace("models/reward", "models/other");
    let says = ["ppo.rewards", "models/other", "no such folder"];
    refused(&workspace(&[&missing]), "ppo config.toml", &says);
    let language = MODEL.replace("models/reward", "models/sft");
    let says = ["reward `model`", "models/sft", "a language model"];
    refused(&workspace(&[&language]), "ppo config.toml", &says);
}
