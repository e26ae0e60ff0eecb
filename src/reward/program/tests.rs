use std::path::Path;
use std::time::Instant;

use super::*;
use crate::reward::sample::score_texts;

fn program(script: &str, timeout_seconds: f64) -> Program {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let config = ProgramReward {
        command,
        timeout_seconds,
    };
    Program::start("polite", &config).unwrap()
}

fn score(program: &Program, texts: &[&str]) -> Result<Vec<f32>, String> {
    score_texts(program, texts).map_err(|error| error.to_string())
}

/// Answers each batch with the number of lines read so far, once for each completion.
const COUNTING: &str = r#"n=0; while read -r line; do n=$((n + 1))
    k=$(printf '%s' "$line" | grep -o '"completion":' | wc -l)
    s=$n; i=1; while [ $i -lt $k ]; do s="$s, $n"; i=$((i + 1)); done; echo "[$s]"; done"#;

#[test]
fn one_process_answers_batch_after_batch() {
    let program = program(COUNTING, 20.0);
    assert_eq!(score(&program, &["a", "b", "c"]), Ok(vec![1.0; 3]));
    assert_eq!(score(&program, &["d"]), Ok(vec![2.0]));
    // One line longer than the capacity of a pipe.
    let long = "x".repeat(1 << 18);
    assert_eq!(score(&program, &[&long, "\n\"", ""]), Ok(vec![3.0; 3]));
}

#[test]
fn a_program_that_dies_is_started_again_once_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("mark").display().to_string();
    // Dies during the first batch of its first run.
    let once = format!("if [ ! -e {mark} ]; then read -r l; touch {mark}; exit 3; fi; {COUNTING}");
    let revived = program(&once, 20.0);
    assert_eq!(score(&revived, &["a"]), Ok(vec![1.0]));
    assert!(Path::new(&mark).exists());
    let restarts = revived.running().restarts;
    assert_eq!(restarts, 1);
    assert_eq!(
        revived.restart_note("exit status: 3", restarts),
        "reward polite: the program ended (exit status: 3) and was started again (1 restart so far)"
    );
    let mortal = program("read -r l; exit 3", 20.0);
    let error = score(&mortal, &["a"]).unwrap_err();
    assert!(error.contains("sh -c read -r l; exit 3"), "{error}");
    assert!(
        error.contains("exit status: 3") && error.contains("also after a restart"),
        "{error}"
    );
}

/// The first error of `questions` batches and of the end of the program.
fn first_error(script: &str, questions: usize) -> Result<(), String> {
    let program = program(script, 20.0);
    (0..questions).try_for_each(|_| score(&program, &["a"]).map(drop))?;
    program.finish().map_err(|error| error.to_string())
}

/// An extra line is an error wherever and however late it comes, every time.
#[test]
fn a_surplus_line_is_an_error_every_time() {
    let scripts = [
        // Immediately, after each request.
        "while read -r l; do echo [1]; echo [2]; done",
        // Only after the last response.
        "read -r l; echo [1]; read -r l; echo [1]; echo [2]; cat > /dev/null",
        // Late, after a delay.
        "read -r l; echo [1]; read -r l; echo [1]; sleep 0.2; echo [2]; cat > /dev/null",
        // At the end of input.
        "while read -r l; do echo [1]; done; echo [2]",
        // Without the end of a line.
        "while read -r l; do echo [1]; done; printf [2]",
        // From a child that outlives the program.
        "(sleep 0.1; echo [2]) & while read -r l; do echo [1]; done; sleep 0.3",
    ];
    for script in scripts {
        for _ in 0..5 {
            let error = first_error(script, 2).expect_err(script);
            let says = error.contains("an extra line") && error.contains("\"[2]\"");
            assert!(says, "{script}: {error}");
        }
    }
}

#[test]
fn a_line_before_the_first_question_is_an_error() {
    for _ in 0..5 {
        // Read before the request, or taken for its response.
        let error = first_error("echo loading; while read -r l; do echo [1]; done", 1);
        let error = error.unwrap_err();
        let says = ["\"loading\"", "an extra line"];
        assert!(says.iter().any(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn blank_lines_are_passed_over_and_the_last_line_may_lack_its_end() {
    let blank = "echo; while read -r l; do echo; echo [1]; echo ' '; done; echo; exit 3";
    assert_eq!(first_error(blank, 3), Ok(()));
    assert_eq!(first_error("read -r l; printf [1]", 1), Ok(()));
}

#[test]
fn a_line_without_end_and_a_flood_are_not_held() {
    let endless = "read -r l; tr '\\0' x < /dev/zero";
    let error = first_error(endless, 1).unwrap_err();
    assert!(
        error.contains("16 MiB without a newline") && error.contains("tr"),
        "{error}"
    );
    let error = first_error("read -r l; tr '\\0' '\\n' < /dev/zero", 1).unwrap_err();
    assert!(error.contains("16 MiB without"), "{error}");
    let error = first_error("read -r l; yes", 1).unwrap_err();
    assert!(error.contains("an extra line (\"y\")"), "{error}");
    let noisy = "read -r l; head -c 5000000 /dev/zero >&2; echo [1]; cat";
    let error = first_error(noisy, 1).unwrap_err();
    assert!(
        error.contains("more than 1 MiB to standard error"),
        "{error}"
    );
}

/// Whether a process runs. A killed process that was not waited for does not.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits for a killed process to end, and returns whether it did.
fn ends(pid: &str) -> bool {
    let start = Instant::now();
    while runs(pid) && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    !runs(pid)
}

#[test]
#[cfg(target_os = "linux")]
fn descendants_end_with_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("pid").display().to_string();
    let child = format!("sleep 60 & echo $! > {mark}");
    let descendant = || std::fs::read_to_string(&mark).unwrap();
    let answering = format!("{child}; while read -r l; do echo [1]; done");
    let ended = program(&answering, 20.0);
    assert_eq!(score(&ended, &["a"]), Ok(vec![1.0]));
    assert!(runs(&descendant()));
    ended.finish().unwrap();
    assert!(ends(&descendant()));
    // Descendants also end when the program is dropped without `finish`, and after an error.
    let dropped = program(&answering, 20.0);
    assert_eq!(score(&dropped, &["a"]), Ok(vec![1.0]));
    drop(dropped);
    assert!(ends(&descendant()));
    let dying = program(&format!("{child}; read -r l; exit 3"), 20.0);
    let error = score(&dying, &["a"]).unwrap_err();
    assert!(error.contains("exit status: 3"), "{error}");
    assert!(ends(&descendant()));
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
    let config = ProgramReward {
        command,
        ..ProgramReward::default()
    };
    let error = Program::start("polite", &config);
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
