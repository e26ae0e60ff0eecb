//! Features of fine-tuning beside its loss: frozen layers, learning rates by layer, early stopping,
//! mixtures, chats.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::json;

use crate::on_policy::number;
use crate::support::{Workspace, example, pair, records};

const SFT_DATA: &str = "data = \"sft.jsonl\"";

fn tensors(model: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(model.join("model.safetensors"), &Device::Cpu).expect("a model")
}

/// Largest change of each tensor's values, sorted by name.
fn moved(workspace: &Workspace) -> Vec<(String, f32)> {
    let start = tensors(&workspace.path("models/pretrain"));
    let mut moved: Vec<(String, f32)> = tensors(&workspace.model("trial", "sft"))
        .into_iter()
        .map(|(name, end)| {
            let step = (&end - &start[&name]).and_then(|step| step.abs()?.max_all()?.to_scalar());
            (name, step.expect("tensors of one shape"))
        })
        .collect();
    moved.sort_by(|a, b| a.0.cmp(&b.0));
    moved
}

fn is_low(name: &str) -> bool {
    name.contains("embed_tokens") || name.contains("layers.0.")
}

#[test]
fn a_profile_names_what_took_the_time() {
    let workspace = Workspace::trained();
    let ended = workspace.succeed("sft config.toml --profile --set sft.max_steps=2");
    for line in ["step", "evaluate", "save", "linear backward", "in all"] {
        assert!(ended.stderr.contains(line), "{line}: {}", ended.stderr);
    }
    let quiet = workspace.succeed("sft config.toml --fresh --set sft.max_steps=2");
    assert!(
        !quiet.stderr.contains("linear backward"),
        "{}",
        quiet.stderr
    );
}

#[test]
fn frozen_layers_keep_their_bits() {
    let workspace = Workspace::trained();
    workspace.succeed("sft config.toml --set sft.freeze_layers=1 --set sft.max_steps=5");
    let moved = moved(&workspace);
    assert!(moved.iter().any(|(name, _)| is_low(name)), "{moved:?}");
    for (name, step) in &moved {
        assert_eq!(*step == 0.0, is_low(name), "{name} moved by {step}");
    }
}

#[test]
fn lower_layers_learn_more_slowly_under_layerwise_decay() {
    let workspace = Workspace::trained();
    // Adam's first step has the size of the learning rate, for each weight with a gradient.
    let one_step =
        "--set sft.max_steps=1 --set sft.lr_scheduler_type=constant --set sft.max_grad_norm=0.0";
    workspace.succeed(&format!(
        "sft config.toml {one_step} --set sft.layerwise_lr_decay=0.25"
    ));
    for (name, step) in moved(&workspace) {
        let expected = match &name {
            name if name.contains("embed_tokens") => 5e-3 / 16.0,
            name if name.contains("layers.0.") => 5e-3 / 4.0,
            _ => 5e-3,
        };
        assert!(
            (step / expected - 1.0).abs() < 1e-2,
            "{name} moved by {step}, not {expected}"
        );
    }
}

#[test]
fn early_stopping_keeps_the_best() {
    let workspace = Workspace::trained();
    // The held-out records have the other endings of the same beginnings: training first learns the
    // form, then the wrong words.
    workspace.write("sft.jsonl", &records(0, 12, example));
    workspace.write("held_out.jsonl", &records(30, 12, example));
    let flags = "--set sft.eval_fraction=0.0 --set sft.eval_data=held_out.jsonl \
                 --set sft.lr_scheduler_type=constant \
                 --set sft.learning_rate=2e-3";
    let patient =
        "--set sft.early_stopping_patience=3 --set sft.eval_steps=2 --set sft.max_steps=400";
    workspace.succeed(&format!("sft config.toml {flags} {patient}"));

    let metrics = workspace.metrics("trial", "sft");
    let evaluated = metrics.iter().filter(|line| line["step"] != 0);
    let losses: Vec<(u64, f64)> = evaluated
        .filter_map(|line| Some((line["step"].as_u64()?, line.get("eval/loss")?.as_f64()?)))
        .collect();
    let (best, _) = *losses
        .iter()
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .expect("evaluations");
    let (last, _) = *losses.last().expect("evaluations");
    assert_eq!(
        last,
        best + 6,
        "three evaluations without a new best end it: {losses:?}"
    );

    // Under a constant rate the best weights are those of a run of that length.
    workspace.succeed(&format!(
        "sft config.toml {flags} --set sft.max_steps={best} --set run.name=short"
    ));
    assert!(workspace.weights("trial", "sft") == workspace.weights("short", "sft"));
    assert_best_weights_are_named(&workspace);
}

/// Patience counts the evaluations since the newest best, compared here with the logged losses of
/// noisy runs, in some of which a new best follows a worse evaluation.
#[test]
fn patience_begins_anew_at_each_new_best() {
    let workspace = Workspace::trained();
    let mut renewals = 0;
    for seed in 1..=4 {
        workspace.succeed(&format!(
            "sft config.toml --set run.name=seed-{seed} --set run.seed={seed} \
             --set sft.batch_size=1 --set sft.learning_rate=3e-3 --set sft.max_steps=80 \
             --set sft.lr_scheduler_type=constant --set sft.eval_steps=1 \
             --set sft.early_stopping_patience=3"
        ));
        let metrics = workspace.metrics(&format!("seed-{seed}"), "sft");
        let evaluated = metrics.iter().filter(|line| line["step"] != 0);
        let losses: Vec<f64> = evaluated.map(|line| number(line, "eval/loss")).collect();
        let (mut best, mut since) = (f64::INFINITY, 0);
        for (i, &loss) in losses.iter().enumerate() {
            let is_best = loss < best;
            renewals += usize::from(is_best && since > 0);
            (best, since) = if is_best {
                (loss, 0)
            } else {
                (best, since + 1)
            };
            let ends = i + 1 == losses.len() && losses.len() < 80;
            assert_eq!(since == 3, ends, "seed {seed}, step {}: {losses:?}", i + 1);
        }
    }
    assert!(renewals > 0, "no best followed a worse evaluation");
}

/// The last step is evaluated though no evaluation is due; where its loss is the lowest, its
/// weights are the result.
#[test]
fn a_closing_evaluation_that_is_the_lowest_is_kept() {
    let workspace = Workspace::trained();
    let flags = "--set sft.max_steps=10 --set sft.eval_steps=4 --set sft.learning_rate=1e-3";
    let patience = "--set sft.early_stopping_patience=3 --set run.name=patient";
    workspace.succeed(&format!("sft config.toml {flags}"));
    workspace.succeed(&format!("sft config.toml {flags} {patience}"));
    let metrics = workspace.metrics("patient", "sft");
    let loss = |step: usize| number(&metrics[step], "eval/loss");
    assert!(loss(10) < loss(8) && loss(8) < loss(4), "it did not fall");
    assert!(workspace.weights("patient", "sft") == workspace.weights("trial", "sft"));
}

/// Best weights are kept for the checkpoints that name them, and for no others.
fn assert_best_weights_are_named(workspace: &Workspace) {
    let folder = workspace.stage("trial", "sft");
    let listed = |folder: &Path| -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder).expect("a folder");
        let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        entries
            .map(|entry| name(entry.expect("an entry")))
            .collect()
    };
    let checkpoints = folder.join("checkpoints");
    let best = |checkpoint: &String| {
        let state = crate::support::read(&checkpoints.join(checkpoint).join("state.json"));
        let state: serde_json::Value = serde_json::from_slice(&state).expect("JSON");
        let step = state["best"]["step"].as_u64().expect("a best step");
        format!("best-{step:08}.safetensors")
    };
    let named: BTreeSet<String> = listed(&checkpoints).iter().map(best).collect();
    let mut found = listed(&folder);
    found.retain(|name| name.starts_with("best-"));
    assert_eq!(found, named);
}

#[test]
fn more_steps_under_early_stopping_go_on_as_if_they_had_been_asked_for_at_once() {
    let workspace = Workspace::trained();
    // The held-out records have endings that training never sees: the longer it trains, the higher
    // their loss.
    workspace.write("sft.jsonl", &records(0, 60, |i| example(2 * i)));
    workspace.write("held_out.jsonl", &records(0, 20, |i| example(2 * i + 1)));
    let ask = |name: &str, steps: usize| {
        format!(
            "sft config.toml --set run.name={name} --set sft.max_steps={steps} \
             --set sft.eval_fraction=0.0 \
             --set sft.eval_data=held_out.jsonl --set sft.lr_scheduler_type=constant \
             --set sft.early_stopping_patience=1 --set sft.eval_steps=1000"
        )
    };
    workspace.succeed(&ask("raised", 20));
    workspace.succeed(&ask("raised", 30));
    workspace.succeed(&ask("raised", 40));
    workspace.succeed(&ask("whole", 40));
    let metrics = workspace.metrics("raised", "sft");
    let loss = |step: usize| metrics[step]["eval/loss"].as_f64().expect("a loss");
    assert!(
        loss(20) < loss(30) && loss(30) < loss(40),
        "they did not get worse"
    );
    assert!(workspace.weights("raised", "sft") == workspace.weights("whole", "sft"));
}

/// Fine-tunes on a mixture and returns the weights.
fn mixed(workspace: &Workspace, name: &str, weights: [f64; 2]) -> Vec<u8> {
    let sources = format!(
        "data = [{{ path = \"sft.jsonl\", weight = {:?} }}, {{ path = \"more.jsonl\", \
         weight = {:?} }}]",
        weights[0], weights[1]
    );
    let config =
        String::from_utf8(crate::support::read(&workspace.path("config.toml"))).expect("UTF-8");
    workspace.write("mixed.toml", &config.replace(SFT_DATA, &sources));
    workspace.succeed(&format!(
        "sft mixed.toml --set run.name={name} --set sft.max_steps=10"
    ));
    workspace.weights(name, "sft")
}

#[test]
fn a_mixture_draws_by_its_weights() {
    let workspace = Workspace::trained();
    workspace.write(
        "more.jsonl",
        &records(
            300,
            30,
            |i| json!({"prompt": "say", "completion": format!(" {i}")}),
        ),
    );
    let one = mixed(&workspace, "one", [3.0, 1.0]);
    assert!(
        mixed(&workspace, "same", [6.0, 2.0]) == one,
        "only the proportion matters"
    );
    assert!(
        mixed(&workspace, "other", [1.0, 3.0]) != one,
        "the proportion matters"
    );
}

/// Standard output and standard error of a command that succeeds.
#[track_caller]
fn output(workspace: &Workspace, arguments: &str) -> [String; 2] {
    let output = workspace.command(arguments).output().expect("the binary");
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(output.status.success(), "{arguments}: {}", said[1]);
    said
}

/// Runs a stage and checks its messages about records that are too long: during the run, and in its
/// table.
#[track_caller]
fn counts(workspace: &Workspace, arguments: &str, says: &str, row: [&str; 2]) {
    let [stdout, stderr] = output(workspace, arguments);
    assert!(stderr.contains(says), "{stderr}");
    let shown = |line: &str| row.iter().all(|cell| line.contains(cell));
    assert!(stdout.lines().any(shown), "{stdout}");
}

#[test]
fn records_that_are_too_long_are_counted() {
    let workspace = Workspace::trained();
    let long = |_| {
        json!({
        "prompt": "a", "completion": "z".repeat(60),
        "chosen": "z".repeat(60), "rejected": "b"})
    };
    workspace.write(
        "sft.jsonl",
        &(records(0, 50, example) + &records(0, 3, long)),
    );
    workspace.write(
        "pairs.jsonl",
        &(records(0, 50, pair) + &records(0, 2, long)),
    );
    counts(
        &workspace,
        "sft config.toml --set sft.max_steps=1",
        "sft: 3 of 53 records of sft.data are too long and were cut at the end: sft.max_length is \
         48; \
         to change that, raise sft.max_length or set sft.too_long to \"skip\"\n",
        ["records of sft.data cut at the end", "3 of 53"],
    );
    counts(
        &workspace,
        "sft config.toml --fresh --set sft.max_steps=1 --set sft.too_long=skip",
        "sft: 3 of 53 records of sft.data are too long and were left out: sft.max_length is 48; \
         to change that, raise sft.max_length or set sft.too_long to \"truncate\"\n",
        ["records of sft.data left out", "3 of 53"],
    );
    let held_out = "--set reward.eval_fraction=0.0 --set reward.eval_data=pairs.jsonl";
    counts(
        &workspace,
        &format!("reward config.toml --set run.name=other --set reward.max_steps=1 {held_out}"),
        "reward: 2 of 52 records of reward.eval_data are too long and were cut at the end: \
         reward.max_length is 48; \
         to change that, raise reward.max_length or set reward.too_long to \"skip\"\n",
        ["records of reward.data cut at the end", "2 of 52"],
    );
}

#[test]
fn equal_answers_and_a_batch_of_all_pairs_are_noted() {
    let workspace = Workspace::trained();
    let equal = |_| json!({"prompt": "a", "chosen": "b", "rejected": "b"});
    workspace.write(
        "pairs.jsonl",
        &(records(0, 50, pair) + &records(0, 3, equal)),
    );
    let flags = "--set dpo.max_steps=1 --set dpo.batch_size=1000 --set dpo.eval_fraction=0.0 \
                 --set dpo.eval_steps=0";
    let [_, said] = output(&workspace, &format!("dpo config.toml {flags}"));
    for note in [
        "dpo: pairs whose two answers are equal, which teach no preference: 3\n",
        "dpo.batch_size is 1000, and there are 53 examples to train on: every step takes 53\n",
    ] {
        assert!(said.contains(note), "no {note:?} in {said}");
    }
}

#[test]
fn nothing_is_said_of_records_that_fit() {
    let workspace = Workspace::trained();
    let said = output(&workspace, "sft config.toml --set sft.max_steps=1").concat();
    assert!(
        !said.contains("too long") && !said.contains("records of"),
        "{said}"
    );
}

#[test]
fn conversations_go_through_the_chat_template() {
    let workspace = Workspace::trained();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    workspace.write("models/pretrain/chat_template.jinja", template);
    let conversation = |i: usize| {
        let (question, answer) = (format!("what is {i}?"), format!("it is {i}."));
        json!({"messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer}]})
    };
    workspace.write("sft.jsonl", &records(10, 40, conversation));
    workspace.succeed("sft config.toml");
    let metrics = workspace.metrics("trial", "sft");
    let loss = |line: &crate::support::Line| line["train/loss"].as_f64().expect("a loss");
    let (first, last) = (loss(&metrics[1]), loss(metrics.last().expect("a line")));
    assert!(last < 0.5 * first, "from {first} to {last}");
    let kept = crate::support::read(&workspace.model("trial", "sft").join("chat_template.jinja"));
    assert_eq!(kept, template.as_bytes());
}

/// The stages say it if a template closes an answer with the name of an unknown token.
#[test]
fn a_closing_that_is_no_token_is_noted() {
    let workspace = Workspace::trained();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|nope|>\n{% endfor %}";
    workspace.write("models/pretrain/chat_template.jinja", template);
    for command in ["sft", "plan"] {
        let output = workspace
            .command(&format!("{command} config.toml"))
            .output();
        let said = output.expect("the binary").stderr;
        let said = String::from_utf8_lossy(&said);
        let note = "the chat template closes an answer with \"<|nope|>\", which is not";
        assert_eq!(said.matches(note).count(), 1, "{command}: {said}");
    }
}

/// A template that drops the beginning of earlier answers once later ones follow.
const REWRITES: &str = "{% for m in messages %}{{ m.role[:1] }}:{% if m.role == 'assistant' and \
                        loop.last %}so {% endif %}{{ m.content }}\
                        {{ eos_token }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}";

#[test]
fn answers_whose_history_is_rewritten_are_cut_apart_and_counted() {
    let workspace = Workspace::trained();
    workspace.write("models/pretrain/chat_template.jinja", REWRITES);
    let turn = |role: &str, content: String| json!({"role": role, "content": content});
    let two_answers = |i: usize| {
        let (first, second) = (format!("{i}."), format!("{i}!"));
        json!({"messages": [
            turn("user", format!("{i}?")), turn("assistant", first),
            turn("user", "so?".to_owned()), turn("assistant", second),
        ]})
    };
    workspace.write("sft.jsonl", &records(10, 40, two_answers));
    let flags = "--set sft.max_steps=3 --set sft.eval_fraction=0.1";
    counts(
        &workspace,
        &format!("sft config.toml {flags}"),
        "sft: the chat template renders earlier turns differently once later turns follow, so each \
         answer of 40 of 40 records is an example of its own, 80 examples in all; to train on the \
         last answers alone, set sft.learn to \"last\"\n",
        [
            "records split into one example per answer",
            "40 of 40, 80 examples",
        ],
    );
    let both = workspace.weights("trial", "sft");
    let last = output(
        &workspace,
        &format!("sft config.toml --fresh {flags} --set sft.learn=last"),
    );
    assert!(!last.concat().contains("of its own"), "{}", last.concat());
    assert_ne!(workspace.weights("trial", "sft"), both);
    let refused = workspace.run("sft config.toml --set sft.learn=first");
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("sft.learn"), "{}", refused.stderr);
}
