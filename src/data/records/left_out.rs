//! Bad records that are left out: their number, and the positions of the first ones.

use std::ops::AddAssign;

use crate::config::BadRecords;
use crate::data::error::{DataError, Result};

/// Bad records that are named one by one.
const NAMED: usize = 10;

/// Bad records that were left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeftOut {
    /// Records that were left out.
    pub count: usize,
    /// Places and reasons of the first ten.
    pub first: Vec<String>,
}

impl LeftOut {
    /// Counts a bad record.
    ///
    /// # Errors
    /// The record's own error, if bad records are errors. An error that is no fault of the record
    /// is one under either policy: a limit has a policy of its own, and a template without end
    /// would meet every record.
    pub fn leave_out(&mut self, error: DataError, policy: BadRecords) -> Result<()> {
        let of_record = !matches!(
            error,
            DataError::TooLong { .. } | DataError::TemplateBound(_)
        );
        if policy == BadRecords::Error || !of_record {
            return Err(error);
        }
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(error.to_string());
        }
        Ok(())
    }

    /// Positions and reasons, a line each, and the number of records that are not named.
    pub fn lines(&self) -> String {
        let named: Vec<String> = self.first.iter().map(|line| format!("  {line}")).collect();
        match self.count - self.first.len() {
            0 => named.join("\n"),
            more => format!("{}\n  and {more} more", named.join("\n")),
        }
    }
}

impl AddAssign for LeftOut {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        let free = NAMED - self.first.len();
        self.first.extend(other.first.into_iter().take(free));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_are_named_and_all_are_counted() {
        let bad = |text: String| DataError::Invalid(text);
        let mut left_out = LeftOut::default();
        for i in 0..12 {
            left_out
                .leave_out(bad(format!("d.jsonl:{i}")), BadRecords::Skip)
                .unwrap();
        }
        let lines = left_out.lines();
        assert_eq!(lines.lines().count(), 11, "{lines}");
        assert!(lines.ends_with("  d.jsonl:9\n  and 2 more"), "{lines}");
        let mut sum = LeftOut::default();
        sum.leave_out(bad("e.jsonl:1".into()), BadRecords::Skip)
            .unwrap();
        sum += left_out.clone();
        assert_eq!(
            (sum.count, sum.first.len(), &*sum.first[0]),
            (13, 10, "e.jsonl:1")
        );
        assert!(
            left_out
                .leave_out(bad("x".into()), BadRecords::Error)
                .is_err()
        );
        assert_eq!(left_out.count, 12);
    }
}
