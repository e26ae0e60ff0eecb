//! What a stage shows while it runs: a bar on a terminal, plain lines where the output goes to a
//! file.
//!
//! Progress goes to standard error; standard output is for results.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Plain lines come at least this often, however slow the steps.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

/// Plain lines come at most this often, however fast the steps.
const SHORTEST_SILENCE: Duration = Duration::from_secs(2);

/// The progress of one stage.
#[derive(Debug)]
pub struct Progress {
    stage: String,
    total: u64,
    display: Display,
}

#[derive(Debug)]
enum Display {
    Bar(ProgressBar),
    Lines(Lines),
}

/// Decides when a plain line is due, and what it says about time.
#[derive(Debug)]
struct Lines {
    every: u64,
    /// Step and time at which this process began.
    began: (u64, Instant),
    last: Option<Instant>,
}

impl Progress {
    /// Begins at step `start` of `total`: a bar if standard error is a terminal, else a line at
    /// most every `log_steps` steps.
    pub fn new(stage: &str, start: u64, total: u64, log_steps: u64) -> Self {
        let display = if io::stderr().is_terminal() {
            Display::Bar(bar(stage, start, total))
        } else {
            Display::Lines(Lines {
                every: log_steps.max(1),
                began: (start, Instant::now()),
                last: None,
            })
        };
        Self {
            stage: stage.into(),
            total,
            display,
        }
    }

    /// Shows that `step` is done, with some of its numbers.
    pub fn step(&mut self, step: u64, numbers: &[(&str, f64)]) {
        let shown = describe(numbers);
        match &mut self.display {
            Display::Bar(bar) => {
                bar.set_message(shown);
                bar.set_position(step);
            }
            Display::Lines(lines) => {
                let now = Instant::now();
                if lines.is_due(step, self.total, now) {
                    let rest = lines.time_left(step, self.total, now);
                    eprintln!("{} {step}/{}  {shown}{rest}", self.stage, self.total);
                }
            }
        }
    }

    /// Shows a line of its own, such as the result of an evaluation.
    pub fn note(&self, text: &str) {
        match &self.display {
            Display::Bar(bar) => bar.suspend(|| eprintln!("{} {text}", self.stage)),
            Display::Lines(_) => eprintln!("{} {text}", self.stage),
        }
    }

    /// Ends the display; the bar stays where it is.
    pub fn finish(&self) {
        if let Display::Bar(bar) = &self.display {
            bar.abandon();
        }
    }
}

impl Lines {
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

    /// Rate and time left, once they can be told.
    fn time_left(&self, step: u64, total: u64, now: Instant) -> String {
        let (start, began) = self.began;
        let (done, seconds) = (
            step.saturating_sub(start),
            now.duration_since(began).as_secs_f64(),
        );
        if done == 0 || seconds <= 0.0 {
            return String::new();
        }
        let rate = done as f64 / seconds;
        let left = Duration::try_from_secs_f64(total.saturating_sub(step) as f64 / rate);
        // Longer than a duration can be is not worth a number.
        let left = left.map_or(String::new(), |left| {
            format!(", {} left", indicatif::HumanDuration(left))
        });
        format!("  {rate:.2} steps/s{left}")
    }
}

fn bar(stage: &str, start: u64, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
        .with_position(start);
    let template = "{prefix} {bar:30} {pos}/{len} {per_sec} {eta} left  {msg}";
    // The template is fixed text; were it ever wrong, the plain default would do.
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.set_prefix(stage.to_string());
    bar.reset_eta();
    bar
}

/// `loss 4.301, kl 0.0021`.
fn describe(numbers: &[(&str, f64)]) -> String {
    let mut text = String::new();
    for (name, value) in numbers {
        let separator = if text.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(text, "{separator}{name} {}", short(*value));
    }
    text
}

/// About four digits that count.
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
            "loss 4.301, lr 3.00e-4, tok/s 6413"
        );
        assert_eq!(short(0.0), "0.000");
        assert_eq!(short(f64::NAN), "NaN");
    }

    #[test]
    fn lines_come_at_their_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lines = Lines {
            every: 10,
            began: (0, start),
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
        assert_eq!(
            lines.time_left(20, 100, at(10)),
            "  2.00 steps/s, 40 seconds left"
        );
        assert_eq!(lines.time_left(0, 100, at(10)), "");
        assert_eq!(lines.time_left(1, u64::MAX, at(10)), "  0.10 steps/s");
    }
}
