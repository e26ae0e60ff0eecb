//! A child process that answers requests, one line each. Its output is bounded, and it is ended
//! with all its descendants.
//!
//! Two threads read its pipes. At most [`QUEUED`] lines of at most [`LONGEST_RESPONSE`] bytes are
//! queued; then the pipe fills and the process waits. Standard error is passed on, up to
//! [`MOST_MESSAGES`] bytes for one request. The bytes are counted once the process has read the
//! first request, since a program that loads a model may print a lot before.
//!
//! The process leads a process group, which is killed when the process has ended or is dropped. If
//! this program dies without cleaning up (SIGKILL, a second Ctrl-C), a small shell that waits for
//! the end of a pipe kills the group. Not covered: a descendant that leaves the group (`setsid`).

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::reward::exchange::LONGEST_RESPONSE;
use crate::terminal;

/// Time that the process gets to end after its input has ended.
const FAREWELL: Duration = Duration::from_secs(2);
/// Time that the pipes get to end after the group was killed; a descendant outside the group may
/// hold them open.
const PIPES: Duration = Duration::from_secs(1);
/// Time to wait for a surplus line after a response; most follow at once.
const QUIET: Duration = Duration::from_millis(10);
/// Interval of the checks whether the process still runs.
const LOOK: Duration = Duration::from_millis(50);
/// Number of lines that are queued.
const QUEUED: usize = 2;
/// Most bytes of standard error for one request.
pub(super) const MOST_MESSAGES: usize = 1 << 20;

/// A running process.
pub(super) struct ScoringProcess {
    child: Child,
    /// Exit status of the process, once it was waited for.
    status: Option<ExitStatus>,
    guard: Option<Child>,
    requests: Option<Sender<String>>,
    output: Receiver<ProcessOutput>,
    messages: Option<JoinHandle<()>>,
    stderr: Arc<StderrState>,
}

/// The count of bytes that the process writes to standard error.
#[derive(Default)]
struct StderrState {
    /// Bytes since the last request.
    bytes: AtomicUsize,
    /// Whether the first request has been written.
    request_written: AtomicBool,
}

/// An event of the process's output.
enum ProcessOutput {
    Line(String),
    /// More than [`LONGEST_RESPONSE`] bytes without a newline.
    EndlessLine,
    /// More than [`MOST_MESSAGES`] bytes on standard error.
    Flood,
    /// The end of standard output.
    End,
}

/// Why a request or the end failed.
pub(super) enum Fault {
    Died,
    TooLate,
    /// A line besides the one for each request.
    Surplus(String),
    EndlessLine,
    Flood,
}

impl ScoringProcess {
    /// Starts a program with its arguments.
    ///
    /// # Errors
    /// If the system cannot start it.
    pub fn start(command: &[String]) -> std::io::Result<Self> {
        let (program, arguments) = command
            .split_first()
            .map_or(("", &[][..]), |(program, rest)| (program.as_str(), rest));
        let mut process = Command::new(program);
        process
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Ctrl-C is for the run, which still has an iteration to finish with the program's help.
        own_group(&mut process);
        let mut child = process.spawn()?;
        let guard = guard(child.id());
        let stderr = Arc::new(StderrState::default());
        let input = child.stdin.take().map(Arc::new);
        let (written, output) = sync_channel(QUEUED);
        let messages = child.stderr.take().map(|pipe| {
            let (written, stderr) = (written.clone(), Arc::clone(&stderr));
            // The input ends with its writer.
            let input = input.as_ref().map(Arc::downgrade).unwrap_or_default();
            thread::spawn(move || pass_on(pipe, &stderr, &input, &written))
        });
        if let Some(pipe) = child.stdout.take() {
            thread::spawn(move || read_lines(BufReader::new(pipe), &written));
        }
        let requests = input.map(|input| write_lines(input, Arc::clone(&stderr)));
        Ok(Self {
            child,
            status: None,
            guard,
            requests,
            output,
            messages,
            stderr,
        })
    }

    /// Sends a request and returns the response line.
    ///
    /// # Errors
    /// If the response does not come in time, or another line comes before or right after it.
    pub fn response_to(&mut self, request: &str, timeout: Duration) -> Result<String, Fault> {
        self.nothing_more(Duration::ZERO)?;
        self.stderr.bytes.store(0, Ordering::Relaxed);
        let requests = self.requests.as_ref().ok_or(Fault::Died)?;
        requests
            .send(format!("{request}\n"))
            .map_err(|_| Fault::Died)?;
        let response = self.read_response(timeout)?;
        self.nothing_more(QUIET)?;
        Ok(response)
    }

    fn read_response(&mut self, timeout: Duration) -> Result<String, Fault> {
        let start = Instant::now();
        loop {
            // Checked first: a line written before the end is read below.
            let ended = self.has_ended();
            let left = timeout.saturating_sub(start.elapsed());
            match self.output.recv_timeout(left.min(LOOK)) {
                Ok(ProcessOutput::Line(line)) => return Ok(line),
                Ok(ProcessOutput::End) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(Fault::Died);
                }
                Ok(ProcessOutput::EndlessLine) => return Err(Fault::EndlessLine),
                Ok(ProcessOutput::Flood) => return Err(Fault::Flood),
                // A descendant may hold the output open after the process has ended.
                Err(RecvTimeoutError::Timeout) if ended => return Err(Fault::Died),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Err(Fault::TooLate),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Waits up to `time`, or until the output ends, and fails if the process writes a line.
    fn nothing_more(&mut self, time: Duration) -> Result<(), Fault> {
        match self.output.recv_timeout(time) {
            Ok(ProcessOutput::Line(line)) => Err(Fault::Surplus(line)),
            Ok(ProcessOutput::EndlessLine) => Err(Fault::EndlessLine),
            Ok(ProcessOutput::Flood) => Err(Fault::Flood),
            Ok(ProcessOutput::End) => {
                self.requests = None;
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    /// Ends the input, and reads the output to its end: any line after the last response is an
    /// error, however late it comes. A process that does not end by itself is killed.
    ///
    /// # Errors
    /// If the process wrote another line.
    pub fn finish(&mut self) -> Result<(), Fault> {
        self.wait_for_end();
        self.kill();
        let start = Instant::now();
        while start.elapsed() < PIPES {
            match self.output.recv_timeout(PIPES) {
                Ok(ProcessOutput::End) | Err(_) => break,
                Ok(ProcessOutput::Line(line)) => return Err(Fault::Surplus(line)),
                Ok(ProcessOutput::EndlessLine) => return Err(Fault::EndlessLine),
                Ok(ProcessOutput::Flood) => {}
            }
        }
        Ok(())
    }

    /// Ends the process and its descendants; returns how the process ended, in words.
    pub fn end(&mut self) -> String {
        self.wait_for_end();
        let by_itself = self.has_ended();
        match self.kill() {
            Some(status) if by_itself => status.to_string(),
            _ => "it closed its output".to_owned(),
        }
    }

    /// Ends the input, and waits up to [`FAREWELL`] for the process to end.
    fn wait_for_end(&mut self) {
        self.requests = None;
        let start = Instant::now();
        while !self.has_ended() && start.elapsed() < FAREWELL {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Kills the process and its descendants, and waits until its messages have been passed on.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        self.requests = None;
        if self.status.is_some() {
            return self.status;
        }
        // The group is killed before the process is waited for: until then its id cannot be reused.
        kill_group(self.child.id());
        let _ = self.child.kill();
        self.status = self.child.wait().ok();
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.kill();
            let _ = guard.wait();
        }
        let start = Instant::now();
        let unread = |messages: &JoinHandle<()>| !messages.is_finished();
        while self.messages.as_ref().is_some_and(unread) && start.elapsed() < PIPES {
            thread::sleep(Duration::from_millis(1));
        }
        self.status
    }
}

impl Drop for ScoringProcess {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts a thread that writes each line sent to it to the process's input; the input ends when the
/// sender is dropped.
fn write_lines(input: Arc<ChildStdin>, stderr: Arc<StderrState>) -> Sender<String> {
    let (requests, to_write) = channel::<String>();
    thread::spawn(move || {
        let write = |line: String| {
            let written = (&*input).write_all(line.as_bytes());
            stderr.request_written.store(true, Ordering::Release);
            written
        };
        // The end of the output shows that the process has died.
        let _ = to_write.into_iter().try_for_each(write);
    });
    requests
}

/// Sends each line that the process writes, blank ones excepted, until the output ends or the
/// receiver is dropped.
fn read_lines(mut output: impl BufRead, written: &SyncSender<ProcessOutput>) {
    loop {
        let line = read_line(&mut output);
        let is_last = !matches!(line, ProcessOutput::Line(_));
        if written.send(line).is_err() || is_last {
            return;
        }
    }
}

/// The next line that is not blank. The last line may lack its newline.
fn read_line(output: &mut impl BufRead) -> ProcessOutput {
    let mut left = LONGEST_RESPONSE as u64;
    loop {
        let mut line = Vec::new();
        let read = output.by_ref().take(left).read_until(b'\n', &mut line);
        let read = read.unwrap_or(0) as u64;
        left -= read;
        let text = String::from_utf8_lossy(&line);
        match (read, left) {
            (0, _) => return ProcessOutput::End,
            (_, 0) => return ProcessOutput::EndlessLine,
            _ if text.trim().is_empty() => {}
            _ => return ProcessOutput::Line(text.strip_suffix('\n').unwrap_or(&text).to_owned()),
        }
    }
}

/// Passes standard error of the process on to the terminal; reports when there is too much of it,
/// and drops the rest.
fn pass_on(
    mut pipe: impl Read,
    stderr: &StderrState,
    input: &Weak<ChildStdin>,
    written: &SyncSender<ProcessOutput>,
) {
    let mut part = [0; 1 << 13];
    let (mut counts, mut flooded) = (false, false);
    while let Ok(read @ 1..) = pipe.read(&mut part) {
        counts = counts || stderr.request_written.load(Ordering::Acquire) && is_read(input);
        let counted = if counts { read } else { 0 };
        let many = stderr.bytes.fetch_add(counted, Ordering::Relaxed) + counted > MOST_MESSAGES;
        match (many, flooded) {
            (false, _) => terminal::pass_on(&part[..read]),
            (true, false) => flooded = written.try_send(ProcessOutput::Flood).is_ok(),
            (true, true) => {}
        }
    }
}

/// Whether the process has read everything that was written to its input; true if the input has
/// ended.
#[expect(unsafe_code, reason = "ioctl is a call of the C library")]
#[cfg(target_os = "linux")]
fn is_read(input: &Weak<ChildStdin>) -> bool {
    use std::os::fd::AsRawFd;
    let Some(input) = input.upgrade() else {
        return true;
    };
    let mut unread: libc::c_int = 0;
    // SAFETY: the descriptor is open as long as `input` lives, and the call writes one number.
    let status = unsafe { libc::ioctl(input.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
    status != 0 || unread == 0
}

/// Other systems cannot tell this for the writing end of a pipe.
#[cfg(not(target_os = "linux"))]
fn is_read(_: &Weak<ChildStdin>) -> bool {
    true
}

#[cfg(unix)]
fn own_group(process: &mut Command) {
    std::os::unix::process::CommandExt::process_group(process, 0);
}

#[cfg(not(unix))]
fn own_group(_: &mut Command) {}

/// Starts a shell that kills the process group `group` two seconds after this program has ended,
/// for whatever reason.
#[cfg(unix)]
fn guard(group: u32) -> Option<Child> {
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", "read -r _; sleep 2; kill -s KILL -- \"-$1\"", "sh"])
        .arg(group.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    own_group(&mut shell);
    // Without the shell the program of a killed run lasts until it notices the end of its input.
    shell.spawn().ok()
}

#[cfg(not(unix))]
fn guard(_: u32) -> Option<Child> {
    None
}

#[expect(unsafe_code, reason = "kill is a call of the C library")]
#[cfg(unix)]
fn kill_group(leader: u32) {
    if let Ok(group) = i32::try_from(leader) {
        // SAFETY: the call touches no memory; the leader has not been waited for, so the group's id
        // is nobody else's.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

#[cfg(not(unix))]
fn kill_group(_: u32) {}

impl ScoringProcess {
    /// Whether the process has ended. It is not waited for, so that its id is not reused.
    #[expect(unsafe_code, reason = "waitid is a call of the C library")]
    #[cfg(unix)]
    fn has_ended(&mut self) -> bool {
        if self.status.is_some() {
            return true;
        }
        // SAFETY: a struct of plain numbers, for which zeros are a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: the call writes to `info` alone.
        let looked = unsafe { libc::waitid(libc::P_PID, self.child.id(), &raw mut info, flags) };
        // SAFETY: `waitid` has filled the structure, or left its zeros where no process has ended.
        looked != 0 || unsafe { info.si_pid() } != 0
    }

    #[cfg(not(unix))]
    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}
