//! Two logs of a partition, event by event.

use std::collections::VecDeque;

use ledger_core::{Event, Head, Partition, Position, json::LogEntry};
use ledger_store::{DamagedRow, Database, scan::Scan};
use serde::Serialize;
use serde_json::Value;

use crate::{archive::PartitionState, context::Failure, progress::Progress};

/// The first place where two logs differ.
#[derive(Debug, Serialize)]
pub(super) struct LogDifference {
    pub(super) position: Position,
    pub(super) fields: Vec<Field>,
}

/// A field, as each of the two has it.
#[derive(Debug, Serialize)]
pub(super) struct Field {
    pub(super) field: String,
    pub(super) a: Value,
    pub(super) b: Value,
}

/// What reading both came to.
pub(super) struct Logs {
    pub(super) difference: Option<LogDifference>,
    /// What follows from each; none where a log contradicts itself.
    pub(super) states: [Option<PartitionState>; 2],
}

type Row = Result<Event, DamagedRow>;

/// One log that is read row by row.
struct Rows {
    scan: Scan,
    page: VecDeque<Row>,
    /// What follows from it; none after a contradiction.
    state: Option<PartitionState>,
    contradiction: Option<String>,
}

impl Rows {
    fn new(database: &Database, partition: Partition, end: &Head) -> Self {
        Self {
            scan: database.scan(partition, Position::ZERO, end.position),
            page: VecDeque::new(),
            state: Some(PartitionState::default()),
            contradiction: None,
        }
    }

    async fn next(&mut self) -> Result<Option<Row>, Failure> {
        if self.page.is_empty() {
            self.page = self.scan.next().await?.into();
        }
        Ok(self.page.pop_front())
    }

    fn fold(&mut self, row: &Row) {
        let contradiction = match (row, &mut self.state) {
            (_, None) => return,
            (Err(damage), _) => damage.to_string(),
            (Ok(event), Some(state)) => match state.add(event) {
                Ok(()) => return,
                Err(contradiction) => contradiction.to_string(),
            },
        };
        self.contradiction = Some(contradiction);
        self.state = None;
    }
}

/// Reads both logs up to their ends.
pub(super) async fn read(
    databases: [&Database; 2],
    partition: Partition,
    ends: &[Head; 2],
    progress: &Progress,
) -> Result<Logs, Failure> {
    let mut a = Rows::new(databases[0], partition, &ends[0]);
    let mut b = Rows::new(databases[1], partition, &ends[1]);
    let mut difference = None;
    let mut done = 0;
    loop {
        let (one, other) = (a.next().await?, b.next().await?);
        if one.is_none() && other.is_none() {
            break;
        }
        if difference.is_none() && one != other {
            difference = Some(LogDifference { position: first_of(&one, &other), fields: fields(&one, &other) });
        }
        one.iter().for_each(|row| a.fold(row));
        other.iter().for_each(|row| b.fold(row));
        done += 1;
        if done % 1_000 == 0 {
            progress.advance(1_000);
        }
    }
    progress.advance(done % 1_000);
    if difference.is_none() && [ends[0].position, ends[0].position] != [ends[1].position, a.head_position()] {
        // No rows, but other heads.
        difference = heads_differ(ends);
    }
    if difference.is_none() && (a.contradiction.is_some() || ends[0].hash != ends[1].hash) {
        difference = heads_differ(ends).or_else(|| {
            // Both are damaged in the same way. That is no difference between them; `verify` tells of it.
            None
        });
    }
    Ok(Logs { difference, states: [a.state, b.state] })
}

impl Rows {
    fn head_position(&self) -> Position {
        self.state.as_ref().map_or(Position::ZERO, |state| state.head.position)
    }
}

/// Where two heads are not the same.
fn heads_differ(ends: &[Head; 2]) -> Option<LogDifference> {
    let [a, b] = ends;
    if a.position == b.position && a.hash == b.hash {
        return None;
    }
    let mut fields = Vec::new();
    if a.position != b.position {
        fields.push(Field { field: "head position".to_owned(), a: a.position.0.into(), b: b.position.0.into() });
    }
    if a.hash != b.hash {
        let text = |head: &Head| Value::String(head.hash.to_string());
        fields.push(Field { field: "head hash".to_owned(), a: text(a), b: text(b) });
    }
    Some(LogDifference { position: a.position.min(b.position), fields })
}

/// Finds the first differing event by the hashes: as long as two hashes are the same, so is all before them.
pub(super) async fn bisect(
    databases: [&Database; 2],
    partition: Partition,
    ends: &[Head; 2],
) -> Result<Option<LogDifference>, Failure> {
    let Some(by_heads) = heads_differ(ends) else { return Ok(None) };
    let (mut low, mut high) = (0, ends[0].position.min(ends[1].position).0);
    let at = async |position: u64| -> Result<[Option<Event>; 2], Failure> {
        let position = Position(position);
        Ok([databases[0].event_at(partition, position).await?, databases[1].event_at(partition, position).await?])
    };
    // `low` is the last position that is known to be the same.
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let [one, other] = at(middle).await?;
        let same = one.is_some() && one.map(|event| event.hash) == other.map(|event| event.hash);
        if same {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    let [one, other] = at(low + 1).await?.map(|event| event.map(Ok));
    if one.is_none() && other.is_none() {
        return Ok(Some(by_heads));
    }
    Ok(Some(LogDifference { position: Position(low + 1), fields: fields(&one, &other) }))
}

fn first_of(one: &Option<Row>, other: &Option<Row>) -> Position {
    let position = |row: &Row| row.as_ref().map_or_else(|damage| damage.position, |event| event.position);
    [one, other].into_iter().flatten().map(position).min().unwrap_or_default()
}

/// The fields in which two rows differ.
fn fields(one: &Option<Row>, other: &Option<Row>) -> Vec<Field> {
    let whole = |row: &Option<Row>| match row {
        None => Value::String("no event".to_owned()),
        Some(Err(damage)) => Value::String(damage.to_string()),
        Some(Ok(event)) => serde_json::to_value(LogEntry(event)).unwrap_or_default(),
    };
    let (a, b) = (whole(one), whole(other));
    let (Value::Object(fields), Value::Object(others)) = (&a, &b) else {
        // One of them is no event: which one, and what the other is about.
        let brief = |value: Value| match value {
            Value::Object(fields) => Value::String(format!(
                "{} {} of {}/{}",
                fields["type"].as_str().unwrap_or_default(),
                fields["transaction_id"].as_str().unwrap_or_default(),
                fields["user_id"].as_str().unwrap_or_default(),
                fields["credit_type"].as_str().unwrap_or_default()
            )),
            text => text,
        };
        return vec![Field { field: "event".to_owned(), a: brief(a), b: brief(b) }];
    };
    fields
        .iter()
        .filter(|(name, value)| others.get(*name) != Some(value))
        .map(|(name, value)| Field {
            field: name.clone(),
            a: value.clone(),
            b: others.get(name).cloned().unwrap_or_default(),
        })
        .collect()
}
