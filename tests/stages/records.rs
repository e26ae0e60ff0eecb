//! Real-world records: too long, invalid, of other shapes, formats and columns. Two runs that read
//! the same records end in the same weights.

use std::io::Write;

use serde_json::{Value, json};

use crate::refusal::refused;
use crate::support::{Workspace, example, pair, prompt, records};

/// The stages that read records, each with its data key and its file.
const STAGES: [(&str, &str, &str); 4] = [
    ("sft", "data", "sft.jsonl"),
    ("dpo", "data", "pairs.jsonl"),
    ("reward", "data", "pairs.jsonl"),
    ("ppo", "prompts", "prompts.jsonl"),
];

/// A run's name for each stage: stages of one run would have to agree on all keys.
fn name_of(name: &str, stage: &str) -> String {
    format!("{name}-{stage}")
}

/// Runs a stage for two steps under its own name; returns standard output and standard error.
#[track_caller]
fn run(workspace: &Workspace, name: &str, stage: &str, flags: &str) -> [String; 2] {
    let name = name_of(name, stage);
    let steps = format!("--set run.name={name} --set {stage}.max_steps=2");
    let arguments = format!("{stage} config.toml {steps} {flags}");
    let output = workspace.command(&arguments).output().expect("the binary");
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(output.status.success(), "{arguments}: {}", said[1]);
    said
}

/// The weights after two steps of a stage with these flags.
#[track_caller]
fn weights(workspace: &Workspace, name: &str, stage: &str, flags: &str) -> Vec<u8> {
    run(workspace, name, stage, flags);
    learned(workspace, name, stage)
}

fn learned(workspace: &Workspace, name: &str, stage: &str) -> Vec<u8> {
    workspace.weights(&name_of(name, stage), stage)
}

/// Record `i` of a shape.
type Sample = fn(usize) -> Value;

/// Twenty records of a stage.
fn twenty(stage: &str) -> String {
    match stage {
        "sft" => records(0, 20, example),
        "ppo" => records(0, 20, prompt),
        _ => records(0, 20, pair),
    }
}

#[track_caller]
fn says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
}

#[test]
fn one_long_prompt_does_not_stop_a_stage() {
    let workspace = Workspace::trained();
    let long = "the old king ".repeat(40);
    let long = json!({"prompt": long, "completion": " b", "chosen": " b", "rejected": " c"});
    for (stage, key, file) in STAGES {
        workspace.write(file, &twenty(stage));
        let without = weights(&workspace, "without", stage, "");
        workspace.write(file, &(twenty(stage) + &format!("{long}\n")));
        let error = format!(
            "{stage} config.toml --set run.name=error-{stage} --set {stage}.too_long=error"
        );
        let mend = format!("set {stage}.too_long to \"truncate\" or \"skip\"");
        refused(
            &workspace,
            &error,
            &[&format!("{file}:21: the "), "tokens but", &mend],
        );

        let skip = format!("--set {stage}.too_long=skip");
        let [stdout, stderr] = run(&workspace, "skip", stage, &skip);
        let count =
            format!("{stage}: 1 of 21 records of {stage}.{key} are too long and were left out: ");
        says(
            &stderr,
            &[&count, &format!("set {stage}.too_long to \"truncate\"")],
        );
        says(
            &stdout,
            &[&format!("records of {stage}.{key} left out"), "1 of 21"],
        );
        assert!(
            learned(&workspace, "skip", stage) == without,
            "{stage}: what is left out is not learned"
        );

        let cut = format!("--set {stage}.too_long=truncate");
        let [stdout, stderr] = run(&workspace, "cut", stage, &cut);
        says(
            &stderr,
            &[&format!(
                "{stage}: 1 of 21 records of {stage}.{key} are too long and were cut at the \
                 prompt's start"
            )],
        );
        says(
            &stdout,
            &[&format!(
                "records of {stage}.{key} cut at the prompt's start"
            )],
        );
    }
}

#[test]
fn bad_records_are_left_out_where_that_is_asked_for() {
    let workspace = Workspace::trained();
    let broken = "{\"prompt\": \"a\n{\"question\": \"a\"}\n";
    for (stage, key, file) in STAGES {
        let clean = twenty(stage);
        workspace.write(file, &clean);
        let without = weights(&workspace, "clean", stage, "");
        let (first, rest) = clean.split_at(clean.find('\n').expect("a line") + 1);
        workspace.write(file, &(first.to_owned() + broken + rest));
        let stop = format!("{stage} config.toml --set run.name=stop-{stage}");
        refused(
            &workspace,
            &stop,
            &[&format!("{file}:2:"), "malformed JSON"],
        );

        let skip = format!("--set {stage}.bad_records=skip");
        let [stdout, stderr] = run(&workspace, "skip", stage, &skip);
        let count = format!(
            "{stage}: 2 of 22 records of {stage}.{key} are bad and were left out:\n  {file}:2:"
        );
        says(&stderr, &[&count, &format!("  {file}:3: missing field")]);
        says(
            &stdout,
            &[&format!("bad records of {stage}.{key} left out"), "2 of 22"],
        );
        assert!(
            learned(&workspace, "skip", stage) == without,
            "{stage}: the good ones are all read"
        );

        let share = format!("{stop} {skip} --set {stage}.max_bad_share=0.05");
        let allowed = format!("{stage}.max_bad_share allows 0.05");
        refused(
            &workspace,
            &share,
            &["2 of 22 records are bad", &allowed, &format!("{file}:2:")],
        );
    }
}

#[test]
fn bad_documents_are_left_out_of_pretraining_and_of_the_mix() {
    let workspace = Workspace::trained();
    let text = workspace.path("text.jsonl");
    let clean = std::fs::read_to_string(&text).expect("a file");
    let without = weights(&workspace, "clean", "pretrain", "");
    let bad = "{\"text\": 3}\n{\"prompt\": \"a\", \"completion\": \"b\"}\n";
    workspace.write("text.jsonl", &(bad.to_owned() + &clean));
    let wrong = ["[pretrain] data", "text.jsonl:1: field `text` is a number"];
    refused(
        &workspace,
        "pretrain config.toml --set run.name=stop",
        &wrong,
    );
    let [stdout, stderr] = run(
        &workspace,
        "skip",
        "pretrain",
        "--set pretrain.bad_records=skip",
    );
    let shape = "text.jsonl:2: this is a prompt with its completion";
    says(
        &stderr,
        &["pretrain: 2 of 102 records of pretrain.data are bad", shape],
    );
    says(&stdout, &["bad records of pretrain.data left out"]);
    assert!(learned(&workspace, "skip", "pretrain") == without);

    let mix = "--set ppo.ptx_coef=1.0 --set ppo.ptx_data=text.jsonl --set ppo.ptx_length=24";
    refused(
        &workspace,
        &format!("ppo config.toml {mix}"),
        &["ppo.ptx_data", "text.jsonl:1"],
    );
    let [_, stderr] = run(
        &workspace,
        "mixed",
        "ppo",
        &format!("{mix} --set ppo.bad_records=skip"),
    );
    says(&stderr, &["ppo: 2 of 102 records of ppo.ptx_data are bad"]);
}

/// A record that lacks a field of a reward counts as bad; held-out prompts follow the same keys.
#[test]
fn prompts_that_rewards_cannot_score_are_bad() {
    let workspace = Workspace::trained();
    let answered = |i: usize| json!({"prompt": prompt(i)["prompt"], "answer": "happy"});
    workspace.write(
        "prompts.jsonl",
        &(records(0, 20, answered) + &records(20, 1, prompt)),
    );
    workspace.write("prompts_eval.jsonl", &(records(30, 8, answered) + "[]\n"));
    let config = std::fs::read_to_string(workspace.path("config.toml")).expect("a file");
    let config = config.replace(
        "reward_model = \"models/reward\"\n",
        "critic_from = \"policy\"\n",
    ) + "[[ppo.rewards]]\ntype = \"exact\"\n";
    workspace.write("config.toml", &config);
    let refusal = ["prompts.jsonl:21: reward `exact`", "answer"];
    refused(&workspace, "ppo config.toml --set run.name=stop", &refusal);
    let skip = "--set ppo.bad_records=skip --set ppo.max_bad_share=0.2";
    let [_, stderr] = run(&workspace, "skip", "ppo", skip);
    says(
        &stderr,
        &[
            "ppo: 1 of 21 records of ppo.prompts are bad",
            "prompts.jsonl:21: reward `exact`",
        ],
    );
    says(
        &stderr,
        &[
            "ppo: 1 of 9 records of ppo.eval_prompts are bad",
            "prompts_eval.jsonl:9:",
        ],
    );
    assert!(
        !stderr.contains("columns not used"),
        "fields go to the rewards: {stderr}"
    );
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).expect("memory");
    encoder.finish().expect("memory")
}

fn csv(rows: &[Vec<String>]) -> String {
    let quoted = |field: &String| format!("\"{}\"", field.replace('"', "\"\""));
    let row = |row: &Vec<String>| row.iter().map(quoted).collect::<Vec<_>>().join(",") + "\r\n";
    rows.iter().map(row).collect()
}

fn text(record: &Value, field: &str) -> String {
    record[field].as_str().expect("text").to_owned()
}

#[test]
fn formats_and_columns_do_not_change_what_is_learned() {
    let workspace = Workspace::trained();
    workspace.write("sft.jsonl", &twenty("sft"));
    let expected = weights(&workspace, "plain", "sft", "");

    let header = ["question", "answer"].map(str::to_owned).to_vec();
    let rows = (0..20).map(|i| vec![text(&example(i), "prompt"), text(&example(i), "completion")]);
    let table = csv(&[header].into_iter().chain(rows).collect::<Vec<_>>());
    std::fs::write(workspace.path("d.csv.gz"), gzip(&table)).expect("a writable folder");
    let renamed = records(
        0,
        20,
        |i| json!({"question": example(i)["prompt"], "answer": example(i)["completion"]}),
    );
    let packed = zstd::encode_all(renamed.as_bytes(), 1).expect("memory");
    std::fs::write(workspace.path("d.jsonl"), packed).expect("a writable folder");

    let columns = "{prompt=\"question\",completion=\"answer\"}";
    for (name, file) in [("csv", "d.csv.gz"), ("zstd", "d.jsonl")] {
        let of_the_stage = format!("--set sft.data={file} --set sft.columns={columns}");
        let found = weights(&workspace, name, "sft", &of_the_stage);
        assert!(found == expected, "{name}: columns of the stage");
        let of_the_file = format!("--set sft.data=[{{path=\"{file}\",columns={columns}}}]");
        let found = weights(&workspace, &format!("{name}-own"), "sft", &of_the_file);
        assert!(found == expected, "{name}: columns of the file");
    }
    refused(
        &workspace,
        "sft config.toml --set sft.data=d.jsonl --set sft.columns={prompt=\"query\"}",
        &[
            "[sft] data",
            "d.jsonl: columns reads `prompt` from the column `query`, but no record has it; the \
             columns are `question`, `answer`",
        ],
    );
    refused(
        &workspace,
        "sft config.toml --set sft.data=d.jsonl",
        &[
            "d.jsonl:1: missing field `prompt`",
            "set columns = { prompt = \"question\" }",
        ],
    );
}

/// Each file of `prompts` and `eval_prompts` may have columns of its own.
#[test]
fn files_of_prompts_have_their_own_columns() {
    let workspace = Workspace::trained();
    workspace.write("prompts.jsonl", &twenty("ppo"));
    let expected = weights(&workspace, "plain", "ppo", "");
    let first = records(0, 10, |i| json!({"question": prompt(i)["prompt"]}));
    let second = records(10, 10, |i| json!({"query": prompt(i)["prompt"]}));
    workspace.write("first.jsonl", &first);
    workspace.write("second.jsonl", &second);
    let file = |name: &str, column: &str| {
        format!("{{path=\"{name}.jsonl\",columns={{prompt=\"{column}\"}}}}")
    };
    let (first, second) = (file("first", "question"), file("second", "query"));
    let flags = format!("--set ppo.prompts=[{first},{second}] --set ppo.eval_prompts=[{second}]");
    let found = weights(&workspace, "own", "ppo", &flags);
    assert!(found == expected, "two files are read as one");
    workspace.succeed(&format!("plan config.toml {flags}"));
}

#[test]
fn margins_of_a_table_are_numbers() {
    let workspace = Workspace::trained();
    let margin = |i: usize| 0.25 * i as f64;
    let with_margin = |i: usize| {
        let mut record = pair(i);
        record["margin"] = json!(margin(i));
        record
    };
    workspace.write("pairs.jsonl", &records(0, 20, with_margin));
    let expected = weights(&workspace, "jsonl", "reward", "");
    let names = ["prompt", "chosen", "rejected", "gap"];
    let row = |i: usize| {
        let texts = names[..3].iter().map(|name| text(&pair(i), name));
        texts.chain([margin(i).to_string()]).collect::<Vec<_>>()
    };
    let table: Vec<_> = [names.map(str::to_owned).to_vec()]
        .into_iter()
        .chain((0..20).map(row))
        .collect();
    workspace.write("pairs.csv", &csv(&table));
    let flags = "--set reward.data=pairs.csv --set reward.columns={margin=\"gap\"}";
    assert!(weights(&workspace, "csv", "reward", flags) == expected);
    let without = weights(&workspace, "none", "reward", "--set reward.data=pairs.csv");
    assert!(without != expected, "the margins count");
}

#[test]
fn other_shapes_are_learned_as_their_own() {
    let workspace = Workspace::trained();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    workspace.write("models/pretrain/chat_template.jinja", template);
    let shapes: [(&str, Sample); 3] = [
        ("messages", |i| {
            let (question, answer) = (&example(i)["prompt"], &example(i)["completion"]);
            json!({"messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer}]})
        }),
        ("sharegpt", |i| {
            let (question, answer) = (&example(i)["prompt"], &example(i)["completion"]);
            json!({"conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": answer}]})
        }),
        ("alpaca", |i| {
            json!({
                "instruction": example(i)["prompt"],
                "input": "", "output": example(i)["completion"]})
        }),
    ];
    let found = shapes.map(|(name, record)| {
        workspace.write("sft.jsonl", &records(0, 20, record));
        weights(&workspace, name, "sft", "")
    });
    assert!(found[0] == found[1], "ShareGPT is a chat");
    assert!(
        found[0] == found[2],
        "an instruction is a chat of two messages"
    );
}

#[test]
fn plain_text_is_learned_by_fine_tuning_too() {
    let workspace = Workspace::trained();
    workspace.write(
        "sft.jsonl",
        &records(0, 20, |i| json!({"text": text(&example(i), "prompt")})),
    );
    run(&workspace, "text", "sft", "");
}

#[test]
fn the_prompt_of_a_pair_may_be_what_both_answers_start_with() {
    let workspace = Workspace::trained();
    let whole = |i: usize, answer: &str| text(&pair(i), "prompt") + &text(&pair(i), answer);
    workspace.write("pairs.jsonl", &twenty("dpo"));
    let explicit = weights(&workspace, "explicit", "dpo", "");
    workspace.write(
        "pairs.jsonl",
        &records(
            0,
            20,
            |i| json!({"chosen": whole(i, "chosen"), "rejected": whole(i, "rejected")}),
        ),
    );
    let implicit = weights(&workspace, "implicit", "dpo", "");
    assert!(explicit == implicit);
}

#[test]
fn columns_that_are_not_read_are_said_once_a_file() {
    let workspace = Workspace::trained();
    let with = |record: Sample| {
        move |i: usize| {
            let mut record = record(i);
            record["label"] = json!(i);
            record["margin"] = json!(1.0);
            record
        }
    };
    workspace.write("sft.jsonl", &records(0, 20, with(example)));
    workspace.write("pairs.jsonl", &records(0, 20, with(pair)));
    workspace.write("prompts.jsonl", &records(0, 20, with(prompt)));
    for (stage, columns) in [
        ("sft", "`label`, `margin`"),
        ("dpo", "`label`, `margin`"),
        ("reward", "`label`"),
    ] {
        let [_, stderr] = run(&workspace, "trial", stage, "");
        let file = if stage == "sft" {
            "sft.jsonl"
        } else {
            "pairs.jsonl"
        };
        says(
            &stderr,
            &[&format!("{stage}: {file}: columns not used: {columns}\n")],
        );
        assert_eq!(stderr.matches("columns not used").count(), 1, "{stderr}");
    }
    let [_, stderr] = run(&workspace, "trial", "ppo", "");
    assert!(!stderr.contains("not used"), "{stderr}");
}

#[test]
fn a_stage_says_what_records_it_needs_and_what_these_are() {
    let workspace = Workspace::trained();
    let chat = json!({"messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}]});
    let unpaired = json!({"prompt": "a", "completion": "b", "label": true});
    let wrong = "--set run.name=wrong";
    for (stage, key, record, says) in [
        (
            "pretrain",
            "data",
            pair(0),
            "this is a pair (`chosen`, `rejected`); [dpo], [orpo], [reward], [judge] read pairs; \
             needed here: `text`",
        ),
        (
            "sft",
            "data",
            pair(0),
            "this is a pair (`chosen`, `rejected`); [dpo], [orpo], [reward], [judge] read pairs; \
             needed here: `messages`",
        ),
        (
            "sft",
            "data",
            prompt(0),
            "this is a prompt alone (`prompt`); [ppo] reads prompts; needed here: `messages`",
        ),
        (
            "dpo",
            "data",
            chat.clone(),
            "this is a chat (`messages`); [sft] reads chats; needed here: `chosen` and `rejected`",
        ),
        (
            "reward",
            "data",
            example(0),
            "this is a prompt with its completion",
        ),
        (
            "reward",
            "data",
            unpaired,
            "this is an unpaired preference (`prompt`, `completion`, `label`), as KTO takes",
        ),
        (
            "ppo",
            "prompts",
            chat,
            "this is a chat (`messages`); [sft] reads chats; needed here: `prompt`",
        ),
    ] {
        workspace.write("wrong.jsonl", &format!("{record}\n"));
        let arguments = format!("{stage} config.toml {wrong} --set {stage}.{key}=wrong.jsonl");
        refused(&workspace, &arguments, &["wrong.jsonl:1: ", says]);
    }
}
