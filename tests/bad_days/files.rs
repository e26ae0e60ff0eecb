//! Files of a run that were removed or changed between two of its processes.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::limits::ends_soon;
use crate::process::{Moment, StageRun};
use crate::support::{Workspace, lines};

const CONSTANT: &str = "--set sft.lr_scheduler_type=constant --set sft.save_steps=2";

/// A workspace with four steps of `sft` in `runs/trial`. More steps can be added to the run.
fn four_steps() -> Workspace {
    let workspace = Workspace::trained();
    workspace.succeed(&sft(4, ""));
    workspace
}

fn sft(steps: usize, more: &str) -> String {
    format!("sft config.toml --set sft.max_steps={steps} {CONSTANT} {more}")
}

fn folder(workspace: &Workspace) -> PathBuf {
    workspace.stage("trial", "sft")
}

fn steps(path: &Path) -> Vec<u64> {
    let step = |line: crate::support::Line| line["step"].as_u64().expect("a step");
    lines(path)
        .into_iter()
        .map(step)
        .filter(|step| *step > 0)
        .collect()
}

#[test]
fn a_stage_without_its_log_is_still_the_stage_that_was_begun() {
    for emptied in [false, true] {
        let workspace = four_steps();
        let metrics = folder(&workspace).join("metrics.jsonl");
        match emptied {
            true => fs::write(&metrics, "").expect("written"),
            false => fs::remove_file(&metrics).expect("removed"),
        }
        let other = workspace.run(&sft(6, "--set sft.learning_rate=5e-2"));
        other.assert_refused(&["sft.learning_rate", "[sft]"]);
        let ended = workspace.succeed(&sft(6, ""));
        assert!(
            ended.stderr.contains("metrics.jsonl is missing or empty")
                && ended.stderr.contains("continues after step 4"),
            "{}",
            ended.stderr
        );
        assert_eq!(steps(&metrics), [5, 6]);
        let again = workspace.succeed(&sft(8, ""));
        assert!(
            !again.stderr.contains("missing"),
            "said once: {}",
            again.stderr
        );
    }
}

#[test]
fn a_log_with_a_changed_digit_is_set_aside_and_no_line_is_lost() {
    let workspace = four_steps();
    let metrics = folder(&workspace).join("metrics.jsonl");
    let text = fs::read_to_string(&metrics).expect("a log");
    let changed = text.replace("{\"step\":2,", "{\"step\":9,");
    assert_ne!(text, changed);
    fs::write(&metrics, &changed).expect("written");
    let ended = workspace.succeed(&sft(6, ""));
    assert!(ended.stderr.contains("is of step 9"), "{}", ended.stderr);
    assert_eq!(steps(&metrics), [1, 3, 4, 5, 6]);
    let aside = metrics.with_file_name("metrics.jsonl.damaged-1");
    assert_eq!(fs::read_to_string(aside).expect("set aside"), changed);
}

#[test]
fn samples_that_are_gone_are_said() {
    let workspace = Workspace::trained();
    let ppo = |steps: usize| {
        format!("ppo config.toml --set ppo.max_steps={steps} --set ppo.save_steps=1")
    };
    workspace.succeed(&ppo(2));
    fs::remove_file(workspace.stage("trial", "ppo").join("samples.jsonl")).expect("samples");
    let ended = workspace.succeed(&ppo(3));
    assert!(
        ended.stderr.contains("samples.jsonl is missing or empty"),
        "{}",
        ended.stderr
    );
}

#[test]
fn what_a_stage_was_begun_with_must_be_there_and_readable() {
    for (name, contents, word) in [
        ("config.toml", None, "config.toml"),
        ("config.toml", Some("[run"), "config.toml:1"),
        ("inputs.json", None, "inputs.json"),
        ("inputs.json", Some("{"), "inputs.json"),
        ("done.json", Some("{"), "done.json"),
    ] {
        let workspace = four_steps();
        let file = folder(&workspace).join(name);
        match contents {
            Some(contents) => fs::write(&file, contents).expect("written"),
            None => fs::remove_file(&file).expect("removed"),
        }
        workspace.run(&sft(6, "")).assert_refused(&[word]);
    }
}

#[test]
fn a_stage_without_a_checkpoint_takes_another_configuration() {
    let workspace = Workspace::trained();
    let killed = StageRun {
        workspace: &workspace,
        stage: "sft",
        name: "trial",
        flags: "--set sft.max_steps=100000 --set sft.save_steps=0",
    };
    let moment = Moment {
        lines: 3,
        delay: Duration::ZERO,
    };
    let mut child = killed.start_until(moment);
    child.kill().expect("a child");
    child.wait().expect("its end");
    let ended = workspace.succeed(&sft(4, "--set sft.batch_size=3"));
    let says = "left no checkpoint to continue from; the stage starts over, with the configuration \
                as it is now";
    assert!(ended.stderr.contains(says), "{}", ended.stderr);
    assert_eq!(
        steps(&folder(&workspace).join("metrics.jsonl")),
        [1, 2, 3, 4]
    );
    // The configuration that the run now began with applies.
    let other = workspace.run(&sft(6, "--set sft.batch_size=5"));
    other.assert_refused(&["sft.batch_size: 3 → 5"]);
}

#[test]
fn a_stage_that_failed_on_its_data_takes_others() {
    let workspace = Workspace::trained();
    workspace.write("bad.jsonl", "{\"question\": 1}\n");
    let failed = workspace.run(&sft(4, "--set sft.data=bad.jsonl"));
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    workspace.succeed(&sft(4, ""));
}

#[test]
fn a_final_model_that_is_gone_is_written_again() {
    let whole = |workspace: &Workspace| workspace.weights("trial", "sft");
    for lost in ["", "model.safetensors", "config.json"] {
        let workspace = four_steps();
        let (before, model) = (whole(&workspace), workspace.model("trial", "sft"));
        match lost {
            "" => fs::remove_dir_all(&model).expect("removed"),
            file => fs::remove_file(model.join(file)).expect("removed"),
        }
        let ended = workspace.succeed(&sft(4, ""));
        let says = "is gone or cut short; the model is written again from the last checkpoint";
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
        assert!(whole(&workspace) == before, "{lost}: other weights");
        let again = workspace.succeed(&sft(4, ""));
        assert!(
            again.stderr.contains("finished after 4 steps"),
            "{}",
            again.stderr
        );
    }
    // Without a checkpoint there is nothing from which `final/` could be written.
    let workspace = four_steps();
    fs::remove_dir_all(workspace.model("trial", "sft")).expect("removed");
    fs::remove_dir_all(folder(&workspace).join("checkpoints")).expect("removed");
    workspace
        .run(&sft(4, ""))
        .assert_refused(&["no checkpoint", "--fresh"]);
}

#[test]
fn a_finished_stage_that_is_asked_for_more_steps_needs_a_checkpoint() {
    let workspace = four_steps();
    fs::remove_dir_all(folder(&workspace).join("checkpoints")).expect("removed");
    workspace
        .run(&sft(6, ""))
        .assert_refused(&["no checkpoint", "--fresh"]);
    let ended = workspace.succeed(&sft(4, ""));
    assert!(
        ended.stderr.contains("finished after 4 steps"),
        "{}",
        ended.stderr
    );
}

/// A checkpoint whose manifest names a device, a pipe, a link or a file elsewhere counts as
/// damaged.
#[test]
fn a_checkpoint_is_made_of_regular_files_of_its_own_folder() {
    for (name, make) in [
        ("/dev/zero", None),
        ("../../inputs.json", None),
        ("pipe", Some(pipe as fn(&Path))),
        ("link", Some(link as fn(&Path))),
    ] {
        let workspace = four_steps();
        let checkpoint = folder(&workspace).join("checkpoints/step-00000004");
        if let Some(make) = make {
            make(&checkpoint.join(name));
        }
        let manifest = checkpoint.join("manifest.json");
        let text = fs::read_to_string(&manifest).expect("a manifest");
        let entry = format!("\"files\": {{ \"{name}\": {{\"bytes\": 1, \"crc32\": 0}},");
        fs::write(&manifest, text.replacen("\"files\": {", &entry, 1)).expect("written");
        let ended = ends_soon(&mut workspace.command(&sft(6, "")));
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("damaged checkpoint passed over"),
            "{name}: {}",
            ended.stderr
        );
        assert!(
            ended.stderr.contains("continues after step 2"),
            "{name}: {}",
            ended.stderr
        );
    }
}

fn pipe(path: &Path) {
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("a name");
    // SAFETY: the name is a NUL-terminated string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

fn link(path: &Path) {
    std::os::unix::fs::symlink("/dev/zero", path).expect("a link");
}

/// Pipes and devices in place of data or model files end in an error, never in a process that waits
/// forever.
#[test]
fn what_is_no_regular_file_is_refused() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let workspace = Workspace::trained();
        let path = workspace.path("models/sft").join(file);
        fs::remove_file(&path).expect("a file");
        pipe(&path);
        for command in [
            "ppo config.toml",
            "generate --model models/sft --prompts prompts.jsonl --max-new-tokens 2 --out o.jsonl",
        ] {
            let ended = ends_soon(&mut workspace.command(command));
            assert_eq!(ended.code, Some(1), "{file}, {command}: {}", ended.stderr);
            assert!(
                ended.stderr.contains("models/sft"),
                "{file}: {}",
                ended.stderr
            );
        }
    }
    let workspace = Workspace::trained();
    pipe(&workspace.path("pipe.jsonl"));
    link(&workspace.path("zero.jsonl"));
    fs::create_dir(workspace.path("folder.jsonl")).expect("a folder");
    for (data, word) in [
        ("pipe", "a named pipe"),
        ("zero", "a device"),
        ("folder", "a folder"),
    ] {
        for command in [
            sft(4, &format!("--set sft.data={data}.jsonl")),
            format!("generate --model models/sft --prompts {data}.jsonl --out o.jsonl"),
            format!("score --model models/sft --data {data}.jsonl --out o.jsonl"),
        ] {
            let ended = ends_soon(&mut workspace.command(&command));
            ended.assert_refused(&[&format!("{data}.jsonl"), word]);
        }
    }
}
