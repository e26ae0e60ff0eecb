//! Sample records are accepted by the stages that the pages name, and the runnable commands of the
//! pages succeed.

use super::page::{Block, Page, pages};
use super::workspace::{MODEL, Workspace};

/// Stages and commands that a block of records may name.
const READERS: [&str; 9] = [
    "pretrain", "sft", "dpo", "orpo", "reward", "judge", "ppo", "generate", "score",
];

#[test]
fn stages_read_the_records_that_the_pages_show() {
    let workspace = Workspace::new();
    let mut read = [0; READERS.len()];
    for block in pages().iter().flat_map(Page::blocks) {
        if block.is("jsonl") {
            let unknown = block.words[1..].iter();
            let mut unknown = unknown.filter(|word| !word.contains('.') && !is_reader(word));
            assert_eq!(unknown.next(), None, "{}: no such stage", block.place);
        }
        for (reader, count) in READERS.iter().zip(&mut read) {
            if block.is("jsonl") && block.has(reader) {
                reads(&workspace, reader, &block);
                *count += 1;
            }
        }
    }
    for (reader, count) in READERS.iter().zip(read) {
        assert!(count > 0, "no page shows a record of {reader}");
    }
}

fn is_reader(word: &str) -> bool {
    READERS.contains(&word)
}

/// Runs a stage or command on each of the block's records alone, so that none hides another.
fn reads(workspace: &Workspace, reader: &str, block: &Block) {
    for record in block.text.lines() {
        let place = format!("{}: {reader}: {record}", block.place);
        workspace.write("records.jsonl", record);
        match reader {
            "generate" => {
                let flags = "--prompts records.jsonl --out out.jsonl --max-new-tokens 2";
                workspace.succeeds(
                    &format!("collimate generate --model {MODEL} {flags}"),
                    &place,
                );
            }
            "score" => {
                let flags = "--data records.jsonl --out out.jsonl";
                workspace.succeeds(&format!("collimate score --model {MODEL} {flags}"), &place);
            }
            stage => {
                workspace.write("records.toml", &configuration(stage));
                workspace.succeeds(&format!("collimate {stage} records.toml --fresh"), &place);
            }
        }
    }
}

/// A configuration that takes one step on `records.jsonl`.
fn configuration(stage: &str) -> String {
    let keys = match stage {
        "pretrain" => "data = \"records.jsonl\"\ncontext_length = 8",
        "ppo" => "prompts = \"records.jsonl\"\nmax_new_tokens = 2\nnum_ppo_epochs = 1",
        _ => "data = \"records.jsonl\"",
    };
    let rewards = match stage {
        "ppo" => "[[ppo.rewards]]\ntype = \"length\"\nmax = 1",
        _ => "",
    };
    format!(
        "[run]\nname = \"records\"\n[model]\nfrom = \"{MODEL}\"\n\
         [{stage}]\n{keys}\nbatch_size = 1\nmax_steps = 1\n{rewards}\n"
    )
}

#[test]
fn commands_shown_as_runnable_run() {
    let mut commands = 0;
    for page in pages() {
        let blocks = page.blocks();
        if !blocks.iter().any(is_runnable) {
            continue;
        }
        let workspace = Workspace::new();
        for block in &blocks {
            if let Some(name) = block.file_name() {
                workspace.write(name, &block.text);
            }
            if is_runnable(block) {
                for command in block.text.replace("\\\n", " ").lines() {
                    let command = command.strip_prefix("$ ").expect("commands alone");
                    workspace.succeeds(without_comment(command), &block.place);
                    commands += 1;
                }
            }
        }
    }
    assert!(commands > 0, "no page shows a command as runnable");
}

fn is_runnable(block: &Block) -> bool {
    block.is("console") && block.has("run")
}

fn without_comment(command: &str) -> &str {
    command.split("  #").next().unwrap_or(command)
}
