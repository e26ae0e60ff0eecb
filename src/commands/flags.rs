//! Errors about records, for commands whose settings are flags instead of keys.

use std::sync::LazyLock;

use regex::Regex;

use crate::data::DataError;

/// `error` with flags in place of the keys of a configuration.
pub(super) fn with_flags(mut error: DataError) -> DataError {
    let text = match &mut error {
        DataError::MissingField { hint, .. } => hint,
        DataError::Record { message, .. } | DataError::Unreadable { message, .. } => message,
        _ => return error,
    };
    *text = in_flags(text);
    error
}

/// `set columns = { prompt = "question" }` → `give --columns prompt=question`.
fn in_flags(text: &str) -> String {
    static COLUMNS: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r#"columns = \{ (?:…, )?(\S+) = "([^"]*)" \}"#).expect("a sound pattern")
    });
    let text = text.replace("set columns = ", "give columns = ");
    let text = text.replace("columns reads ", "--columns reads ");
    COLUMNS.replace_all(&text, "--columns $1=$2").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_said_as_flags() {
        for (key, flag) in [
            (
                "; rename `q` to `prompt`, or set columns = { prompt = \"q\" }",
                "; rename `q` to `prompt`, or give --columns prompt=q",
            ),
            (
                "for example columns = { …, other = \"prompt\" }",
                "for example --columns other=prompt",
            ),
            (
                "columns reads `prompt` from the column `q`",
                "--columns reads `prompt` from the column `q`",
            ),
        ] {
            assert_eq!(in_flags(key), flag);
        }
    }
}
