//! The measurements of a probe as a table.

use std::fmt;
use std::time::Duration;

use indicatif::HumanDuration;

use super::{ProbeReport, StageMeasurement};
use crate::stages::plan::table::{MIB, table};
use crate::terminal::words;
use crate::train::memory::{available_bytes, total_bytes};

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = table(&[
            "probe",
            "planned (MiB)",
            "measured (MiB)",
            "seconds a step",
            "steps",
            "in all",
        ]);
        table.add_rows(self.measured.iter().map(row));
        write!(f, "{table}")?;
        self.notes()
            .iter()
            .try_for_each(|note| write!(f, "\n{note}"))
    }
}

fn row(measured: &StageMeasurement) -> [String; 6] {
    let mib = |bytes: f64| format!("{:.1}", bytes / MIB);
    // An error if a duration cannot hold that many seconds.
    let whole = Duration::try_from_secs_f64(measured.seconds * measured.steps as f64);
    [
        measured.stage.name().to_owned(),
        mib(measured.planned as f64),
        measured
            .peak
            .map_or_else(|| "unknown".to_owned(), |bytes| mib(bytes as f64)),
        words::digits(measured.seconds),
        measured.steps.to_string(),
        whole.map_or_else(
            |_| "for ever".to_owned(),
            |time| HumanDuration(time).to_string(),
        ),
    ]
}

impl ProbeReport {
    fn notes(&self) -> Vec<String> {
        let measured = match self.device.is_gpu() {
            true => {
                "measured: peak memory allocated on the GPU during a step on the longest sequences"
            }
            false => {
                "measured: peak memory of the process during a step on the longest sequences; it \
                 includes the program, the data and the reserve of the allocator, which the plan \
                 does not count"
            }
        };
        let mut notes = vec![
            measured.to_owned(),
            "in all: time of all steps on the stage's own records, without evaluations, \
             checkpoints and the start of the stage"
                .to_owned(),
        ];
        let memory = total_bytes().zip(available_bytes());
        if let Some((total, free)) = memory.filter(|_| !self.device.is_gpu()) {
            notes.push(format!(
                "this machine has {:.1} MiB, {:.1} of them free",
                total as f64 / MIB,
                free as f64 / MIB
            ));
        }
        notes.extend(self.skipped.iter().map(|why| format!("not probed: {why}")));
        notes
    }
}
