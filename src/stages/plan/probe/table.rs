//! What the trials came to, as a table.

use std::fmt;
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, presets};
use indicatif::HumanDuration;

use super::{Measured, Probed};
use crate::config::{Device, Stage};
use crate::terminal::words;
use crate::train::memory::{available_bytes, total_bytes};

const MIB: f64 = (1 << 20) as f64;

impl fmt::Display for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table
            .load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()))
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header([
                "probe",
                "planned (MiB)",
                "measured (MiB)",
                "seconds a step",
                "steps",
                "in all",
            ]);
        for (stage, measured) in self.measured() {
            table.add_row(row(stage, measured));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        write!(f, "{table}")?;
        self.notes()
            .iter()
            .try_for_each(|note| write!(f, "\n{note}"))
    }
}

fn row(stage: Stage, measured: &Measured) -> [String; 6] {
    let mib = |bytes: f64| format!("{:.1}", bytes / MIB);
    // Longer than a duration can be is not worth a number.
    let whole = Duration::try_from_secs_f64(measured.seconds * measured.steps as f64);
    [
        stage.name().to_owned(),
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

impl Probed {
    fn notes(&self) -> Vec<String> {
        let mut notes = vec![
            "measured: the most that the process held in a step of the longest sequences; the program, the data and the allocator's \
             reserve are in it, and not in the plan"
                .to_owned(),
            "in all: so many steps at the rate of the stage's own records; evaluations, checkpoints and what comes before the first \
             step take more"
                .to_owned(),
        ];
        match (self.device, total_bytes().zip(available_bytes())) {
            (Device::Cuda(_), _) => {
                notes.push("measured is the memory of the machine, not that of the GPU".to_owned());
            }
            (Device::Cpu, Some((total, free))) => notes.push(format!(
                "this machine has {:.1} MiB, {:.1} of them free",
                total as f64 / MIB,
                free as f64 / MIB
            )),
            (Device::Cpu, None) => {}
        }
        let left = self.left().into_iter();
        notes.extend(left.map(|why| format!("not probed: {why}")));
        notes
    }
}
