//! The progress of a stage or command through its steps: a line that changes in place on a
//! terminal, plain lines if the output goes to a file.
//!
//! Progress goes to standard error; standard output is for results. Work between the steps is shown
//! by [`Phase`](phase::Phase).

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::terminal::words::{digits, duration, rate};
use crate::terminal::{self, phase};

/// Plain lines come at least this often, however slow the steps.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

/// Plain lines come at most this often, however fast the steps.
const SHORTEST_SILENCE: Duration = Duration::from_secs(2);

/// The progress of one stage.
#[derive(Debug)]
pub struct Progress {
    stage: String,
    unit: &'static str,
    total: u64,
    /// Step and time at which this process started.
    began: (u64, Instant),
    display: Display,
}

#[derive(Debug)]
enum Display {
    /// The terminal's line, and its newest text.
    Live(String),
    Plain(PlainProgress),
}

/// Decides when a plain line is due.
#[derive(Debug)]
struct PlainProgress {
    every: u64,
    last: Option<Instant>,
}

impl Progress {
    /// Begins at step `start` of `total`: a line that changes if standard error is a terminal, else
    /// a line at most every `log_steps` steps.
    pub fn new(stage: &str, start: u64, total: u64, log_steps: u64) -> Self {
        Self::counting("steps", stage, start, total, log_steps)
    }

    /// [`Self::new`] for a command with another unit than steps; `unit` is a plural.
    pub fn counting(
        unit: &'static str,
        stage: &str,
        start: u64,
        total: u64,
        log_steps: u64,
    ) -> Self {
        let display = match terminal::is_live() {
            true => Display::Live(String::new()),
            false => Display::Plain(PlainProgress {
                every: log_steps.max(1),
                last: None,
            }),
        };
        phase::entitle(title(stage, start, total), String::new());
        Self {
            stage: stage.into(),
            unit,
            total,
            began: (start, Instant::now()),
            display,
        }
    }

    /// Shows that `step` is complete, with some of its metrics.
    pub fn step(&mut self, step: u64, numbers: &[(&str, f64)]) {
        let now = Instant::now();
        let shown = describe(numbers) + &self.time_left(step, now);
        let title = title(&self.stage, step, self.total);
        let line = terminal::fit(&format!("{title}  {shown}"), terminal::COLUMNS);
        phase::entitle(title, shown);
        match &mut self.display {
            Display::Live(last) => *last = line,
            Display::Plain(lines) => {
                if lines.is_due(step, self.total, now) {
                    terminal::note(line);
                }
            }
        }
    }

    /// Shows a line of its own, such as the result of an evaluation.
    pub fn note(&self, text: &str) {
        terminal::note(format_args!("{} {text}", self.stage));
    }

    /// Ends the display; a terminal keeps the last line.
    pub fn finish(&mut self) {
        if let Display::Live(last) = &mut self.display {
            let last = std::mem::take(last);
            phase::untitle();
            if !last.is_empty() {
                terminal::note(last);
            }
        }
    }

    /// Steps a second and time left, once they can be estimated.
    fn time_left(&self, step: u64, now: Instant) -> String {
        let (start, began) = self.began;
        let (done, seconds) = (
            step.saturating_sub(start),
            now.duration_since(began).as_secs_f64(),
        );
        if done == 0 || seconds <= 0.0 {
            return String::new();
        }
        let speed = done as f64 / seconds;
        if step >= self.total {
            return format!("  {}", rate(speed, self.unit));
        }
        let left = Duration::try_from_secs_f64((self.total - step) as f64 / speed);
        // A time that does not fit a duration is not shown.
        let left = left.map_or(String::new(), |left| format!(", {} left", duration(left)));
        format!("  {}{left}", rate(speed, self.unit))
    }
}

impl Drop for Progress {
    /// Removes the line of a stage that ends with an error.
    fn drop(&mut self) {
        phase::untitle();
    }
}

impl PlainProgress {
    fn is_due(&mut self, step: u64, total: u64, now: Instant) -> bool {
        let silence = self.last.map(|last| now.duration_since(last));
        let due = match silence {
            None => true,
            Some(silence) if silence >= LONGEST_SILENCE => true,
            Some(silence) => step.is_multiple_of(self.every) && silence >= SHORTEST_SILENCE,
        };
        let due = due || step == total;
        if due {
            self.last = Some(now);
        }
        due
    }
}

/// The label of a progress line, as in `sft 12/400`.
fn title(stage: &str, step: u64, total: u64) -> String {
    format!("{stage} {step}/{total}")
}

/// The numbers of a progress line, as in `loss 4.301, kl 0.0021`.
fn describe(numbers: &[(&str, f64)]) -> String {
    let mut text = String::new();
    for (name, value) in numbers {
        let separator = if text.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = match name.ends_with("/s") {
            true => write!(text, "{separator}{} {name}", digits(*value)),
            false => write!(text, "{separator}{name} {}", short(*value)),
        };
    }
    text
}

/// The number with about four significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || (1e-2..1e3).contains(&size) => format!("{value:.3}"),
        size if (1e3..1e6).contains(&size) => format!("{value:.0}"),
        _ => format!("{value:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            describe(&[("loss", 4.30123), ("lr", 3e-4), ("tok/s", 6412.7)]),
            "loss 4.301, lr 3.00e-4, 6.41k tok/s"
        );
        assert_eq!(short(0.0), "0.000");
        assert_eq!(short(f64::NAN), "NaN");
    }

    #[test]
    fn lines_come_at_their_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lines = PlainProgress {
            every: 10,
            last: None,
        };
        assert!(
            lines.is_due(1, 100, at(0)),
            "the first step shows that it runs"
        );
        assert!(!lines.is_due(10, 100, at(1)), "too soon");
        assert!(lines.is_due(20, 100, at(3)));
        assert!(!lines.is_due(25, 100, at(9)), "not at a multiple");
        assert!(lines.is_due(27, 100, at(40)), "too long a silence");
        assert!(lines.is_due(100, 100, at(40)), "the last step");
    }

    #[test]
    fn rate_and_time_left_are_told_once_a_step_is_done() {
        let mut progress = Progress {
            stage: "sft".to_owned(),
            unit: "steps",
            total: 100,
            began: (0, Instant::now()),
            display: Display::Live(String::new()),
        };
        let ten = progress.began.1 + Duration::from_secs(10);
        assert_eq!(progress.time_left(0, ten), "");
        assert_eq!(progress.time_left(20, ten), "  2.00 steps/s, 40 s left");
        assert_eq!(progress.time_left(2, ten), "  5.00 s/step, 8 min left");
        assert_eq!(progress.time_left(100, ten), "  10.0 steps/s");
        progress.total = u64::MAX;
        assert_eq!(progress.time_left(1, ten), "  10.0 s/step");
    }

    #[test]
    fn the_longest_line_of_a_step_fits() {
        let numbers = [("score", -123.456), ("kl", 1234.5)];
        let shown = describe(&numbers) + "  61.0 s/step, 100 min left";
        let line = format!("{}  {shown}", title("pretrain", 999_999, 999_999));
        assert!(line.chars().count() <= terminal::COLUMNS, "{line}");
    }
}
