//! `plan --probe`: runs each stage for a step or two and prints measured memory and time beside the
//! plan.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::language::{CONFIG, files};
use crate::plan::tables;
use crate::support::Workspace;

/// The small language, before any model of it is trained.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    workspace.write("config.toml", CONFIG);
    for (name, contents) in files() {
        workspace.write(name, &contents);
    }
    workspace
}

/// The table of a probe: stage, MiB planned and measured, seconds a step, steps.
fn rows(stdout: &str) -> Vec<(String, [f64; 4])> {
    let tables = tables(stdout);
    let table = tables.iter().find(|table| table[0][0] == "probe");
    let number = |cell: &str| cell.parse().unwrap_or_else(|e| panic!("{cell}: {e}"));
    let row = |cells: &Vec<&str>| {
        let numbers = std::array::from_fn(|i| number(cells[i + 1]));
        (cells[0].to_owned(), numbers)
    };
    let rows = table.expect("a probe").iter().skip(1);
    rows.filter(|cells| cells.len() == 6).map(row).collect()
}

#[test]
fn what_is_there_is_tried_and_what_is_not_is_named() {
    let workspace = workspace();
    let before = workspace.names();
    let ended = workspace.run("plan config.toml --probe");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let rows = rows(&ended.stdout);
    let [(stage, [planned, measured, seconds, steps])] = &rows[..] else {
        panic!("{}", ended.stdout);
    };
    assert_eq!((stage.as_str(), *steps), ("pretrain", 60.0));
    let peak = format!("Peak {} MiB in stage pretrain", planned.ceil());
    assert!(ended.stdout.starts_with(&peak), "{}", ended.stdout);
    assert!(measured > planned, "{measured} MiB, planned {planned}");
    assert!(*seconds > 0.0 && *seconds < 10.0, "{seconds}");
    let sft = "not probed: sft.from is runs/trial/pretrain/final, the model that stage pretrain is \
               yet to make; run `collimate \
               pretrain` first";
    assert!(ended.stdout.contains(sft), "{}", ended.stdout);
    for stage in ["dpo", "reward", "ppo"] {
        let words = format!("not probed: {stage}.from is runs/trial/sft/final");
        assert!(ended.stdout.contains(&words), "{}", ended.stdout);
    }
    assert_eq!(workspace.names(), before, "a probe leaves nothing");
}

/// A stage whose length is given in epochs has the same number of steps in a probe as in a run.
#[test]
fn every_stage_is_tried_once_its_models_are_there() {
    let workspace = workspace();
    let epochs = "--set pretrain.max_steps=0 --set sft.max_steps=0 --set reward.max_steps=0 \
                  --set reward.max_epochs=2.0 --set \
                  ppo.max_steps=0 --set ppo.max_epochs=3.0";
    for stage in ["pretrain", "sft", "reward"] {
        let ended = workspace.run(&format!("{stage} config.toml {epochs}"));
        assert_eq!(ended.code, Some(0), "{stage}: {}", ended.stderr);
    }
    let before = workspace.names();
    let runs = std::fs::read_dir(workspace.path("runs")).expect("a folder");
    let ended = workspace.run(&format!("plan config.toml --probe {epochs}"));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let found: Vec<(String, f64)> = rows(&ended.stdout)
        .into_iter()
        .map(|(stage, [planned, measured, seconds, steps])| {
            assert!(measured > planned && seconds > 0.0, "{}", ended.stdout);
            (stage, steps)
        })
        .collect();
    let lines = |stage: &str| {
        let file = workspace.path(&format!("runs/trial/{stage}/metrics.jsonl"));
        let text = std::fs::read_to_string(file).expect("a log");
        // The evaluation before the first step also writes a line.
        (text.lines().count() - 1) as f64
    };
    let expected = [
        ("pretrain", lines("pretrain")),
        ("sft", lines("sft")),
        ("dpo", 30.0),
        ("reward", lines("reward")),
        // Three passes over 30 prompts, with 16 prompts an iteration.
        ("ppo", 3.0),
    ];
    let expected = expected.map(|(stage, steps)| (stage.to_owned(), steps));
    assert_eq!(found, expected);
    assert_eq!(workspace.names(), before);
    assert_eq!(runs.count(), 1, "the run's folder alone");
}

#[test]
fn where_nothing_can_be_tried_the_reasons_are_the_error() {
    let workspace = Workspace::new();
    workspace.write("config.toml", CONFIG);
    let ended = workspace.run("plan config.toml --probe");
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    for words in [
        "no stage can be probed",
        "pretrain.data is text.jsonl, which does not exist",
        "run `collimate pretrain` first",
    ] {
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
}

/// A failure of the stage ends its trial, with the stage's own message.
#[test]
fn a_stage_that_fails_says_why() {
    let workspace = workspace();
    workspace.write("text.jsonl", "{\"texts\": \"a\"}\n");
    let before = workspace.names();
    let ended = workspace.run("plan config.toml --probe");
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    for words in ["stage pretrain", "text.jsonl:1", "text"] {
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
    assert_eq!(workspace.names(), before);
}

/// A reward program's own words are shown, and the stage is named once.
#[test]
fn what_a_reward_program_writes_to_standard_error_is_shown() {
    let workspace = workspace();
    let ended = workspace.run("pretrain config.toml --set pretrain.max_steps=1");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let config = |program: &str| {
        format!(
            "[run]\nname = \"trial\"\n[ppo]\nfrom = \"runs/trial/pretrain/final\"\n\
             prompts = \"prompts.jsonl\"\nmax_new_tokens = 4\n\
             batch_size = 2\n[[ppo.rewards]]\ntype = \"program\"\n\
             command = [\"sh\", \"-c\", {program:?}]\n"
        )
    };
    let answers = "echo loaded the scorer >&2; while read line; do echo '[1, 2]'; done";
    workspace.write("config.toml", &config(answers));
    let ended = workspace.run("plan config.toml --probe");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(
        ended.stderr.matches("loaded the scorer").count(),
        1,
        "{}",
        ended.stderr
    );
    workspace.write("config.toml", &config("echo no such file >&2; exit 3"));
    let ended = workspace.run("plan config.toml --probe");
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert!(ended.stderr.contains("no such file"), "{}", ended.stderr);
    assert_eq!(
        ended.stderr.matches("stage ppo").count(),
        1,
        "{}",
        ended.stderr
    );
}

#[cfg(unix)]
#[test]
fn a_signal_ends_the_probe_and_leaves_nothing() {
    let workspace = workspace();
    let before = workspace.names();
    let mut command = workspace.command("plan config.toml --probe");
    let child = command.stderr(Stdio::piped()).stdout(Stdio::null());
    let mut child = child.spawn().expect("the binary");
    let progress = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut lines = progress.lines().map(|line| line.expect("a line"));
    assert!(
        lines.any(|line| line.starts_with("pretrain: ")),
        "no progress"
    );
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.expect("kill").success());
    assert_eq!(child.wait().expect("an exit code").code(), Some(130));
    assert_eq!(workspace.names(), before);
}
