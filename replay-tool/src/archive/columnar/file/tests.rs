use ledger_core::{
    Account, Action, Amount, BatchMark, BusinessKey, Command, Head, Provenance, Situation, Slot, Timestamp, decide,
    json::LogEntry,
};
use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
};
use serde_json::{Value, json};

use super::*;

/// Events with and without everything that may be absent.
fn events(count: u64) -> Vec<Event> {
    let account = Account::new("ann", "points").expect("valid");
    let mut events: Vec<Event> = Vec::new();
    for number in 0..count {
        let command = Command {
            action: Action::Credit { account: account.clone(), amount: Amount::new(1 + number).expect("valid") },
            key: BusinessKey::new("test", &number.to_string()).expect("valid"),
            expected_version: None,
            provenance: Provenance {
                operation_id: None,
                request_id: format!("request {number}").into(),
                actor: "müller".into(),
                description: number.is_multiple_of(2).then(|| "a gift, \"one\"".into()),
                metadata: number.is_multiple_of(3).then(|| r#"{"shop":7}"#.into()),
            },
        };
        let head = events.last().map_or(Head::EMPTY, Event::head);
        let now = Timestamp::from_micros(1_700_000_000_123_456 + number.cast_signed()).expect("in range");
        let state = events.last().map(|event| event.after);
        let effect =
            decide(&Situation { account: state.as_ref(), original: None }, &command, now).expect("not refused");
        let slot = Slot { partition: account.partition(), head, previous_position: head.position };
        let mark = BatchMark { id: Uuid::from_u128(number.into()), size: 3, index: 1 };
        let mut event = Event::seal(&account, &command, &effect, &slot, number.is_multiple_of(2).then_some(mark), now);
        if number.is_multiple_of(5) {
            // What a credit never is; the file does not judge.
            event.amount = None;
            event.related_id = Some(event.transaction_id);
            event.remaining = Some(number);
            event.expires_at = Some(now);
            event.after.locked = true;
        }
        events.push(event);
    }
    events
}

/// A field as the contract's JSON has it.
fn told(name: &str, field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(truth) => json!(truth),
        Field::Int(number) => json!(number),
        Field::Long(number) => json!(number),
        Field::TimestampMicros(micros) => json!(Timestamp::from_micros(*micros).expect("a time")),
        Field::Str(text) if name == "metadata" => serde_json::from_str(text).expect("JSON"),
        Field::Str(text) => json!(text),
        Field::Bytes(bytes) if bytes.len() == 16 => json!(Uuid::from_slice(bytes.data()).expect("16 bytes")),
        Field::Bytes(bytes) => {
            json!(ledger_core::Hash(bytes.data().try_into().expect("32 bytes")))
        }
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn every_column_of_every_event_is_read_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("events.parquet");
    // More than one row group.
    let events = events(GROUP as u64 + 11);
    let mut writer = Writer::create(&path).expect("created");
    events.iter().for_each(|event| writer.add(event).expect("added"));
    writer.finish().expect("finished");

    let reader = SerializedFileReader::new(File::open(&path).expect("there")).expect("a Parquet file");
    assert_eq!(reader.metadata().num_row_groups(), 2);
    let mut read = 0;
    for (row, event) in reader.get_row_iter(None).expect("rows").zip(&events) {
        let row = row.expect("a row");
        let found: serde_json::Map<_, _> =
            row.get_column_iter().map(|(name, field)| (name.clone(), told(name, field))).collect();
        let expected = serde_json::to_value(LogEntry(event)).expect("JSON");
        assert_eq!(Value::Object(found), expected, "position {}", event.position);
        read += 1;
    }
    assert_eq!(read, events.len());
}

#[test]
fn a_ledger_without_events_makes_a_file_without_rows() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("events.parquet");
    Writer::create(&path).and_then(Writer::finish).expect("written");
    let reader = SerializedFileReader::new(File::open(&path).expect("there")).expect("a Parquet file");
    assert_eq!(reader.metadata().file_metadata().num_rows(), 0);
}
