//! What evaluations watch: repetition, entropy, length drift, and a judge that training never sees
//! and that may disagree with the reward model.

use crate::on_policy::number;
use crate::support::{Line, Workspace, lines, pair, prompt, records};

const JUDGE: &str = r#"
[judge]
from = "models/sft"
data = "judged.jsonl"
max_length = 48
batch_size = 16
max_steps = 30
learning_rate = 5e-3
"#;

/// Metrics and output of a run with a judge.
struct Tuned {
    /// The lines of `metrics.jsonl` that hold an evaluation.
    evaluations: Vec<Line>,
    samples: Vec<Line>,
    said: String,
}

/// Number of held-out prompts: twice the thirty that the language has, so that the noise of a mean
/// does not hide its movement.
const EVALUATED: usize = 60;

/// Tunes the policy with a judge that was trained on `judged` pairs.
fn tuned(judged: fn(usize) -> serde_json::Value) -> Tuned {
    let workspace = Workspace::trained();
    workspace.write("judged.jsonl", &records(0, 200, judged));
    workspace.write("prompts_eval.jsonl", &records(0, EVALUATED, prompt));
    let config = std::fs::read_to_string(workspace.path("config.toml")).expect("a configuration");
    workspace.write("config.toml", &(config + JUDGE));
    workspace.succeed("judge config.toml");
    let flags = "--set ppo.max_steps=20 --set ppo.eval_steps=10 --set ppo.eval_samples=60 \
                 --set ppo.learning_rate=3e-3 \
                 --set ppo.kl_coef=0.0";
    let run = || {
        let mut command = workspace.command(&format!("ppo config.toml {flags}"));
        let ended = command.output().expect("the binary");
        assert!(ended.status.success());
        ended
    };
    let said = run();
    // The last checkpoint holds what the judge has shown: the closing table is the same.
    workspace.lose_final("trial", "ppo");
    assert!(run().stdout == said.stdout, "another table");
    let said = [said.stdout, said.stderr].concat();
    let mut evaluations = workspace.metrics("trial", "ppo");
    evaluations.retain(|line| line.contains_key("eval/score"));
    Tuned {
        evaluations,
        samples: lines(&workspace.stage("trial", "ppo").join("samples.jsonl")),
        said: String::from_utf8(said).expect("UTF-8"),
    }
}

/// A pair in which the judge prefers what the reward model rejects.
fn contrary(i: usize) -> serde_json::Value {
    let mut pair = pair(i);
    let chosen = pair["chosen"].take();
    pair["chosen"] = pair["rejected"].take();
    pair["rejected"] = chosen;
    pair
}

#[test]
fn a_judge_that_falls_while_the_reward_rises_is_warned_of() {
    let Tuned {
        evaluations, said, ..
    } = tuned(contrary);
    let (first, last) = (&evaluations[0], evaluations.last().expect("an evaluation"));
    assert!(number(last, "eval/score") > number(first, "eval/score"));
    assert!(number(last, "eval/judge_score") < number(first, "eval/judge_score"));
    assert_eq!(number(first, "eval/hacking_warning"), 0.0);
    assert_eq!(number(last, "eval/hacking_warning"), 1.0, "{said}");
    assert!(number(last, "eval/judge_disagreement") > 0.5, "{last:?}");
    assert!(number(first, "eval/judge_correlation") < -0.5, "{first:?}");
    for words in [
        "ppo warning: since iteration 0 the judge's score fell from",
        "judge fell while reward rose",
        "moved against the judge",
    ] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
}

#[test]
fn a_judge_that_agrees_is_not() {
    let Tuned {
        evaluations,
        samples,
        said,
    } = tuned(pair);
    let (first, last) = (&evaluations[0], evaluations.last().expect("an evaluation"));
    assert!(number(last, "eval/score") > number(first, "eval/score"));
    let warns = |line: &Line| number(line, "eval/hacking_warning") != 0.0;
    assert!(!evaluations.iter().any(warns));
    assert!(number(last, "eval/judge_disagreement") < 0.5, "{last:?}");
    assert!(!said.contains("warning"), "{said}");
    assert_eq!(number(first, "eval/length_drift"), 1.0);
    for line in &evaluations {
        let drift = number(line, "eval/length_mean") / number(first, "eval/length_mean");
        assert!((number(line, "eval/length_drift") - drift).abs() < 1e-12);
        let of_step = samples
            .iter()
            .filter(|sample| sample["step"] == line["step"]);
        let (mut entropy, mut tokens, mut repeated, mut count) = (0.0, 0.0, 0.0, 0.0);
        for sample in of_step {
            entropy += number(sample, "entropy") * number(sample, "tokens");
            tokens += number(sample, "tokens");
            repeated += number(sample, "seq_rep_4");
            count += 1.0;
        }
        assert_eq!(count, EVALUATED as f64);
        let entropy = entropy / tokens;
        assert!(entropy > 0.0 && entropy < (320f64).ln(), "{entropy}");
        assert!((number(line, "eval/entropy") - entropy).abs() < 1e-9);
        assert!((number(line, "eval/seq_rep_4") - repeated / count).abs() < 1e-9);
    }
}

#[test]
fn without_evaluations_the_table_shows_the_first_and_the_last_rollout() {
    let workspace = Workspace::trained();
    let flags = "--set ppo.max_steps=3 --set ppo.eval_prompts= --set ppo.lexicon= \
                 --set ppo.eval_samples=256 --set ppo.eval_steps=0";
    let command = format!("ppo config.toml {flags}");
    let output = workspace.command(&command).output().expect("the binary");
    assert!(output.status.success());
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).expect("UTF-8");
    let iterations = workspace.metrics("trial", "ppo");
    let (first, last) = (&iterations[0], iterations.last().expect("an iteration"));
    for (row, metric) in [
        ("score (training prompts)", "objective/scores"),
        ("KL per sequence", "objective/kl"),
        ("entropy per token", "objective/entropy"),
        ("tokens", "rollout/length_mean"),
    ] {
        let line = said.lines().find(|line| line.trim_start().starts_with(row));
        let line = line.unwrap_or_else(|| panic!("no {row:?} in {said}"));
        for iteration in [first, last] {
            let shown = format!("{:.3}", number(iteration, metric));
            assert!(line.contains(&shown), "no {shown} in {line:?}");
        }
    }
    assert!(!said.contains("samples: runs"), "{said}");
}
