//! Parquet (<https://parquet.apache.org/docs/file-format/>), by the writer that needs no Arrow.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use ledger_core::Event;
use parquet::{
    basic::{Compression, ZstdLevel},
    data_type::{
        BoolType, ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, Int32Type, Int64Type,
    },
    errors::ParquetError,
    file::{
        properties::WriterProperties,
        writer::{SerializedColumnWriter, SerializedFileWriter},
    },
    schema::parser::parse_message_type,
};
use uuid::Uuid;

use crate::context::Failure;

/// Events of one row group: what a reader takes at once, and what waits in memory here (some 30 MB).
const GROUP: usize = if cfg!(test) { 100 } else { 65_536 };
/// As for the archive's own files: higher levels cost far more than they save.
const LEVEL: i32 = 3;

/// How a column is taken from an event. None is null.
enum Column {
    Small(fn(&Event) -> Option<i32>),
    Number(fn(&Event) -> Option<i64>),
    Truth(fn(&Event) -> bool),
    Text(fn(&Event) -> Option<&str>),
    Id(fn(&Event) -> Option<Uuid>),
    Hash(fn(&Event) -> [u8; 32]),
}

/// The columns with their declarations, under the names that they have over HTTP.
const COLUMNS: [(&str, Column); 32] = [
    ("required int32 partition", Column::Small(|event| Some(event.partition.number().into()))),
    ("required int64 epoch", Column::Number(|event| Some(event.epoch.0.into()))),
    ("required int64 position", Column::Number(|event| Some(number(event.position.0)))),
    ("required int64 previous_position", Column::Number(|event| Some(number(event.previous_position.0)))),
    ("required fixed_len_byte_array(16) transaction_id (UUID)", Column::Id(|event| Some(event.transaction_id.uuid()))),
    ("required binary type (STRING)", Column::Text(|event| Some(event.event_type.name()))),
    ("required int32 schema_version", Column::Small(|event| Some(event.schema_version.into()))),
    ("required fixed_len_byte_array(16) account_id (UUID)", Column::Id(|event| Some(event.account.id().uuid()))),
    ("required binary user_id (STRING)", Column::Text(|event| Some(event.account.user_id()))),
    ("required binary credit_type (STRING)", Column::Text(|event| Some(event.account.credit_type()))),
    ("optional int64 amount", Column::Number(|event| event.amount.map(|amount| number(amount.units())))),
    ("required int64 released", Column::Number(|event| Some(number(event.released)))),
    (
        "optional fixed_len_byte_array(16) related_id (UUID)",
        Column::Id(|event| event.related_id.map(|related| related.uuid())),
    ),
    ("optional int64 remaining", Column::Number(|event| event.remaining.map(number))),
    ("required int64 balance", Column::Number(|event| Some(number(event.after.balance)))),
    ("required int64 frozen", Column::Number(|event| Some(number(event.after.frozen)))),
    ("required int64 available", Column::Number(|event| Some(number(event.after.available())))),
    ("required boolean locked", Column::Truth(|event| event.after.locked)),
    ("required int64 version", Column::Number(|event| Some(number(event.after.version)))),
    ("required binary business_code (STRING)", Column::Text(|event| Some(event.key.code()))),
    ("required binary business_id (STRING)", Column::Text(|event| Some(event.key.id()))),
    ("required fixed_len_byte_array(16) operation_id (UUID)", Column::Id(|event| Some(event.operation_id))),
    ("required binary request_id (STRING)", Column::Text(|event| Some(&event.request_id))),
    ("required binary actor (STRING)", Column::Text(|event| Some(&event.actor))),
    ("optional binary description (STRING)", Column::Text(|event| event.description.as_deref())),
    ("optional binary metadata (STRING)", Column::Text(|event| event.metadata.as_deref())),
    (
        "optional int64 expires_at (TIMESTAMP(MICROS,true))",
        Column::Number(|event| event.expires_at.map(|expires_at| expires_at.micros())),
    ),
    ("required int64 recorded_at (TIMESTAMP(MICROS,true))", Column::Number(|event| Some(event.recorded_at.micros()))),
    ("optional fixed_len_byte_array(16) batch_id (UUID)", Column::Id(|event| event.batch.map(|mark| mark.id))),
    ("optional int64 batch_size", Column::Number(|event| event.batch.map(|mark| mark.size.into()))),
    ("optional int64 batch_index", Column::Number(|event| event.batch.map(|mark| mark.index.into()))),
    ("required fixed_len_byte_array(32) hash", Column::Hash(|event| event.hash.0)),
];

/// Amounts, versions and positions are below 2^63.
fn number(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

/// Writes events in the order in which they come.
pub(super) struct Writer {
    path: PathBuf,
    file: SerializedFileWriter<File>,
    waiting: Vec<Event>,
}

impl Writer {
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        let create = || {
            let columns: Vec<_> = COLUMNS.iter().map(|(declaration, _)| format!("{declaration};")).collect();
            let schema = parse_message_type(&format!("message event {{ {} }}", columns.join(" ")))?;
            let properties =
                WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(LEVEL)?)).build();
            SerializedFileWriter::new(File::create(path)?, Arc::new(schema), Arc::new(properties))
        };
        let file = create().map_err(|error| failed(path, &error))?;
        Ok(Self { path: path.to_owned(), file, waiting: Vec::new() })
    }

    pub(super) fn add(&mut self, event: &Event) -> Result<(), Failure> {
        // Its texts are shared, so a copy is small.
        self.waiting.push(event.clone());
        if self.waiting.len() == GROUP { self.write_group() } else { Ok(()) }
    }

    fn write_group(&mut self) -> Result<(), Failure> {
        let events = std::mem::take(&mut self.waiting);
        let mut write = || {
            let mut group = self.file.next_row_group()?;
            for (_, column) in &COLUMNS {
                let missing = || ParquetError::General("the schema lacks a column".to_owned());
                let mut into = group.next_column()?.ok_or_else(missing)?;
                write_column(&mut into, column, &events)?;
                into.close()?;
            }
            group.close().map(drop)
        };
        write().map_err(|error| failed(&self.path, &error))
    }

    /// Puts all of it on the disk.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        if !self.waiting.is_empty() {
            self.write_group()?;
        }
        let Self { path, file, .. } = self;
        let finish = || file.into_inner()?.sync_all().map_err(ParquetError::from);
        finish().map_err(|error| failed(&path, &error))
    }
}

fn write_column(into: &mut SerializedColumnWriter<'_>, column: &Column, events: &[Event]) -> Result<(), ParquetError> {
    let fixed = |bytes: Vec<u8>| FixedLenByteArray::from(bytes);
    match column {
        Column::Small(of) => write::<Int32Type>(into, events.iter().map(of)),
        Column::Number(of) => write::<Int64Type>(into, events.iter().map(of)),
        Column::Truth(of) => write::<BoolType>(into, events.iter().map(|event| Some(of(event)))),
        Column::Text(of) => write::<ByteArrayType>(into, events.iter().map(|event| of(event).map(ByteArray::from))),
        Column::Id(of) => write::<FixedLenByteArrayType>(
            into,
            events.iter().map(|event| of(event).map(|id| fixed(id.as_bytes().to_vec()))),
        ),
        Column::Hash(of) => {
            write::<FixedLenByteArrayType>(into, events.iter().map(|event| Some(fixed(of(event).to_vec()))))
        }
    }
}

/// Writes values; which of them are there is told by levels, which a column that is never null has none of.
fn write<T: DataType>(
    into: &mut SerializedColumnWriter<'_>,
    column: impl Iterator<Item = Option<T::T>>,
) -> Result<(), ParquetError> {
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    for value in column {
        levels.push(i16::from(value.is_some()));
        values.extend(value);
    }
    into.typed::<T>().write_batch(&values, Some(&levels), None).map(drop)
}

fn failed(path: &Path, error: &ParquetError) -> Failure {
    Failure::new(format!("--columnar: {} cannot be written: {error}", path.display()))
}

#[cfg(test)]
mod tests;
