//! The closing table of a stage or a run: measures before and after training, and paths.

use std::fmt;
use std::path::Path;

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, presets};
use serde::{Deserialize, Serialize};

use super::float;

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    #[serde(with = "float")]
    pub mean: f64,
    /// Standard error of the mean; `None` for a number that is not an average.
    #[serde(with = "float::option")]
    pub standard_error: Option<f64>,
}

impl Estimate {
    /// Mean and standard error of independent values; the error of a single value is unknown.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Self {
            mean,
            standard_error: (n > 1.0).then(|| (variance / n).sqrt()),
        }
    }

    /// Whether `other` is above this mean by more than `bound` combined standard errors of the two;
    /// false if a standard error is unknown.
    pub fn is_below(self, other: Self, bound: f64) -> bool {
        let errors = self.standard_error.zip(other.standard_error);
        errors.is_some_and(|(a, b)| other.mean - self.mean > bound * a.hypot(b))
    }
}

impl From<f64> for Estimate {
    fn from(mean: f64) -> Self {
        Self {
            mean,
            standard_error: None,
        }
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mean = format!("{:.3}", self.mean);
        // A small negative number is shown as zero, without its sign.
        let mean = if mean == "-0.000" { "0.000" } else { &mean };
        match self.standard_error {
            Some(error) => write!(f, "{mean} ± {error:.3}"),
            None => f.write_str(mean),
        }
    }
}

/// The closing table of a stage: rows of before and after, then paths.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    title: String,
    rows: Vec<[String; 3]>,
    notes: Vec<String>,
    paths: Vec<[String; 2]>,
}

impl Summary {
    /// An empty summary.
    pub fn new(title: &str) -> Self {
        Self {
            title: title.into(),
            ..Self::default()
        }
    }

    /// Adds a measure from before and after training.
    pub fn row(
        &mut self,
        name: &str,
        before: impl Into<Estimate>,
        after: impl Into<Estimate>,
    ) -> &mut Self {
        self.text(name, &before.into().to_string(), &after.into().to_string())
    }

    /// Adds a measure from after training alone.
    pub fn result(&mut self, name: &str, after: impl Into<Estimate>) -> &mut Self {
        self.text(name, "", &after.into().to_string())
    }

    /// Adds a row of text.
    pub fn text(&mut self, name: &str, before: &str, after: &str) -> &mut Self {
        self.rows.push([name, before, after].map(String::from));
        self
    }

    /// Adds text below the table.
    pub fn note(&mut self, text: &str) -> &mut Self {
        self.notes.push(text.into());
        self
    }

    /// Adds a path.
    pub fn path(&mut self, name: &str, path: &Path) -> &mut Self {
        self.paths.push([name.into(), path.display().to_string()]);
        self
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        // Lines must not depend on the width of the terminal: they are read by programs and
        // compared between runs.
        table
            .load_style(presets::UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()))
            .set_content_arrangement(ContentArrangement::Disabled);
        table.set_header([self.title.as_str(), "before", "after"]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        self.rows.iter().for_each(|row| {
            table.add_row(row);
        });
        write!(f, "{table}")?;
        self.notes
            .iter()
            .try_for_each(|note| write!(f, "\n\n  {note}"))?;
        self.paths
            .iter()
            .try_for_each(|[name, path]| write!(f, "\n  {name}: {path}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_has_no_sign() {
        let shown = [-0.0004, -0.0006, 0.0].map(|mean| Estimate::from(mean).to_string());
        assert_eq!(shown, ["0.000", "-0.001", "0.000"]);
        let estimate = Estimate {
            mean: -1e-9,
            standard_error: Some(1e-9),
        };
        assert_eq!(estimate.to_string(), "0.000 ± 0.000");
    }

    #[test]
    fn rows_and_paths_are_shown() {
        let mut summary = Summary::new("ppo");
        let before = Estimate {
            mean: 0.07,
            standard_error: Some(0.07),
        };
        let after = Estimate {
            mean: 1.7,
            standard_error: Some(0.068),
        };
        summary
            .row("reward model", before, after)
            .result("iterations", 37.0);
        summary.path("model", Path::new("runs/trial/ppo/final"));
        let shown = summary.to_string();
        let row = shown
            .lines()
            .find(|line| line.contains("reward model"))
            .unwrap();
        let cells: Vec<&str> = row
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .collect();
        assert_eq!(cells, ["reward model", "0.070 ± 0.070", "1.700 ± 0.068"]);
        assert!(
            shown.ends_with("\n  model: runs/trial/ppo/final"),
            "{shown}"
        );
    }
}
