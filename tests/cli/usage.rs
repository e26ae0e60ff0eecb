//! Help, wrong usage, signals, and the output file.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::support::{Workspace, fixture};

#[test]
fn help_lists_commands_flags_and_fields() {
    let workspace = Workspace::new();
    for (command, mentions) in [
        (
            "",
            "pretrain, sft, reward, ppo, plan, config, generate, score, Exit codes",
        ),
        (
            "generate",
            "--greedy, --ignore-eos, --arithmetic, prompt_ids, finish_reason, Example",
        ),
        (
            "score",
            "--data, --adapter, --arithmetic, logprobs, entropy, Example",
        ),
        (
            "plan",
            "--set, --probe, cache, activations, but no weights; only where, Example",
        ),
        ("export", "--model, --adapter, --out, PEFT, Example"),
    ] {
        let ended = workspace.run(&format!("{command} --help"));
        assert_eq!(ended.code, Some(0), "{command}");
        for words in mentions.split(", ") {
            assert!(
                ended.stdout.contains(words),
                "{command}: no {words} in\n{}",
                ended.stdout
            );
        }
    }
}

#[test]
fn a_quiet_command_writes_results_and_errors_alone() {
    let workspace = Workspace::new();
    workspace.copy_model("llama");
    workspace.write("prompts.jsonl", "{\"prompt_ids\": [1, 2]}\n");
    let generate = "generate --model model --prompts prompts.jsonl --max-new-tokens 2 --greedy";
    let loud = workspace.run(&format!("{generate} --out loud.jsonl"));
    assert_eq!(loud.code, Some(0), "{}", loud.stderr);
    assert!(!loud.stderr.is_empty());
    for (flags, out) in [("-q", "before.jsonl"), ("", "after.jsonl --quiet")] {
        let quiet = workspace.run(&format!("{flags} {generate} --out {out}"));
        assert_eq!((quiet.code, &*quiet.stderr), (Some(0), ""));
    }
    let read = |name| fs::read_to_string(workspace.path(name)).expect("an output file");
    assert_eq!(read("before.jsonl"), read("loud.jsonl"));
    let failed = workspace.run("-q generate --model nowhere --prompts p.jsonl --out o.jsonl");
    assert_eq!(failed.code, Some(1));
    assert!(failed.stderr.starts_with("error: "), "{}", failed.stderr);
}

#[test]
fn wrong_usage_exits_with_2() {
    let workspace = Workspace::new();
    let generate = "generate --model m --prompts p.jsonl --out o.jsonl";
    for arguments in [
        "",
        "generatee",
        "generate --model m",
        "score --model m --data d.jsonl --out o.jsonl --batch 0",
        &format!("{generate} --n 0"),
        &format!("{generate} --temperature 0"),
        &format!("{generate} --top-p 1.5"),
        &format!("{generate} --min-p nan"),
        &format!("{generate} --greedy --temperature 0.5"),
        &format!("{generate} --device gpu"),
        &format!("{generate} --arithmetic quick"),
        "run config.toml --set nonsense",
        "plan",
        "plan config.toml --fresh",
    ] {
        let ended = workspace.run(arguments);
        assert_eq!(ended.code, Some(2), "{arguments}: {}", ended.stderr);
    }
}

#[test]
fn keys_are_explained_and_flags_of_other_trainers_lead_to_them() {
    let workspace = Workspace::new();
    let ended = workspace.run("config ppo.kl_coef");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("default: 0.05"), "{}", ended.stdout);
    for (arguments, code, says) in [
        ("config ppo.kl_coeff", 1, "did you mean `ppo.kl_coef`?"),
        (
            "sft c.toml --learning_rate 1e-4",
            2,
            "use --set sft.learning_rate=1e-4",
        ),
        (
            "score --model m --data d --out o",
            1,
            "--model m: no such folder",
        ),
    ] {
        let ended = workspace.run(arguments);
        assert_eq!(ended.code, Some(code), "{arguments}");
        assert!(ended.stderr.contains(says), "{arguments}: {}", ended.stderr);
    }
}

/// Output may go through a named pipe, which is not replaced by a file.
#[test]
fn a_stream_is_written_not_replaced() {
    let workspace = Workspace::new();
    workspace.write("data.jsonl", "{\"ids\": [5]}");
    let model = fixture("llama_reward");
    let score = format!("score --data data.jsonl --model {} --out", model.display());
    let ended = workspace.run(&format!("{score} /dev/stdout"));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended.stdout.starts_with("{\"index\":0,\"score\":"),
        "{}",
        ended.stdout
    );
}

#[cfg(unix)]
#[test]
fn a_link_stays_and_its_file_is_replaced() {
    let workspace = Workspace::new();
    workspace.write("data.jsonl", "{\"ids\": [5]}");
    workspace.write("old.jsonl", "old");
    std::os::unix::fs::symlink("old.jsonl", workspace.path("out.jsonl")).expect("a link");
    let model = fixture("llama_reward");
    let lines = workspace.lines(&format!(
        "score --data data.jsonl --model {}",
        model.display()
    ));
    assert_eq!(lines.len(), 1);
    assert!(workspace.path("out.jsonl").is_symlink());
    let text = fs::read_to_string(workspace.path("old.jsonl")).expect("a file");
    assert!(text.contains("score"), "{text}");
}

/// Generates far more completions than there is time for; SIGINT ends them, and nothing is written.
#[test]
fn a_signal_stops_generation_with_130() {
    let workspace = Workspace::new();
    workspace.write("prompts.jsonl", "{\"prompt_ids\": [5]}");
    let model = fixture("llama");
    let arguments = format!(
        "generate --prompts prompts.jsonl --model {} --out out.jsonl --n 100000 --ignore-eos",
        model.display()
    );
    let mut child = workspace
        .command(&arguments)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    let mut progress = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut first = String::new();
    progress.read_line(&mut first).expect("a line of progress");
    assert!(first.starts_with("generate 0/100000"), "{first}");
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.expect("kill").success());
    assert_eq!(child.wait().expect("an exit code").code(), Some(130));
    assert_eq!(workspace.names(), ["prompts.jsonl"]);
}
