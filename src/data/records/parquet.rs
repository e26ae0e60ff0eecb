//! Parquet through the row interface: a row is a record, a column a field, nested lists and structs
//! become JSON.
//!
//! Columns that JSON has no type for (bytes, decimals, dates) keep their printed form as a string.
//! A null column is left out, so that an optional field reads as absent.

use std::fs::File;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::{Place, Record, Source, shared_name};
use crate::data::error::{DataError, Result};

/// Reads all rows.
pub(super) fn read(path: &Path) -> Result<Vec<Record>> {
    let broken = |e: parquet::errors::ParquetError| DataError::Parquet {
        path: path.to_owned(),
        message: e.to_string(),
    };
    let file = File::open(path).map_err(|e| DataError::io(path, e))?;
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let name = shared_name(path);
    let rows = reader.get_row_iter(None).map_err(broken)?;
    rows.enumerate()
        .map(|(i, row)| {
            let source = Source {
                file: name.clone(),
                place: Place::Row(i + 1),
            };
            Ok(Record {
                fields: object(&row.map_err(broken)?),
                source,
            })
        })
        .collect()
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
        Field::Float16(v) => f64::from(*v).into(),
        Field::Float(v) => f64::from(*v).into(),
        Field::Double(v) => (*v).into(),
        Field::Str(v) => v.as_str().into(),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().map(json).collect(),
        Field::MapInternal(map) => Value::Object(
            map.entries()
                .iter()
                .map(|(key, value)| (key_text(key), json(value)))
                .collect(),
        ),
        other => other.to_string().into(),
    }
}

fn key_text(key: &Field) -> String {
    match key {
        Field::Str(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::column::writer::ColumnWriter;
    use parquet::data_type::ByteArray;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    /// Two rows; the margin of the second is null.
    fn write_pairs(path: &Path) {
        let schema = "message m { required binary prompt (UTF8); required binary chosen (UTF8); optional double margin; }";
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
        let records = read(&path).unwrap();
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
}
