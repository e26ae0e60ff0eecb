//! Standard output or standard error whose reader is gone, or that is full; and the hang-up signal
//! of a closed terminal.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::{ATTEMPTS, Moment, StageRun, send};
use crate::support::Workspace;

const STEPS: &str = "--set sft.max_steps=40 --set sft.save_steps=0";

/// A device on which every write fails.
fn full() -> Stdio {
    File::options()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full")
        .into()
}

/// A pipe without a reader.
fn unread() -> Stdio {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// A full pipe whose reader exists but does not read.
fn filled() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().expect("a pipe");
    let number = writer.as_raw_fd();
    // SAFETY: the calls only take integers, and the descriptor is open.
    let set = |flags: libc::c_int| unsafe { libc::fcntl(number, libc::F_SETFL, flags) };
    // SAFETY: as above.
    let usual = unsafe { libc::fcntl(number, libc::F_GETFL) };
    assert_eq!(set(usual | libc::O_NONBLOCK), 0);
    while (&writer).write(&[b'x'; libc::PIPE_BUF]).is_ok() {}
    // Writes of the run itself would block.
    assert_eq!(set(usual), 0);
    (reader, writer)
}

fn code(command: &mut Command) -> Option<i32> {
    command.status().expect("the binary").code()
}

#[test]
fn a_run_goes_on_without_its_terminal() {
    let workspace = Workspace::trained();
    let run = |name| StageRun {
        workspace: &workspace,
        stage: "sft",
        name,
        flags: STEPS,
    };
    run("seen").complete();
    for (name, output, error) in [
        ("unread", unread as fn() -> Stdio, unread as fn() -> Stdio),
        ("full", full, full),
        ("half", full, unread),
    ] {
        let mut command = workspace.command(&format!(
            "sft config.toml --set run.name={name} --set sft.log_steps=1 {STEPS}"
        ));
        let code = code(command.stdout(output()).stderr(error()));
        assert_eq!(code, Some(0), "{name}");
        run(name).assert_same(&run("seen"), name);
    }
}

#[test]
fn a_run_does_not_wait_for_a_reader_that_does_not_read() {
    let workspace = Workspace::trained();
    let run = StageRun {
        workspace: &workspace,
        stage: "sft",
        name: "filled",
        flags: STEPS,
    };
    let (_output, output) = filled();
    let (_error, error) = filled();
    let mut command = workspace.command(&format!(
        "sft config.toml --set run.name=filled --set sft.log_steps=1 {STEPS}"
    ));
    let mut child = command
        .stdout(output)
        .stderr(error)
        .spawn()
        .expect("the binary");
    let start = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().expect("a child");
            panic!("it waits for its terminal");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(child.wait().expect("its end").code(), Some(0));
    assert!(run.is_done() && run.workspace.model("filled", "sft").exists());
}

#[test]
fn a_command_whose_product_is_its_output_says_that_it_is_lost() {
    let workspace = Workspace::trained();
    for arguments in ["-q plan config.toml", "--help", "sft --help", "--version"] {
        let command = || workspace.command(arguments);
        let ended = command().stdout(full()).output().expect("the binary");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{arguments}: {said}");
        assert!(
            said.contains("cannot write to standard output"),
            "{arguments}: {said}"
        );
        let ended = command().stdout(unread()).output().expect("the binary");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), &*said), (Some(0), ""), "{arguments}");
        assert_eq!(code(command().stdout(full()).stderr(full())), Some(1));
    }
    // The exit code reports wrong arguments even if nobody can read the message.
    assert_eq!(code(workspace.command("sft").stderr(unread())), Some(2));
    assert_eq!(code(workspace.command("sft").stderr(full())), Some(2));
}

/// A moment early enough that many steps are left.
const EARLY: Moment = Moment {
    lines: 10,
    delay: Duration::from_millis(2),
};

#[test]
fn a_run_that_is_hung_up_saves_and_continues_to_the_same_bits() {
    for (stage, steps) in [("sft", 80), ("ppo", 40)] {
        let workspace = Workspace::trained();
        let flags = format!("--set {stage}.max_steps={steps} --set {stage}.save_steps=0");
        let run = |name| StageRun {
            workspace: &workspace,
            stage,
            name,
            flags: &flags,
        };
        let (unbroken, broken) = (run("unbroken"), run("broken"));
        unbroken.complete();
        hang_up(&broken);
        let said = broken.complete();
        assert!(said.contains("continues after"), "{stage}: {said}");
        broken.assert_same(&unbroken, stage);
    }
}

/// Sends the signal twice, as a terminal and its shell do when they close together: the second one
/// must not end the run before it has saved.
fn hang_up(run: &StageRun) {
    for _ in 0..ATTEMPTS {
        let mut child = run.start_until(EARLY);
        send("HUP", &child);
        send("HUP", &child);
        let status = child.wait().expect("its end");
        if !run.is_done() {
            assert_eq!(status.code(), Some(130), "{}", run.stage);
            return;
        }
        run.forget();
    }
    panic!("{}: {ATTEMPTS} times it ended first", run.stage)
}

/// `nohup` starts a program with the signal ignored.
#[test]
fn a_run_that_was_started_to_ignore_hang_ups_goes_on() {
    let workspace = Workspace::trained();
    let run = StageRun {
        workspace: &workspace,
        stage: "sft",
        name: "kept",
        flags: STEPS,
    };
    let mut command = workspace.command(&format!("sft config.toml --set run.name=kept {STEPS}"));
    // SAFETY: between fork and exec only the signal's disposition is set.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        });
    }
    let mut child = command
        .stdout(unread())
        .stderr(unread())
        .spawn()
        .expect("the binary");
    while !run.is_done() && child.try_wait().expect("a child").is_none() {
        send("HUP", &child);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(child.wait().expect("its end").code(), Some(0));
    assert!(run.is_done());
}
