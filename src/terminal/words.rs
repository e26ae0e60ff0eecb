//! Numbers as progress shows them: no more digits than one reads in passing.

use std::time::Duration;

/// A rate with three digits, such as `812 steps/s`, `6.41k tok/s`; a slow one of steps as its
/// inverse, `61.0 s/step`.
pub fn rate(per_second: f64, unit: &str) -> String {
    match unit.strip_suffix('s') {
        Some(one) if per_second > 0.0 && per_second < 1.0 => {
            format!("{}/{one}", duration_of(1.0 / per_second))
        }
        _ => {
            let space = if unit.is_empty() { "" } else { " " };
            format!("{}{space}{unit}/s", digits(per_second))
        }
    }
}

/// A number in three significant digits, with `k` or `M` for thousands or millions.
pub fn digits(value: f64) -> String {
    match value.abs() {
        size if size < 1e-3 && size > 0.0 => format!("{value:.1e}"),
        size if size < 0.1 => format!("{value:.3}"),
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        size if size < 999.5 => format!("{value:.0}"),
        size if size < 999.5e3 => format!("{}k", digits(value / 1e3)),
        size if size < 999.5e6 => format!("{}M", digits(value / 1e6)),
        _ => format!("{value:.1e}"),
    }
}

/// A span such as `45 s`, `12 min`, `3.5 h`, `2.1 days`.
pub fn duration(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds < 100 => format!("{seconds} s"),
        seconds if seconds < 100 * 60 => format!("{} min", (seconds + 30) / 60),
        seconds if seconds < 48 * 3600 => format!("{:.1} h", seconds as f64 / 3600.0),
        seconds => format!("{} days", digits(seconds as f64 / 86_400.0)),
    }
}

fn duration_of(seconds: f64) -> String {
    match seconds < 100.0 {
        true => format!("{} s", digits(seconds)),
        false => duration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_three_digits() {
        let shown = [6412.7, 812.4, 64.13, 6.413, 0.641, 0.0164].map(|r| rate(r, "steps"));
        assert_eq!(
            shown,
            [
                "6.41k steps/s",
                "812 steps/s",
                "64.1 steps/s",
                "6.41 steps/s",
                "1.56 s/step",
                "61.0 s/step"
            ]
        );
        assert_eq!(rate(1.0 / 600.0, "steps"), "10 min/step");
        assert_eq!(rate(0.0, "steps"), "0.000 steps/s");
        assert_eq!(rate(12.34, ""), "12.3/s");
        assert_eq!(
            [999.7, 999_700.0, 1e12].map(digits),
            ["1.00k", "1.00M", "1.0e12"]
        );
    }

    #[test]
    fn durations_have_two_digits_or_three() {
        let shown =
            [0, 99, 100, 5_999, 6_000, 172_800, 864_000].map(|s| duration(Duration::from_secs(s)));
        assert_eq!(
            shown,
            [
                "0 s",
                "99 s",
                "2 min",
                "100 min",
                "1.7 h",
                "2.00 days",
                "10.0 days"
            ]
        );
    }
}
