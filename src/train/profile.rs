//! The table of a profile: the time of a stage's parts and operations, and the bytes that the
//! operations wrote.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, presets};

use crate::ops::profile::{OperationTotal, ProfileKey};

/// Operations of a part that have rows of their own; the others are summed.
const SHOWN: usize = 8;

/// The table of the recorded parts, the longest first.
pub fn table(stage: &str, totals: &BTreeMap<ProfileKey, OperationTotal>) -> String {
    let whole = sum(totals.values());
    let mut parts = BTreeMap::<&str, Vec<(&str, OperationTotal)>>::new();
    for (&(part, operation), &total) in totals {
        parts.entry(part).or_default().push((operation, total));
    }
    let mut parts: Vec<_> = parts.into_iter().collect();
    parts.sort_by_key(|(_, operations)| std::cmp::Reverse(time(operations)));
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()))
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header([stage, "calls", "seconds", "share", "GB written"]);
    for (part, operations) in parts {
        add_part(&mut table, part, operations, whole.time);
    }
    table.add_row(row("in all", whole, whole.time));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn add_part(
    table: &mut Table,
    part: &str,
    mut operations: Vec<(&str, OperationTotal)>,
    whole: Duration,
) {
    let all = sum(operations.iter().map(|(_, total)| total));
    table.add_row(row(part, OperationTotal { calls: 0, ..all }, whole));
    operations.sort_by_key(|(_, total)| std::cmp::Reverse(total.time));
    let rest = operations.split_off(operations.len().min(SHOWN));
    for (operation, total) in operations {
        let name = if operation.is_empty() {
            "the rest of it"
        } else {
            operation
        };
        table.add_row(row(&format!("  {name}"), total, whole));
    }
    if !rest.is_empty() {
        let name = format!("  {} others", rest.len());
        table.add_row(row(&name, sum(rest.iter().map(|(_, total)| total)), whole));
    }
}

fn row(name: &str, total: OperationTotal, whole: Duration) -> [String; 5] {
    let seconds = total.time.as_secs_f64();
    let share = 100.0 * seconds / whole.as_secs_f64().max(f64::MIN_POSITIVE);
    let calls = match total.calls {
        0 => String::new(),
        calls => calls.to_string(),
    };
    [
        name.to_owned(),
        calls,
        format!("{seconds:.3}"),
        format!("{share:.1} %"),
        format!("{:.2}", total.bytes as f64 / 1e9),
    ]
}

fn time(operations: &[(&str, OperationTotal)]) -> Duration {
    operations.iter().map(|(_, total)| total.time).sum()
}

fn sum<'a>(totals: impl Iterator<Item = &'a OperationTotal>) -> OperationTotal {
    totals.fold(OperationTotal::default(), |sum, total| OperationTotal {
        calls: sum.calls + total.calls,
        time: sum.time + total.time,
        bytes: sum.bytes + total.bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_operations_stand_by_their_time() {
        let total = |millis, bytes| OperationTotal {
            calls: 2,
            time: Duration::from_millis(millis),
            bytes,
        };
        let totals = BTreeMap::from([
            (("rollout", "linear"), total(100, 0)),
            (("update", ""), total(100, 0)),
            (("update", "linear backward"), total(300, 2_000_000_000)),
        ]);
        let text = table("ppo", &totals);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .filter(|line| line.contains(char::is_alphanumeric))
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1], ["update", "0.400", "80.0", "%", "2.00"]);
        assert_eq!(lines[2][..4], ["linear", "backward", "2", "0.300"]);
        assert_eq!(lines[3][..4], ["the", "rest", "of", "it"]);
        assert_eq!(lines[4][..2], ["rollout", "0.100"]);
        assert_eq!(lines[6], ["in", "all", "6", "0.500", "100.0", "%", "2.00"]);
    }
}
