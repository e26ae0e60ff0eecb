//! System limits: file size, number of threads, address space.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::{Ended, Workspace};

/// Longest time a run may take to notice that it cannot run.
const SOON: Duration = Duration::from_secs(60);

/// Sets a resource limit for the process that the command starts.
fn limited(command: &mut Command, resource: libc::__rlimit_resource_t, limit: u64) -> &mut Command {
    let set = move || {
        let limit = libc::rlimit {
            rlim_cur: limit,
            rlim_max: limit,
        };
        // SAFETY: the call only reads the limit.
        match unsafe { libc::setrlimit(resource, &raw const limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec only the limit is set.
    unsafe { command.pre_exec(set) }
}

/// Runs a command that must end within a few seconds.
pub fn ends_soon(command: &mut Command) -> Ended {
    let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary");
    let started = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if started.elapsed() > SOON {
            child.kill().expect("a child");
            panic!("still running after {SOON:?}");
        }
        sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("its output");
    Ended {
        code: output.status.code(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn a_file_that_may_not_grow_is_an_error_that_names_it() {
    let workspace = Workspace::trained();
    let arguments = "sft config.toml --set sft.max_steps=4 --set sft.save_steps=2";
    let mut command = workspace.command(arguments);
    let ended = ends_soon(limited(&mut command, libc::RLIMIT_FSIZE, 32 << 10));
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let said = &ended.stderr;
    assert!(
        said.contains("error: ") && said.contains("File too large"),
        "{said}"
    );
    assert!(said.contains("checkpoints"), "{said}");
    // The half-written file is gone, and without the limit the run completes.
    let ended = workspace.succeed(arguments);
    assert!(!ended.stderr.contains("damaged"), "{}", ended.stderr);
}

#[test]
fn threads_that_cannot_be_started_are_an_error() {
    let workspace = Workspace::trained();
    for arguments in [
        "sft config.toml --set sft.max_steps=2 --set run.threads=16",
        "ppo config.toml --set ppo.max_steps=1 --set run.threads=16",
        "generate --model models/sft --prompts prompts.jsonl --out o.jsonl",
    ] {
        for space in [200_000_u64, 51_200] {
            let mut command = workspace.command(arguments);
            command.env("RAYON_NUM_THREADS", "16");
            let ended = ends_soon(limited(&mut command, libc::RLIMIT_AS, space * 1024));
            assert_eq!(ended.code, Some(1), "{arguments}: {}", ended.stderr);
            assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
            let says = "cannot start the compute threads";
            assert!(ended.stderr.contains(says), "{arguments}: {}", ended.stderr);
        }
    }
}
