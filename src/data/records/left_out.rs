//! Bad records that are left out: their number, and the positions of the first ones.

use std::ops::AddAssign;

use crate::config::BadRecords;
use crate::data::error::{DataError, Result};

/// Number of bad records that are named.
const NAMED: usize = 10;

/// Bad records that were left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeftOut {
    /// Number of records that were left out.
    pub count: usize,
    /// Positions and errors of the first ten.
    pub first: Vec<String>,
}

impl LeftOut {
    /// Counts a bad record.
    ///
    /// # Errors
    /// The record's error, if bad records are errors; under either policy, an error that is not the
    /// record's fault: long records have their own policy, and a template that exceeds a bound
    /// fails for every record.
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

    /// Positions and errors, one line each, and the number of records that are not named.
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
