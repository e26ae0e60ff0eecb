//! `generate` and `score` on records that are invalid or too long.

use serde_json::{Value, json};

use crate::support::{Workspace, ids};

/// A model without a tokenizer and with a context of 128 tokens, and a file with a valid record, a
/// broken one, one that is too long, and another valid one.
fn workspace(file: &str, field: &str) -> Workspace {
    let workspace = Workspace::new();
    workspace.copy_model("llama");
    let long: Vec<u32> = (0..130).map(|i| i % 100).collect();
    let lines = [
        json!({field: [5, 6]}),
        json!({field: long}),
        json!({field: [7]}),
    ];
    let [first, second, third] = lines.map(|line| line.to_string());
    workspace.write(
        file,
        &format!("{first}\n{{\"{field}\": [5,}}\n{second}\n{third}\n"),
    );
    workspace
}

fn indices(lines: &[Value]) -> Vec<u64> {
    let index = |line: &Value| line["index"].as_u64().expect("an index");
    lines.iter().map(index).collect()
}

#[track_caller]
fn refused(workspace: &Workspace, arguments: &str, says: &[&str]) {
    let ended = workspace.run(&format!("{arguments} --out none.jsonl"));
    ended.assert_refused(says);
}

#[test]
fn prompts_that_do_not_fit_are_left_out_or_cut() {
    let workspace = workspace("prompts.jsonl", "prompt_ids");
    let generate = "generate --model model --prompts prompts.jsonl --max-new-tokens 4 --seed 3";
    refused(
        &workspace,
        generate,
        &["prompts.jsonl:2:", "malformed JSON"],
    );
    let skip = format!("{generate} --bad-records skip --max-bad-share 0.25");
    refused(
        &workspace,
        &skip,
        &[
            "prompts.jsonl:3: the prompt has 130 tokens",
            "--too-long skip or truncate",
        ],
    );

    let all = workspace.lines(&format!("{skip} --too-long truncate"));
    assert_eq!(indices(&all), [0, 2, 3], "places in the file");
    let cut: Vec<u32> = (6..130).map(|i| i % 100).collect();
    assert_eq!(ids(&all[1], "prompt_ids"), cut, "the end is kept");
    let some = workspace.lines(&format!("{skip} --too-long skip"));
    assert_eq!(indices(&some), [0, 3]);
    assert_eq!(some[1], all[2], "draws are keyed by the place in the file");
    let said = workspace
        .run(&format!("{skip} --too-long skip --out out.jsonl"))
        .stderr;
    for part in [
        "generate: 1 of 4 records of prompts.jsonl are bad and were left out:\n  prompts.jsonl:2:",
        "generate: 1 of 4 records of prompts.jsonl are too long and were left out",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let said = workspace
        .run(&format!("{skip} --too-long truncate --out out.jsonl"))
        .stderr;
    let cut = "1 of 4 records of prompts.jsonl are too long and were cut at the prompt's start";
    assert!(said.contains(cut), "no {cut:?} in {said}");
    workspace.write("prompts.jsonl", "{}\n[]\n");
    refused(
        &workspace,
        &skip,
        &["prompts.jsonl: none of its 2 records can be used"],
    );
}

#[test]
fn texts_to_score_that_do_not_fit_are_left_out_or_cut() {
    let workspace = workspace("data.jsonl", "ids");
    let score = "score --model model --data data.jsonl --bad-records skip --max-bad-share 0.25";
    refused(
        &workspace,
        score,
        &["data.jsonl:3: the record has 130 tokens"],
    );
    let some = workspace.lines(&format!("{score} --too-long skip"));
    assert_eq!(indices(&some), [0, 3]);
    let all = workspace.lines(&format!("{score} --too-long truncate --batch 2"));
    assert_eq!(indices(&all), [0, 2, 3]);
    let cut: Vec<u32> = (0..128).map(|i| i % 100).collect();
    assert_eq!(ids(&all[1], "ids"), cut, "the end is cut");
    assert_eq!(some[1], all[2]);
    let ended = workspace.run(&format!("{score} --too-long maybe --out out.jsonl"));
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
}

/// One of the four records is bad.
#[test]
fn too_large_a_share_of_bad_records_fails() {
    let workspace = workspace("data.jsonl", "ids");
    let score = "score --model model --data data.jsonl --too-long skip";
    let skip = format!("{score} --bad-records skip");
    let says = [
        "1 of 4 records are bad, a share of 0.25; --max-bad-share allows 0.1",
        "data.jsonl:2:",
    ];
    refused(&workspace, &skip, &says);
    refused(
        &workspace,
        &format!("{skip} --max-bad-share 0.24"),
        &["--max-bad-share allows 0.24"],
    );
    let lines = workspace.lines(&format!("{skip} --max-bad-share 0.25"));
    assert_eq!(indices(&lines), [0, 3]);
    refused(
        &workspace,
        &format!("{score} --max-bad-share 0.5"),
        &["--bad-records skip"],
    );
    let ended = workspace.run(&format!("{skip} --max-bad-share 2 --out out.jsonl"));
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
}

#[test]
fn columns_are_read_under_other_names_and_those_not_read_are_named() {
    let workspace = Workspace::new();
    workspace.copy_model("llama");
    workspace.write(
        "data.jsonl",
        "{\"tokens\": [5, 6], \"note\": 1, \"empty\": null}",
    );
    let score = "score --model model --data data.jsonl";
    refused(&workspace, score, &["the record has no `ids`"]);
    let columns = format!("{score} --columns ids=tokens");
    let lines = workspace.lines(&columns);
    assert_eq!(ids(&lines[0], "ids"), [5, 6]);
    let said = workspace.run(&format!("{columns} --out out.jsonl")).stderr;
    assert!(
        said.contains("score: data.jsonl: columns not used: `note`"),
        "{said}"
    );
    assert!(!said.contains("`empty`"), "{said}");
    for (flags, says) in [
        ("--columns ids=token", "no record has it"),
        ("--columns ids=tokens --columns text=tokens", "two names"),
        ("--columns ids=tokens --columns ids=note", "two columns"),
    ] {
        refused(&workspace, &format!("{score} {flags}"), &[says]);
    }
    let ended = workspace.run(&format!("{score} --columns ids --out out.jsonl"));
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);

    workspace.write(
        "prompts.jsonl",
        "{\"tokens\": [5, 6], \"max_new_tokens\": 1, \"answer\": \"a\"}",
    );
    let generate = "generate --model model --prompts prompts.jsonl --columns prompt_ids=tokens \
                    --out out.jsonl";
    let ended = workspace.run(generate);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let says = "generate: prompts.jsonl: columns not used: `answer`\n";
    assert!(ended.stderr.contains(says), "{}", ended.stderr);
}
