//! Reward programs that misbehave under the real binary: unexpected output, lines and floods
//! without end, and child processes that would outlive the run.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::refusal::refused;
use crate::support::{Workspace, read};

const RUN: &str = "ppo config.toml --set ppo.max_steps=2 --set ppo.eval_prompts= \
                   --set ppo.lexicon= --set ppo.eval_samples=256 --set ppo.eval_steps=0";
/// Answers a question with 0.25 for every completion in it.
const ANSWER: &str = r#"answer() {
    scores=$(printf '%s' "$line" | grep -o '"completion":' | sed 's/.*/0.25/' | tr '\n' ',')
    echo "[${scores%,}]"
}
"#;
const ANSWER_ALL: &str = "while read -r line; do answer; done\n";

/// Trained models, and a configuration whose PPO scores with a shell script.
fn workspace(script: &str) -> Workspace {
    let workspace = Workspace::trained();
    let config = String::from_utf8(read(&workspace.path("config.toml"))).expect("UTF-8");
    let config = config.replace("reward_model = \"models/reward\"\n", "");
    let program = "[[ppo.rewards]]\ntype = \"program\"\ncommand = [\"sh\", \"reward.sh\"]\n";
    workspace.write("config.toml", &(config + "\n" + program));
    workspace.write("reward.sh", &format!("{ANSWER}{script}"));
    workspace
}

/// Whether the background process whose id a script recorded is running. A killed process that
/// nobody has waited for does not count.
fn descendant_runs(workspace: &Workspace) -> bool {
    let pid = fs::read_to_string(workspace.path("pid")).expect("the script ran");
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// Whether that process ends within a few seconds.
fn descendant_ends(workspace: &Workspace) -> bool {
    let start = Instant::now();
    while descendant_runs(workspace) && start.elapsed().as_secs() < 30 {
        thread::sleep(Duration::from_millis(20));
    }
    !descendant_runs(workspace)
}

#[test]
fn a_surplus_line_fails_the_run_every_time() {
    let after_the_first = "read -r line; answer; answer; while read -r line; do answer; done\n";
    let after_the_last = "read -r line; answer; read -r line; answer; echo '[1]'; cat >&2\n";
    for script in [after_the_first, after_the_last] {
        for _ in 0..4 {
            let says = ["reward `program`", "sh reward.sh", "an extra line"];
            let workspace = workspace(script);
            refused(&workspace, RUN, &says);
            assert!(!workspace.model("trial", "ppo").exists());
        }
    }
}

#[test]
fn lines_and_messages_without_end_fail_the_run() {
    let endless = workspace("read -r line; tr '\\0' x < /dev/zero\n");
    refused(&endless, RUN, &["sh reward.sh", "without a newline"]);
    let noisy = workspace("read -r line; tr '\\0' '\\n' < /dev/zero >&2\n");
    let says = ["sh reward.sh", "more than 1 MiB to standard error"];
    let ended = noisy.run(RUN);
    assert_eq!(ended.code, Some(1));
    assert!(says.iter().all(|part| ended.stderr.contains(part)));
    assert!(ended.stderr.len() < 4 << 20);
}

/// The program writes three times what a batch may return before it reads the first question.
#[test]
#[cfg(target_os = "linux")]
fn a_program_may_say_much_while_it_loads() {
    let loading = "head -c 3145728 /dev/zero | tr '\\0' '\\n' >&2\n";
    workspace(&format!("{loading}{ANSWER_ALL}")).succeed(RUN);
    let flood = "tr '\\0' '\\n' < /dev/zero >&2\n";
    let noisy = workspace(&format!("{loading}read -r line; {flood}"));
    let ended = noisy.run(RUN);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("more than 1 MiB to standard error"));
}

#[test]
#[cfg(target_os = "linux")]
fn descendants_end_with_the_run() {
    let child = "sleep 600 & echo $! > pid\n";
    let well = workspace(&format!("{child}{ANSWER_ALL}"));
    well.succeed(RUN);
    assert!(descendant_ends(&well));
    let badly = workspace(&format!("{child}read -r line; echo nonsense; cat\n"));
    refused(&badly, RUN, &["not JSON"]);
    assert!(descendant_ends(&badly));
}

/// A program or endpoint that does not answer ends a run before its first stage.
#[test]
fn programs_and_endpoints_are_tried_before_the_first_stage() {
    let untouched = |workspace: &Workspace| !workspace.stage("trial", "pretrain").exists();
    let gone = workspace(ANSWER_ALL);
    fs::remove_file(gone.path("reward.sh")).expect("a file");
    let tried = "tried on one prompt before the first stage";
    refused(
        &gone,
        "run config.toml",
        &["stage ppo", tried, "reward `program`", "one by one"],
    );
    assert!(untouched(&gone));
    let noted = gone
        .command("plan config.toml")
        .output()
        .expect("the binary");
    let noted = String::from_utf8(noted.stdout).expect("UTF-8");
    assert!(noted.contains("endpoints are not tried here"), "{noted}");
    let dead = workspace(ANSWER_ALL);
    let config = String::from_utf8(read(&dead.path("config.toml"))).expect("UTF-8");
    let endpoint = "[[ppo.rewards]]\ntype = \"http\"\nurl = \"http://127.0.0.1:9/\"\nretries = 0\n";
    dead.write("config.toml", &(config + endpoint));
    refused(
        &dead,
        "run config.toml",
        &[tried, "reward `http`", "refused the connection"],
    );
    assert!(untouched(&dead));
}

/// A program that dies on some questions is started again, and each restart is a line.
#[test]
fn restarts_are_noted() {
    let script = format!("[ -e seen ] && {{ {ANSWER_ALL} }}\ntouch seen\nread -r line; exit 3\n");
    let said = workspace(&script).succeed(RUN).stderr;
    let note = "reward program: the program ended (exit status: 3) and was started again \
                (1 restart so far)";
    assert!(said.contains(note), "{said}");
}

/// No checkpoint is written before the first score, so nothing ties the stage to the program.
#[test]
fn a_program_that_fails_on_its_first_question_may_be_mended() {
    let workspace = workspace("read -r line; echo nonsense; cat\n");
    refused(&workspace, RUN, &["not JSON"]);
    workspace.write("reward.sh", &format!("{ANSWER}{ANSWER_ALL}"));
    workspace.succeed(RUN);
}

/// A run that is killed by SIGKILL cannot end its programs itself.
#[test]
#[cfg(target_os = "linux")]
fn descendants_end_with_a_run_that_is_killed() {
    let workspace =
        workspace("sleep 600 & echo $! > pid.new; mv pid.new pid; read -r line; sleep 600\n");
    let mut command = workspace.command(RUN);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut run = command.spawn().expect("the binary");
    let start = Instant::now();
    while !workspace.path("pid").exists() {
        assert!(start.elapsed().as_secs() < 60, "the program never started");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(descendant_runs(&workspace));
    run.kill().expect("a process");
    run.wait().expect("its end");
    assert!(descendant_ends(&workspace));
}
