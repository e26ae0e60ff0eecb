//! Values printed as in Python (`str`, `repr`, `json.dumps`), for templates that print lists, maps,
//! booleans or numbers.

use minijinja::value::{Value, ValueKind};
use serde_json::Value as Json;

/// The arguments of `json.dumps` that templates use.
#[derive(Debug, Clone, Default)]
pub(super) struct JsonStyle {
    /// Whether characters other than ASCII are escaped.
    pub ensure_ascii: bool,
    /// One item a line, indented by this many spaces a level.
    pub indent: Option<usize>,
    /// The texts between items, and between key and value.
    pub separators: Option<Vec<String>>,
    /// Keys are sorted by code points.
    pub sort_keys: bool,
}

/// `str(value)`; empty for an undefined value.
pub(super) fn str(value: &Value) -> Result<String, minijinja::Error> {
    Ok(match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.to_string(),
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            repr(&super::json(value)?)
        }
        _ => value.to_string(),
    })
}

/// `repr(value)` of a JSON value.
fn repr(value: &Json) -> String {
    match value {
        Json::Null => "None".into(),
        Json::Bool(true) => "True".into(),
        Json::Bool(false) => "False".into(),
        Json::Number(number) => number_text(number),
        Json::String(text) => repr_string(text),
        Json::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(repr).collect::<Vec<_>>().join(", ")
            )
        }
        Json::Object(fields) => {
            let pair =
                |(key, value): (&String, &Json)| format!("{}: {}", repr_string(key), repr(value));
            format!(
                "{{{}}}",
                fields.iter().map(pair).collect::<Vec<_>>().join(", ")
            )
        }
    }
}

fn repr_string(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// The shortest digits that read back as the same number, as in Python and Rust; Python writes an
/// exponent from 1e16 on and below 1e-4.
fn number_text(number: &serde_json::Number) -> String {
    let Some(value) = number.as_f64().filter(|_| number.is_f64()) else {
        return number.to_string();
    };
    let size = value.abs();
    if size == 0.0 || (1e-4..1e16).contains(&size) {
        return format!("{value:?}");
    }
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent
        .strip_prefix('-')
        .map_or(('+', exponent), |e| ('-', e));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// `json.dumps(value, ...)`.
pub(super) fn dumps(value: &Json, style: &JsonStyle) -> String {
    let default_item = if style.indent.is_some() { "," } else { ", " };
    let separator = |i: usize, default: &'static str| {
        style
            .separators
            .as_ref()
            .and_then(|s| s.get(i))
            .map_or(default.to_owned(), String::clone)
    };
    let mut writer = JsonWriter {
        item: separator(0, default_item),
        key: separator(1, ": "),
        style,
        out: String::new(),
    };
    writer.value(value, 1);
    writer.out
}

struct JsonWriter<'a> {
    item: String,
    key: String,
    style: &'a JsonStyle,
    out: String,
}

impl JsonWriter<'_> {
    fn value(&mut self, value: &Json, level: usize) {
        match value {
            Json::Null => self.out.push_str("null"),
            Json::Bool(b) => self.out.push_str(if *b { "true" } else { "false" }),
            Json::Number(number) => self.out.push_str(&number_text(number)),
            Json::String(text) => self.string(text),
            Json::Array(items) if items.is_empty() => self.out.push_str("[]"),
            Json::Array(items) => self.array(items, level),
            Json::Object(fields) if fields.is_empty() => self.out.push_str("{}"),
            Json::Object(fields) => self.object(fields, level),
        }
    }

    fn array(&mut self, items: &[Json], level: usize) {
        self.out.push('[');
        for (i, item) in items.iter().enumerate() {
            self.before_item(i, level);
            self.value(item, level + 1);
        }
        self.new_line(level - 1);
        self.out.push(']');
    }

    fn object(&mut self, fields: &serde_json::Map<String, Json>, level: usize) {
        let mut pairs: Vec<_> = fields.iter().collect();
        if self.style.sort_keys {
            pairs.sort_by_key(|(key, _)| *key);
        }
        self.out.push('{');
        for (i, (key, value)) in pairs.into_iter().enumerate() {
            self.before_item(i, level);
            self.string(key);
            self.out.push_str(&self.key);
            self.value(value, level + 1);
        }
        self.new_line(level - 1);
        self.out.push('}');
    }

    fn before_item(&mut self, index: usize, level: usize) {
        if index > 0 {
            self.out.push_str(&self.item);
        }
        self.new_line(level);
    }

    fn new_line(&mut self, level: usize) {
        if let Some(indent) = self.style.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * level));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 => self.escaped(c),
                c if self.style.ensure_ascii && (c as u32) > 0x7e => self.escaped(c),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn escaped(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            self.out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(json: &str) -> String {
        repr(&serde_json::from_str(json).unwrap())
    }

    /// Expected texts are what CPython 3 prints.
    #[test]
    fn values_print_as_python_prints_them() {
        let source =
            r#"{"a": [true, null, 1, 1.0, 1e22, 0.00001, 1e-7, 123456.75], "it's": "\"q\"\n"}"#;
        let expected =
            r#"{'a': [True, None, 1, 1.0, 1e+22, 1e-05, 1e-07, 123456.75], "it's": '"q"\n'}"#;
        assert_eq!(printed(source), expected);
        assert_eq!(str(&Value::from("it's")).unwrap(), "it's");
        assert_eq!(str(&Value::UNDEFINED).unwrap(), "");
    }

    #[test]
    fn dumps_styles() {
        let value = serde_json::json!({"b": "é<\u{7f}", "a": [1, {}]});
        let plain = JsonStyle::default();
        assert_eq!(
            dumps(&value, &plain),
            "{\"b\": \"é<\u{7f}\", \"a\": [1, {}]}"
        );
        let ascii = JsonStyle {
            ensure_ascii: true,
            sort_keys: true,
            ..plain.clone()
        };
        assert_eq!(
            dumps(&value, &ascii),
            r#"{"a": [1, {}], "b": "\u00e9<\u007f"}"#
        );
        let indent = JsonStyle {
            indent: Some(2),
            ..plain.clone()
        };
        assert_eq!(
            dumps(&serde_json::json!({"a": [1, 2]}), &indent),
            "{\n  \"a\": [\n    1,\n    2\n  ]\n}"
        );
        let tight = JsonStyle {
            separators: Some(vec![",".into(), ":".into()]),
            ..plain
        };
        assert_eq!(
            dumps(&serde_json::json!({"a": [1, 2]}), &tight),
            r#"{"a":[1,2]}"#
        );
    }
}
