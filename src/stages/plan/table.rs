//! The plan of a stage as text: the peak, and a table of its parts in MiB.

use std::fmt;

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, presets};
use indicatif::HumanCount;

use super::StagePlan;

/// Bytes of a MiB.
pub const MIB: f64 = (1 << 20) as f64;

impl fmt::Display for StagePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peak = HumanCount(self.peak_bytes().div_ceil(MIB as usize) as u64);
        writeln!(f, "Peak {peak} MiB in stage {}", self.stage)?;
        let title = format!("{} (MiB)", self.stage);
        let mut table = table(&[&title, "weights", "gradients", "moments", "in all"]);
        for role in &self.roles {
            let parts = [
                role.weights(),
                role.gradients(),
                role.moments(),
                role.bytes(),
            ];
            table.add_row(row(&role.name, parts.map(Some)));
        }
        let in_all = |name: &str, bytes| row(name, [None, None, None, Some(bytes)]);
        for buffer in &self.buffers {
            table.add_row(in_all(&buffer.name, buffer.bytes));
        }
        write!(f, "{table}")?;
        self.notes.iter().try_for_each(|note| write!(f, "\n{note}"))
    }
}

/// An empty table with a line below its heads, and all columns but the first aligned to the right.
pub fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()))
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(heads);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn row(name: &str, bytes: [Option<usize>; 4]) -> Vec<String> {
    let mib = |bytes: Option<usize>| match bytes {
        None | Some(0) => String::new(),
        Some(bytes) => format!("{:.1}", bytes as f64 / MIB),
    };
    let cells = bytes.into_iter().map(mib);
    std::iter::once(name.to_owned()).chain(cells).collect()
}
