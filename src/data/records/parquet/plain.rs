//! Row groups whose text columns are read as bytes.
//!
//! The row interface of the `parquet` crate stops at the first text that is not UTF-8 and cannot go
//! on to the next row, and it panics at an interval. Read as bytes, such a value affects its own
//! record only.

use std::sync::Arc;

use parquet::basic::{ConvertedType, Type as Physical};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::PageReader;
use parquet::errors::Result;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::reader::RowGroupReader;
use parquet::record::reader::RowIter;
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type};

/// The file's schema with plain bytes in place of text and intervals.
pub(super) fn schema(file: &Type) -> Result<SchemaDescPtr> {
    Ok(Arc::new(SchemaDescriptor::new(Arc::new(plain(file)?))))
}

/// True if a column contains an interval at any depth.
pub(super) fn holds_interval(column: &Type) -> bool {
    match column.is_primitive() {
        true => column.get_basic_info().converted_type() == ConvertedType::INTERVAL,
        false => column
            .get_fields()
            .iter()
            .any(|field| holds_interval(field)),
    }
}

fn plain(kind: &Type) -> Result<Type> {
    match kind {
        Type::GroupType { basic_info, fields } => {
            let fields = fields.iter().map(|field| plain(field).map(Arc::new));
            Ok(Type::GroupType {
                basic_info: basic_info.clone(),
                fields: fields.collect::<Result<_>>()?,
            })
        }
        Type::PrimitiveType {
            basic_info,
            physical_type,
            type_length,
            ..
        } if is_text_or_interval(basic_info.converted_type()) => {
            Type::primitive_type_builder(basic_info.name(), *physical_type)
                .with_repetition(basic_info.repetition())
                .with_length(match physical_type {
                    Physical::FIXED_LEN_BYTE_ARRAY => *type_length,
                    _ => -1,
                })
                .build()
        }
        other => Ok(other.clone()),
    }
}

fn is_text_or_interval(kind: ConvertedType) -> bool {
    matches!(
        kind,
        ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON | ConvertedType::INTERVAL
    )
}

/// A row group of the file under a schema of [`schema`].
pub(super) struct Group<'r> {
    inner: Box<dyn RowGroupReader + 'r>,
    metadata: RowGroupMetaData,
}

impl<'r> Group<'r> {
    pub(super) fn new(inner: Box<dyn RowGroupReader + 'r>, schema: &SchemaDescPtr) -> Result<Self> {
        let columns = schema.columns().iter();
        let columns = columns.map(|column| ColumnChunkMetaData::builder(column.clone()).build());
        let metadata = RowGroupMetaData::builder(schema.clone())
            .set_num_rows(inner.metadata().num_rows())
            .set_column_metadata(columns.collect::<Result<_>>()?)
            .build()?;
        Ok(Self { inner, metadata })
    }
}

impl RowGroupReader for Group<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        &self.metadata
    }

    fn num_columns(&self) -> usize {
        self.inner.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
        self.inner.get_column_page_reader(i)
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&Sbbf> {
        self.inner.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}
