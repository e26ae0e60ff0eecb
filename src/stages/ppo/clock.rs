//! How long the parts of an iteration take.

use std::time::Instant;

use crate::train::metrics::{Metrics, names};

/// Seconds of an iteration's parts.
pub struct Clock {
    start: Instant,
    last: Instant,
    laps: Vec<(&'static str, f64)>,
}

impl Clock {
    /// Begins an iteration and its first part.
    pub fn start() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            last: now,
            laps: Vec::new(),
        }
    }

    /// Ends the part that began with the last call. A part that comes again adds to what it took before.
    pub fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        let seconds = (now - self.last).as_secs_f64();
        self.last = now;
        match self.laps.iter_mut().find(|(known, _)| *known == name) {
            Some((_, total)) => *total += seconds,
            None => self.laps.push((name, seconds)),
        }
    }

    /// Sets the seconds of each part and of the whole.
    pub fn write(&self, metrics: &mut Metrics) {
        for (name, seconds) in &self.laps {
            metrics.set(name, *seconds);
        }
        metrics.set(names::TIME_STEP, self.start.elapsed().as_secs_f64());
    }
}
