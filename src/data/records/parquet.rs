//! Parquet through the row interface: a row is a record, a column a field, nested lists and structs
//! become JSON.
//!
//! Text and binary are read as UTF-8, decimals as numbers; dates and times keep their printed form
//! as a string. A value of another kind (other bytes, columns with intervals, invalid dates,
//! numbers that are not finite) is replaced by the name of its type: a task that reads it refuses
//! the record, other tasks ignore it. A null column is left out, so that an optional field is
//! absent.

mod plain;

use std::fs::File;
use std::path::Path;

use parquet::data_type::{ByteArray, Decimal};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::names::unread;
use super::{Record, RecordPlace, RecordResult, RecordSource, shared_name};
use crate::data::error::{DataError, Result};
use crate::data::guard::quietly;
use crate::files::regular;

/// Reads all rows.
pub(super) fn read(path: &Path) -> Result<Vec<RecordResult>> {
    let broken = |message: String| DataError::Parquet {
        path: path.to_owned(),
        message,
    };
    let file = regular::open(path).map_err(|e| DataError::io(path, e))?;
    // The crate panics at some inconsistent files.
    let rows =
        quietly(|| rows(file)).map_err(|words| broken(format!("reading it fails ({words})")))?;
    let name = shared_name(path);
    let record = |(i, fields)| {
        let source = RecordSource {
            file: name.clone(),
            place: RecordPlace::Row(i + 1),
        };
        Ok(Record { fields, source })
    };
    let rows = rows.map_err(|e| broken(e.to_string()))?;
    Ok(rows.into_iter().enumerate().map(record).collect())
}

/// The fields of all rows.
fn rows(file: File) -> parquet::errors::Result<Vec<Map<String, Value>>> {
    let reader = SerializedFileReader::new(file)?;
    let own = reader.metadata().file_metadata().schema();
    let columns = own.get_fields().iter();
    let intervals = columns.filter(|column| plain::holds_interval(column));
    let intervals: Vec<&str> = intervals.map(|column| column.name()).collect();
    let schema = plain::schema(own)?;
    let mut rows = Vec::new();
    for i in 0..reader.num_row_groups() {
        let group = plain::Group::new(reader.get_row_group(i)?, &schema)?;
        for row in group.get_row_iter(None)? {
            rows.push(fields(&row?, &intervals));
        }
    }
    Ok(rows)
}

/// The fields of a row; `intervals` are the columns with intervals, which cannot be read.
fn fields(row: &Row, intervals: &[&str]) -> Map<String, Value> {
    let mut fields = object(row);
    for (name, value) in &mut fields {
        if intervals.contains(&&**name) {
            *value = unread("an interval");
        }
    }
    fields
}

fn object(row: &Row) -> Map<String, Value> {
    row.get_column_iter()
        .filter(|(_, field)| !matches!(field, Field::Null))
        .map(|(name, field)| (name.clone(), json(field)))
        .collect()
}

fn json(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(v) => (*v).into(),
        Field::Byte(v) => (*v).into(),
        Field::Short(v) => (*v).into(),
        Field::Int(v) => (*v).into(),
        Field::Long(v) => (*v).into(),
        Field::UByte(v) => (*v).into(),
        Field::UShort(v) => (*v).into(),
        Field::UInt(v) => (*v).into(),
        Field::ULong(v) => (*v).into(),
        Field::Float16(v) => number(f64::from(*v)),
        Field::Float(v) => number(f64::from(*v)),
        Field::Double(v) => number(*v),
        Field::Decimal(v) => number(decimal(v)),
        Field::Bytes(v) => text(v).map_or_else(|| unread("binary that is not UTF-8"), Value::from),
        Field::Str(v) => v.as_str().into(),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().map(json).collect(),
        Field::MapInternal(map) => Value::Object(
            map.entries()
                .iter()
                .map(|(key, value)| (key_text(key), json(value)))
                .collect(),
        ),
        other => printed(other).map_or_else(|| unread("a date or time out of range"), Value::from),
    }
}

fn text(bytes: &ByteArray) -> Option<&str> {
    std::str::from_utf8(bytes.data()).ok()
}

/// A date or time as the crate prints it; the crate panics at an invalid one.
fn printed(field: &Field) -> Option<String> {
    quietly(|| field.to_string()).ok()
}

/// A number; JSON has neither infinities nor NaN.
fn number(value: f64) -> Value {
    match value.is_finite() {
        true => value.into(),
        false => unread("a number that is not finite"),
    }
}

/// A decimal: the unscaled value (big-endian, two's complement) divided by ten to the power of the
/// scale.
fn decimal(value: &Decimal) -> f64 {
    let bytes = value.data();
    let sign = if bytes.first().is_some_and(|byte| *byte >= 0x80) {
        -1.0
    } else {
        0.0
    };
    let unscaled = bytes
        .iter()
        .fold(sign, |sum, byte| sum * 256.0 + f64::from(*byte));
    unscaled / 10f64.powi(value.scale())
}

fn key_text(key: &Field) -> String {
    let text = match key {
        Field::Str(text) => Some(text.clone()),
        Field::Bytes(bytes) => text(bytes).map(str::to_owned),
        other => printed(other),
    };
    text.unwrap_or_else(|| "(unreadable)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::column::writer::ColumnWriter;
    use parquet::data_type::FixedLenByteArray;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    /// Two rows; the margin of the second is null.
    fn write_pairs(path: &Path) {
        let schema = "message m { required binary prompt (UTF8); required binary chosen (UTF8); \
                      optional double margin; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let file = File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        while let Some(mut column) = group.next_column().unwrap() {
            match column.untyped() {
                ColumnWriter::ByteArrayColumnWriter(w) => {
                    let values = [ByteArray::from("é one"), ByteArray::from("two")];
                    w.write_batch(&values, None, None).unwrap();
                }
                ColumnWriter::DoubleColumnWriter(w) => {
                    w.write_batch(&[0.5], Some(&[1, 0]), None).unwrap();
                }
                _ => unreachable!("the schema has no other column"),
            }
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn rows_become_records_and_nulls_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.parquet");
        write_pairs(&path);
        let records: Vec<Record> = read(&path)
            .unwrap()
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(records.len(), 2);
        assert_eq!(records[0].fields["prompt"], "é one");
        assert_eq!(records[0].fields["margin"], 0.5);
        assert!(!records[1].fields.contains_key("margin"));
        let source = records[1].source.to_string();
        assert!(source.ends_with("p.parquet: row 2"), "{source}");
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.parquet");
        std::fs::write(&path, "not parquet").unwrap();
        let e = read(&path).unwrap_err().to_string();
        assert!(e.contains("p.parquet") && e.contains("Parquet"), "{e}");
    }

    /// One row of a file with these columns.
    fn row(schema: &str, write: impl Fn(&str, &mut ColumnWriter)) -> Record {
        written(schema, write).remove(0)
    }

    /// The rows of a file with these columns, each written by its own writer.
    fn written(schema: &str, write: impl Fn(&str, &mut ColumnWriter)) -> Vec<Record> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.parquet");
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let file = File::create(&path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        while let Some(mut column) = group.next_column().unwrap() {
            let untyped = column.untyped();
            let name = match untyped {
                ColumnWriter::ByteArrayColumnWriter(w) => w.get_descriptor().name().to_owned(),
                ColumnWriter::DoubleColumnWriter(w) => w.get_descriptor().name().to_owned(),
                ColumnWriter::Int32ColumnWriter(w) => w.get_descriptor().name().to_owned(),
                ColumnWriter::Int64ColumnWriter(w) => w.get_descriptor().name().to_owned(),
                ColumnWriter::FixedLenByteArrayColumnWriter(w) => {
                    w.get_descriptor().name().to_owned()
                }
                _ => unreachable!("the schemas have no other column"),
            };
            write(&name, untyped);
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        let rows = read(&path).unwrap().into_iter();
        rows.map(Result::unwrap).collect()
    }

    fn write_bytes(writer: &mut ColumnWriter, bytes: &[u8]) {
        let ColumnWriter::ByteArrayColumnWriter(writer) = writer else {
            panic!("no binary column")
        };
        let value = ByteArray::from(bytes.to_vec());
        writer.write_batch(&[value], None, None).unwrap();
    }

    #[test]
    fn binary_is_text_or_refused_where_it_is_read() {
        let schema =
            "message m { required binary prompt; required binary image; required double margin; }";
        let record = row(schema, |name, writer| match (name, writer) {
            ("prompt", writer) => write_bytes(writer, "é one".as_bytes()),
            ("image", writer) => write_bytes(writer, b"\xff\xd8"),
            (_, ColumnWriter::DoubleColumnWriter(w)) => {
                w.write_batch(&[f64::NAN], None, None).unwrap();
            }
            _ => unreachable!("no other column"),
        });
        assert_eq!(record.fields["prompt"], "é one");
        let renamed = |from: &str, to: &str| {
            let mut record = record.clone();
            let value = record.fields[from].clone();
            record.fields.insert(to.to_owned(), value);
            record
        };
        let e = renamed("image", "text").text().unwrap_err().to_string();
        assert!(
            e.contains("row 1: field `text` is binary that is not UTF-8"),
            "{e}"
        );
        let pair = renamed("prompt", "chosen");
        let mut pair = Record {
            fields: pair.fields,
            ..pair
        };
        pair.fields.insert("rejected".into(), "b".into());
        let e = pair.preference().unwrap_err().to_string();
        assert!(e.contains("`margin` is a number that is not finite"), "{e}");
    }

    #[test]
    fn decimals_are_numbers_and_times_are_text() {
        let schema = "message m { required int32 margin (DECIMAL(9,2)); required int64 at \
                      (TIMESTAMP_MILLIS); required binary big (DECIMAL(20,1)); }";
        let record = row(schema, |name, writer| match (name, writer) {
            ("margin", ColumnWriter::Int32ColumnWriter(w)) => {
                w.write_batch(&[-150], None, None).unwrap();
            }
            ("at", ColumnWriter::Int64ColumnWriter(w)) => {
                w.write_batch(&[86_400_000], None, None).unwrap();
            }
            (_, writer) => write_bytes(writer, &[0x01, 0x05]),
        });
        assert_eq!(record.fields["margin"], -1.5);
        assert_eq!(record.fields["big"], 26.1);
        let at = record.fields["at"].as_str().unwrap();
        assert!(at.starts_with("1970-01-02"), "{at}");
    }

    #[test]
    fn text_that_is_not_utf8_concerns_its_own_record_alone() {
        let schema =
            "message m { required binary prompt (UTF8); required binary completion (UTF8); }";
        let records = written(schema, |name, writer| {
            let ColumnWriter::ByteArrayColumnWriter(writer) = writer else {
                panic!("no binary column")
            };
            let values: [&[u8]; 3] = match name {
                "prompt" => [b"a", b"\xff", b"c"],
                _ => [b"x", b"y", b"z"],
            };
            let values = values.map(|bytes| ByteArray::from(bytes.to_vec()));
            writer.write_batch(&values, None, None).unwrap();
        });
        let whole = |i: usize| serde_json::json!(records[i].fields);
        assert_eq!(
            whole(0),
            serde_json::json!({"prompt": "a", "completion": "x"})
        );
        assert_eq!(
            whole(2),
            serde_json::json!({"prompt": "c", "completion": "z"})
        );
        assert_eq!(records[1].fields["completion"], "y");
        let e = records[1].prompt_completion().unwrap_err().to_string();
        let says = "row 2: field `prompt` is binary that is not UTF-8";
        assert!(e.contains(says), "{e}");
    }

    #[test]
    fn dates_out_of_range_and_intervals_are_refused_where_they_are_read() {
        let schema = "message m { required int32 text (DATE); required int64 at \
                      (TIMESTAMP_MICROS); required fixed_len_byte_array(12) prompt (INTERVAL); }";
        let record = row(schema, |name, writer| match (name, writer) {
            ("text", ColumnWriter::Int32ColumnWriter(w)) => {
                w.write_batch(&[2_000_000_000], None, None).unwrap();
            }
            ("at", ColumnWriter::Int64ColumnWriter(w)) => {
                w.write_batch(&[1_000_000], None, None).unwrap();
            }
            // A month: bytes that would be UTF-8.
            (_, ColumnWriter::FixedLenByteArrayColumnWriter(w)) => {
                let month = ByteArray::from(vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                let month = FixedLenByteArray::from(month);
                w.write_batch(&[month], None, None).unwrap();
            }
            _ => unreachable!("no other column"),
        });
        let e = record.text().unwrap_err().to_string();
        assert!(
            e.contains("row 1: field `text` is a date or time out of range"),
            "{e}"
        );
        let e = record.prompt().unwrap_err().to_string();
        assert!(e.contains("row 1: field `prompt` is an interval"), "{e}");
        assert!(
            record.fields["at"]
                .as_str()
                .unwrap()
                .starts_with("1970-01-01")
        );
    }

    /// Keys of maps and elements of lists are text columns, too.
    #[test]
    fn a_map_keeps_its_keys() {
        let schema = "message m { required group counts (MAP) { repeated group key_value { \
                      required binary key (UTF8); required int32 value; } } }";
        let record = row(schema, |_, writer| match writer {
            ColumnWriter::ByteArrayColumnWriter(w) => {
                w.write_batch(&[ByteArray::from("é")], Some(&[1]), Some(&[0]))
                    .unwrap();
            }
            ColumnWriter::Int32ColumnWriter(w) => {
                w.write_batch(&[3], Some(&[1]), Some(&[0])).unwrap();
            }
            _ => unreachable!("no other column"),
        });
        assert_eq!(record.fields["counts"], serde_json::json!({"é": 3}));
    }

    /// Two messages, the second without content, as pyarrow writes a list of structs.
    #[test]
    fn lists_of_structs_are_messages_and_their_nulls_are_left_out() {
        let schema = "message m { optional group messages (LIST) { repeated group list { optional \
                      group element { optional binary role (UTF8); optional binary content (UTF8); \
                      } } } }";
        let record = row(schema, |name, writer| {
            let ColumnWriter::ByteArrayColumnWriter(writer) = writer else {
                panic!("no binary column")
            };
            let values: Vec<ByteArray> = match name {
                "role" => vec![ByteArray::from("user"), ByteArray::from("assistant")],
                _ => vec![ByteArray::from("a")],
            };
            let present: [i16; 2] = if name == "role" { [4, 4] } else { [4, 3] };
            writer
                .write_batch(&values, Some(&present), Some(&[0, 1]))
                .unwrap();
        });
        let expected = serde_json::json!([{"role": "user", "content": "a"}, {"role": "assistant"}]);
        assert_eq!(record.fields["messages"], expected);
    }
}
