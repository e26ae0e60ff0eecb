//! Wall-clock time of an iteration and its parts.

use std::time::Instant;

use crate::train::metrics::{Metrics, names};

/// Wall-clock seconds of an iteration's parts.
pub struct IterationClock {
    start: Instant,
    last: Instant,
    laps: Vec<(&'static str, f64)>,
}

impl IterationClock {
    /// Starts the clock of an iteration and of its first part.
    pub fn start() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            last: now,
            laps: Vec::new(),
        }
    }

    /// Ends the part that began with the last call. Times of parts with the same name add up.
    pub fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        let seconds = (now - self.last).as_secs_f64();
        self.last = now;
        match self.laps.iter_mut().find(|(known, _)| *known == name) {
            Some((_, total)) => *total += seconds,
            None => self.laps.push((name, seconds)),
        }
    }

    /// Sets the metrics of each part's seconds and of the whole iteration's.
    pub fn write(&self, metrics: &mut Metrics) {
        for (name, seconds) in &self.laps {
            metrics.set(name, *seconds);
        }
        metrics.set(names::TIME_STEP, self.start.elapsed().as_secs_f64());
    }
}
