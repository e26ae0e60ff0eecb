//! A program of the user that stays and scores: one JSON line in, one JSON line out, a batch at a time.
//!
//! For each batch it reads one line from its standard input and writes one line to its standard output ([`exchange`](super::exchange)
//! says what stands in them), flushed. In Python:
//!
//! ```python
//! for line in sys.stdin:
//!     batch = json.loads(line)["completions"]
//!     print(json.dumps([float(len(c["completion"])) for c in batch]), flush=True)
//! ```
//!
//! What it writes to its standard error reaches the terminal. It is started once, before training, and told that there is no
//! more by the end of its input; if it has not ended two seconds later it is killed. One that dies over a batch is started again
//! and asked again, once a batch. It must not remember: the score of a completion that a continued run asks for again must be
//! the same.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::exchange::{question, scores};
use super::{Batch, Reward, RewardError};
use crate::config::ProgramReward;

/// How long a program may take to end after its input has.
const FAREWELL: Duration = Duration::from_secs(2);

/// A program that scores.
pub struct Program {
    command: Vec<String>,
    timeout: Duration,
    running: Mutex<Running>,
}

/// The process, and the two threads that keep its pipes from filling: whoever waits for an answer waits with a time-out.
struct Running {
    child: Child,
    questions: Option<Sender<String>>,
    answers: Receiver<String>,
}

/// Why there is no answer.
enum Silence {
    Died,
    TooLate,
    /// It wrote a line before it was asked.
    Unasked(String),
}

impl Program {
    /// Starts the program.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(config: &ProgramReward) -> Result<Self, RewardError> {
        let running = Running::start(&config.command)?;
        Ok(Self {
            command: config.command.clone(),
            timeout: Duration::from_secs_f64(config.timeout_seconds.min(1e9)),
            running: Mutex::new(running),
        })
    }

    fn ask(&self, question: &str) -> Result<String, RewardError> {
        // A thread that panicked over the lock left a process like any other.
        let mut running = self.running.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(answer) = self.attempt(&mut running, question)? {
            return Ok(answer);
        }
        *running = Running::start(&self.command)?;
        if let Some(answer) = self.attempt(&mut running, question)? {
            return Ok(answer);
        }
        let how = running.end();
        Err(self.failed(format!(
            "ended ({how}) instead of answering, and did so again when it was started anew; what it says stands above"
        )))
    }

    /// The answer; none if the program died over the question.
    fn attempt(
        &self,
        running: &mut Running,
        question: &str,
    ) -> Result<Option<String>, RewardError> {
        match running.ask(question, self.timeout) {
            Ok(answer) => Ok(Some(answer)),
            Err(Silence::Died) => Ok(None),
            Err(Silence::Unasked(line)) => {
                let shown: String = line.chars().take(80).collect();
                Err(self.failed(format!(
                    "wrote a line that nobody asked for ({shown:?}); it may write one line for each that it reads, the rest goes to standard error"
                )))
            }
            Err(Silence::TooLate) => {
                running.kill();
                let seconds = self.timeout.as_secs_f64();
                Err(self.failed(format!(
                    "did not answer within {seconds} seconds; raise timeout_seconds, or see that it flushes its output after each line"
                )))
            }
        }
    }

    fn failed(&self, message: String) -> RewardError {
        failed(&self.command, message)
    }
}

impl Reward for Program {
    fn scores(&self, batch: &Batch) -> Result<Vec<f32>, RewardError> {
        let answer = self.ask(&question(batch.completions).to_string())?;
        scores(&answer, batch.completions.len()).map_err(|message| self.failed(message))
    }
}

impl Running {
    fn start(command: &[String]) -> Result<Self, RewardError> {
        let (program, arguments) = command
            .split_first()
            .map_or(("", &[][..]), |(program, rest)| (program.as_str(), rest));
        let mut process = Command::new(program);
        process
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // Ctrl-C is for the run, which still has an iteration to finish with the program's help.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut process, 0);
        let cannot = |error: std::io::Error| {
            failed(
                command,
                format!(
                    "cannot be started: {error}; command takes a program and its arguments, [\"python3\", \"reward.py\"]"
                ),
            )
        };
        let mut child = process.spawn().map_err(cannot)?;
        let (questions, to_write) = channel::<String>();
        let (to_read, answers) = channel();
        if let Some(mut input) = child.stdin.take() {
            thread::spawn(move || {
                let write = |line: String| {
                    input
                        .write_all(line.as_bytes())
                        .and_then(|()| input.flush())
                };
                // A program that has died is noticed by its answers' end.
                let _ = to_write.into_iter().try_for_each(write);
            });
        }
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || {
                let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
                let text = |line: Vec<u8>| String::from_utf8_lossy(&line).into_owned();
                lines
                    .map(text)
                    .take_while(|line| to_read.send(line.clone()).is_ok())
                    .for_each(drop);
            });
        }
        Ok(Self {
            child,
            questions: Some(questions),
            answers,
        })
    }

    fn ask(&mut self, question: &str, timeout: Duration) -> Result<String, Silence> {
        // An answer too many would be taken for that of the next question.
        if let Ok(line) = self.answers.try_recv() {
            return Err(Silence::Unasked(line));
        }
        let questions = self.questions.as_ref().ok_or(Silence::Died)?;
        questions
            .send(format!("{question}\n"))
            .map_err(|_| Silence::Died)?;
        self.answers
            .recv_timeout(timeout)
            .map_err(|error| match error {
                RecvTimeoutError::Timeout => Silence::TooLate,
                RecvTimeoutError::Disconnected => Silence::Died,
            })
    }

    /// Ends the program's input and waits for it, not for long; says how it ended.
    fn end(&mut self) -> String {
        self.questions = None;
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.to_string(),
                Ok(None) if start.elapsed() < FAREWELL => thread::sleep(Duration::from_millis(5)),
                Ok(None) => {
                    self.kill();
                    return "it closed its output".to_owned();
                }
                Err(error) => return error.to_string(),
            }
        }
    }

    fn kill(&mut self) {
        self.questions = None;
        // What cannot be killed has ended. Under a shell it is the shell's child that works: the group goes.
        #[cfg(unix)]
        if let Ok(group) = i32::try_from(self.child.id()) {
            // SAFETY: the call touches no memory; the group is the program's own, and it has not been waited for yet, so that its
            // id is nobody else's.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn failed(command: &[String], message: String) -> RewardError {
    RewardError::Program {
        command: command.join(" "),
        message,
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::reward::sample::score_texts;

    fn program(script: &str, timeout_seconds: f64) -> Program {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        Program::start(&ProgramReward {
            command,
            timeout_seconds,
        })
        .unwrap()
    }

    fn score(program: &Program, texts: &[&str]) -> Result<Vec<f32>, String> {
        score_texts(program, texts).map_err(|error| error.to_string())
    }

    /// Answers each batch with how many lines it has read, as many times as there are completions.
    const COUNTING: &str = r#"n=0; while read -r line; do n=$((n + 1))
        k=$(printf '%s' "$line" | grep -o '"completion":' | wc -l)
        s=$n; i=1; while [ $i -lt $k ]; do s="$s, $n"; i=$((i + 1)); done; echo "[$s]"; done"#;

    #[test]
    fn one_process_answers_batch_after_batch() {
        let program = program(COUNTING, 20.0);
        assert_eq!(score(&program, &["a", "b", "c"]), Ok(vec![1.0; 3]));
        assert_eq!(score(&program, &["d"]), Ok(vec![2.0]));
        // More than a pipe holds, in one line.
        let long = "x".repeat(1 << 18);
        assert_eq!(score(&program, &[&long, "\n\"", ""]), Ok(vec![3.0; 3]));
    }

    #[test]
    fn a_program_that_dies_is_started_again_once_a_batch() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark").display().to_string();
        // Dies over the first batch of its first life.
        let once =
            format!("if [ ! -e {mark} ]; then read -r l; touch {mark}; exit 3; fi; {COUNTING}");
        let revived = program(&once, 20.0);
        assert_eq!(score(&revived, &["a"]), Ok(vec![1.0]));
        assert!(Path::new(&mark).exists());
        let mortal = program("read -r l; exit 3", 20.0);
        let error = score(&mortal, &["a"]).unwrap_err();
        assert!(error.contains("sh -c read -r l; exit 3"), "{error}");
        assert!(
            error.contains("exit status: 3") && error.contains("again"),
            "{error}"
        );
    }

    #[test]
    fn a_line_too_many_is_not_the_next_answer() {
        let twice = program("while read -r l; do echo [1]; echo [1]; done", 20.0);
        assert_eq!(score(&twice, &["a"]), Ok(vec![1.0]));
        let answer = |_| {
            // The second line may take its time.
            thread::sleep(Duration::from_millis(20));
            score(&twice, &["b"])
        };
        let error = (0..100).find_map(|i| answer(i).err()).unwrap();
        assert!(
            error.contains("nobody asked for") && error.contains("[1]"),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_is_too_slow_is_killed() {
        let start = Instant::now();
        let slow = program("sleep 60", 0.2);
        let error = score(&slow, &["a"]).unwrap_err();
        assert!(
            error.contains("did not answer within 0.2 seconds"),
            "{error}"
        );
        drop(slow);
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_wrong_answer_names_the_program_and_what_it_said() {
        let error = score(
            &program("while read -r l; do echo [1]; done", 20.0),
            &["a", "b"],
        );
        let error = error.unwrap_err();
        assert!(
            error.contains("while read") && error.contains("\"[1]\""),
            "{error}"
        );
        let error = score(
            &program("read -r l; echo ready; cat > /dev/null", 20.0),
            &["a"],
        )
        .unwrap_err();
        assert!(
            error.contains("\"ready\"") && error.contains("not JSON"),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let command = vec!["no-such-program-here".to_owned()];
        let error = Program::start(&ProgramReward {
            command,
            ..ProgramReward::default()
        });
        let error = error.err().unwrap().to_string();
        assert!(
            error.contains("`no-such-program-here` cannot be started"),
            "{error}"
        );
    }

    #[test]
    fn the_end_of_input_ends_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        drop(program(
            &format!("cat > /dev/null; touch {}", mark.display()),
            20.0,
        ));
        assert!(mark.exists());
    }
}
