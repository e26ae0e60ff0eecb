//! The work between two steps and before the first: loading, reading, evaluating, saving; each with
//! its label and its own count.
//!
//! A phase says what it is and how far it is; a background thread shows it, so that counting costs
//! the work nothing. On a terminal the line changes in place. In a file a phase that lasts has a
//! line after `FIRST_LINE` and then every `SILENCE`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::words::{duration, rate};
use crate::terminal;

/// Time between two drawings of a terminal's line.
const REDRAW: Duration = Duration::from_millis(100);

/// The age at which a phase has its first line in a file.
const FIRST_LINE: Duration = Duration::from_secs(2);

/// Longest time without a line in a file while a phase lasts.
const SILENCE: Duration = Duration::from_secs(30);

/// The age from which a rate is shown.
const SETTLED: Duration = Duration::from_secs(1);

/// Phases of a step that are younger than this leave the line to the numbers of the last step.
const BRIEF: Duration = Duration::from_millis(400);

static BOARD: Mutex<Board> = Mutex::new(Board::new());
static SHOWING: Once = Once::new();

/// Work under way; it is over when the value is dropped.
#[derive(Debug)]
pub struct Phase(Arc<Work>);

#[derive(Debug)]
struct Work {
    label: String,
    /// Items in all; 0 where they cannot be counted.
    total: usize,
    done: AtomicUsize,
    began: Instant,
}

/// Phases under way in this process.
#[derive(Debug)]
struct Board {
    /// The stage or command: `sft`; empty between stages.
    stage: String,
    /// The stage with its step: `sft 12/400`; empty before its steps and after them.
    title: String,
    /// Numbers of the newest step, with rate and time left.
    numbers: String,
    /// Outermost first.
    phases: Vec<Arc<Work>>,
    /// When a phase last had a line in a file.
    last_line: Option<Instant>,
}

impl Phase {
    /// Begins work that cannot be counted.
    pub fn begin(label: impl Into<String>) -> Self {
        Self::counted(label, 0)
    }

    /// Begins work of `total` items.
    pub fn counted(label: impl Into<String>, total: usize) -> Self {
        let work = Arc::new(Work {
            label: label.into(),
            total,
            done: AtomicUsize::new(0),
            began: Instant::now(),
        });
        board().phases.push(Arc::clone(&work));
        show_from_now_on();
        Self(work)
    }

    /// Sets the number of finished items.
    pub fn at(&self, done: usize) {
        self.0.done.store(done, Ordering::Relaxed);
    }

    /// Adds to the number of finished items.
    pub fn add(&self, more: usize) {
        self.0.done.fetch_add(more, Ordering::Relaxed);
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        let mut board = board();
        board.phases.retain(|work| !Arc::ptr_eq(work, &self.0));
        board.clear_if_idle();
    }
}

/// Sets the step that the following phases belong to, and the numbers of the newest step.
pub fn entitle(title: String, numbers: String) {
    {
        let mut board = board();
        (board.title, board.numbers) = (title, numbers);
    }
    show_from_now_on();
}

/// Clears the step and its numbers.
pub fn untitle() {
    let mut board = board();
    board.title.clear();
    board.numbers.clear();
    board.clear_if_idle();
}

/// Names the stage or command that phases belong to, until the value is dropped.
#[derive(Debug)]
pub struct NamedStage(());

impl NamedStage {
    /// Shows the stage's name in progress lines until the value is dropped.
    pub fn new(stage: &str) -> Self {
        board().stage = stage.to_owned();
        Self(())
    }
}

impl Drop for NamedStage {
    fn drop(&mut self) {
        let mut board = board();
        board.stage.clear();
        board.clear_if_idle();
    }
}

/// Starts the thread that draws progress; if it cannot be started, no progress is shown.
fn show_from_now_on() {
    SHOWING.call_once(|| {
        let show = match terminal::is_live() {
            true => redraw as fn(),
            false => write_when_due,
        };
        let forever = move || loop {
            thread::sleep(REDRAW);
            show();
        };
        // The rest of the program works without it.
        let _ = thread::Builder::new()
            .name("progress".into())
            .spawn(forever);
    });
}

fn redraw() {
    let board = board();
    let line = terminal::fit(&board.line(Instant::now()), terminal::columns());
    // The board is still held, so that a line that another thread has removed does not come back.
    terminal::show_status(line);
}

fn write_when_due() {
    let (mut board, now) = (board(), Instant::now());
    if board.is_due(now) {
        board.last_line = Some(now);
        terminal::note(terminal::fit(&board.line(now), terminal::COLUMNS));
    }
}

fn board() -> MutexGuard<'static, Board> {
    BOARD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    const fn new() -> Self {
        Self {
            stage: String::new(),
            title: String::new(),
            numbers: String::new(),
            phases: Vec::new(),
            last_line: None,
        }
    }

    /// Takes the terminal's line away where nothing is under way.
    fn clear_if_idle(&self) {
        if self.phases.is_empty() && self.title.is_empty() && terminal::is_live() {
            terminal::show_status(String::new());
        }
    }

    /// True if a file should have a line now.
    fn is_due(&self, now: Instant) -> bool {
        let lasts = |work: &Arc<Work>| now.duration_since(work.began) >= FIRST_LINE;
        let silent = |last| now.duration_since(last) >= SILENCE;
        self.phases.first().is_some_and(lasts) && self.last_line.is_none_or(silent)
    }

    /// `sft 12/400: evaluating 3/12  1.52/s, 6 seconds left`; without a phase what the step had to
    /// say.
    fn line(&self, now: Instant) -> String {
        let title = match self.title.is_empty() {
            true => &self.stage,
            false => &self.title,
        };
        let brief = |work: &Arc<Work>| now.duration_since(work.began) < BRIEF;
        let brief = !self.numbers.is_empty() && self.phases.first().is_some_and(brief);
        let Some((innermost, outer)) = self.phases.split_last().filter(|_| !brief) else {
            return match self.numbers.is_empty() {
                true => title.clone(),
                false => format!("{title}  {}", self.numbers),
            };
        };
        let colon = if title.is_empty() { "" } else { ": " };
        let innermost = innermost.line(now);
        let outer: String = outer.iter().map(|w| format!("{}, ", w.label)).collect();
        let line = format!("{title}{colon}{outer}{innermost}");
        // The count is what one looks for: rather than lose it, what it is a part of goes.
        match line.chars().count() < terminal::COLUMNS {
            true => line,
            false => format!("{title}{colon}{innermost}"),
        }
    }
}

impl Work {
    fn line(&self, now: Instant) -> String {
        let (done, age) = (
            self.done.load(Ordering::Relaxed),
            now.duration_since(self.began),
        );
        let label = &self.label;
        if self.total == 0 {
            return match age >= SETTLED {
                true => format!("{label}  {}", duration(age)),
                false => label.clone(),
            };
        }
        let counted = format!("{label} {done}/{}", self.total);
        if done == 0 || age < SETTLED {
            return counted;
        }
        let speed = done as f64 / age.as_secs_f64();
        let left = self.total.saturating_sub(done) as f64 / speed;
        match Duration::try_from_secs_f64(left) {
            Ok(left) => format!("{counted}  {}, {} left", rate(speed, ""), duration(left)),
            Err(_) => counted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(label: &str, total: usize, done: usize, began: Instant) -> Arc<Work> {
        Arc::new(Work {
            label: label.to_owned(),
            total,
            done: AtomicUsize::new(done),
            began,
        })
    }

    fn board(phases: Vec<Arc<Work>>) -> Board {
        Board {
            stage: "ppo".to_owned(),
            title: "ppo 0/6".to_owned(),
            numbers: "score 0.100".to_owned(),
            phases,
            last_line: None,
        }
    }

    #[test]
    fn each_phase_has_its_label_and_its_own_count() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(board(vec![]).line(start), "ppo 0/6  score 0.100");
        let loading = work("loading m/base", 0, 0, start);
        assert_eq!(
            board(vec![Arc::clone(&loading)]).line(start),
            "ppo 0/6  score 0.100",
            "too young to take the line"
        );
        assert_eq!(
            board(vec![Arc::clone(&loading)]).line(start + BRIEF),
            "ppo 0/6: loading m/base"
        );
        assert_eq!(
            board(vec![loading]).line(at(75)),
            "ppo 0/6: loading m/base  75 s"
        );
        let outer = work("evaluating before training", 0, 0, start);
        let inner = work("sampling", 256, 64, at(2));
        assert_eq!(
            board(vec![outer, inner]).line(at(10)),
            "ppo 0/6: evaluating before training, sampling 64/256  8.00/s, 24 s left"
        );
        let mut before = board(vec![work("sampling", 256, 0, start)]);
        assert_eq!(before.line(at(60)), "ppo 0/6: sampling 0/256");
        before.title.clear();
        assert_eq!(before.line(at(60)), "ppo: sampling 0/256");
    }

    #[test]
    fn a_file_has_a_line_of_what_lasts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut board = board(vec![]);
        assert!(!board.is_due(at(100)));
        board.phases.push(work("reading", 9, 0, start));
        assert!(!board.is_due(at(1)) && board.is_due(at(2)));
        board.phases.push(work("tokenizing", 9, 0, at(2)));
        assert!(board.is_due(at(2)), "the whole has lasted");
        board.last_line = Some(at(2));
        assert!(!board.is_due(at(31)) && board.is_due(at(32)));
    }

    #[test]
    fn a_phase_ends_when_it_is_dropped() {
        let phase = Phase::counted("a phase of this test", 3);
        phase.add(2);
        let held = Arc::clone(&phase.0);
        assert_eq!(held.done.load(Ordering::Relaxed), 2);
        let listed = |work: &Arc<Work>| super::board().phases.iter().any(|w| Arc::ptr_eq(w, work));
        assert!(listed(&held));
        drop(phase);
        assert!(!listed(&held));
    }
}
