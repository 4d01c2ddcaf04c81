//! Operations: what was recorded under one id, the flows that callers describe, and the reversal of all of it.

use std::{collections::HashMap, future::Future, sync::Arc};

use ledger_core::{
    Account, BusinessKey, Command, Event, PARTITIONS, Partition, Position, Provenance, Rejection, Timestamp,
    TransactionId,
    operation::{self, Reversal},
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, SqliteConnection};
use uuid::Uuid;

use crate::{
    Database, Ledger, StoreError, Unavailable,
    batch::{Answer, Ask, Compensate},
    beside::Table,
    ledger::{failed, system_time, unavailable},
    refusals::{self, Refusal, Time},
    sqlite::id_of,
};

/// The most transactions that are reversed at once: as many as an atomic batch has.
pub const REVERSALS_MAX: usize = 10_000;

const COMPENSATIONS: Table = Table {
    name: "compensations",
    columns: &["partition", "operation_id", "compensated_at", "request_id", "actor", "reason", "reversals"],
};

const RECORDS: Table = Table {
    name: "operation_records",
    columns: &["partition", "number", "operation_id", "recorded_at", "name", "status", "data", "request_id", "actor"],
};

/// That an operation was reversed as a whole, and who asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compensation {
    pub partition: u8,
    pub operation_id: Uuid,
    pub compensated_at: Time,
    pub request_id: String,
    pub actor: String,
    pub reason: String,
    /// How many events reversed it; with none only this row tells of it.
    pub reversals: u32,
}

impl Compensation {
    /// What an event tells of the compensation that it is a part of.
    pub(crate) fn told_by(event: &Event) -> Option<Self> {
        (**event.key.code() == *operation::COMPENSATION_CODE).then(|| Self {
            partition: operation::partition(event.operation_id).number(),
            operation_id: event.operation_id,
            compensated_at: Time(event.recorded_at),
            request_id: event.request_id.to_string(),
            actor: event.actor.to_string(),
            reason: "the log tells of it".to_owned(),
            reversals: event.batch.map_or(1, |mark| mark.size),
        })
    }
}

/// What the events of the log tell of a compensation, and the row of it: they say the same, or one of them is not there.
#[derive(Debug, Clone)]
pub struct Contradiction {
    /// With the first of its events.
    pub told: Option<(Compensation, Event)>,
    pub row: Option<Result<Compensation, Unreadable>>,
}

/// A row of compensations that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// As the row has them.
    partition: i64,
    operation_id: String,
    reversals: i64,
    pub why: String,
}

impl Unreadable {
    /// The partition that it stands in, if there is such a one.
    #[must_use]
    pub fn partition(&self) -> Option<Partition> {
        u8::try_from(self.partition).ok().and_then(Partition::new)
    }

    /// The operation that it stands in the place of, in whichever form that is written.
    fn names(&self) -> Option<Uuid> {
        let id = Uuid::try_parse(&self.operation_id).ok()?;
        (self.partition == i64::from(operation::partition(id).number())).then_some(id)
    }

    /// Whether it closes an operation all the same: that goes by its place, and on SQLite by its text.
    fn closes(&self) -> bool {
        id_of(&self.operation_id).is_some() && self.names().is_some()
    }
}

/// A row of a flow: its opening (number 0), or what became of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub partition: u8,
    pub number: u32,
    pub operation_id: Uuid,
    pub recorded_at: Time,
    /// The flow's name at number 0, else the step's.
    pub name: String,
    pub status: String,
    /// A JSON object, as its very text.
    pub data: Option<String>,
    pub request_id: String,
    pub actor: String,
}

/// Everything that is known of an operation.
#[derive(Debug, Clone)]
pub struct Operation {
    pub id: Uuid,
    /// In the order in which they were recorded.
    pub events: Vec<Event>,
    /// The newest first.
    pub refusals: Vec<Refusal>,
    /// In order.
    pub records: Vec<Record>,
    pub compensation: Option<Compensation>,
    /// Up to where the log was when the events were read: there are no others up to there.
    seen: Box<[Position; PARTITIONS]>,
}

impl Operation {
    /// Whether nothing at all is known of it.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.events.is_empty() && self.refusals.is_empty() && self.records.is_empty() && self.compensation.is_none()
    }
}

/// How a compensation ended.
#[derive(Debug, Clone)]
pub enum Compensated {
    /// Everything that was open is reversed by these events.
    Now(Vec<Arc<Event>>),
    /// It was reversed before.
    Before,
    /// More was recorded under the operation since it was read.
    ReadAgain,
    /// Nothing was done: these reversals, by their index, are refused.
    Refused(Vec<(usize, Rejection)>),
}

/// Who asks for a compensation, and why.
#[derive(Debug, Clone)]
pub struct Asked {
    pub request_id: Arc<str>,
    pub actor: Arc<str>,
    pub reason: Arc<str>,
    pub at: Timestamp,
}

impl Ledger {
    /// Everything that is known of an operation. Its events are exact: all that was recorded before this was called.
    ///
    /// # Errors
    ///
    /// When the database is away, or damaged there.
    pub async fn operation(&self, id: Uuid) -> Result<Operation, Unavailable> {
        let _turn = self.operation_reads.acquire().await.map_err(|_| Unavailable::Stopping)?;
        let hash = operation::hash(id);
        let (mut places, seen) = match self.ask(Ask::Operation(hash), 1).await {
            Answer::Operation(places, seen) => (places, seen),
            other => return Err(unavailable(&other)),
        };
        // After the tail: what it lets go of meanwhile is in the index by then.
        places.extend(self.reading(self.database.business_positions(hash)).await?);
        if let Some(own) = TransactionId::from_uuid(id) {
            // A transaction without an operation is one of its own, and others may have been put under its id.
            let (partition, _, position) = own.locate();
            if position > Position::ZERO && position <= seen[partition.index()] {
                places.push((partition, position));
            }
        }
        let mut events = self.read_all(places).await?;
        events.retain(|event| event.operation_id == id && event.position <= seen[event.partition.index()]);
        events.sort_by_key(|event| (event.recorded_at, event.partition, event.position));
        self.refusals_settled().await;
        Ok(Operation {
            id,
            events,
            refusals: self.reading(refusals::of_operation(&self.database, id)).await?,
            records: self.reading(self.database.operation_records(id)).await?,
            compensation: self.reading(self.database.compensation(id)).await?,
            seen,
        })
    }

    /// The newest refusals of a business key, in one account or in all, the newest first.
    ///
    /// # Errors
    ///
    /// When the database is away.
    pub async fn refusals(&self, key: &BusinessKey, account: Option<&Account>) -> Result<Vec<Refusal>, Unavailable> {
        self.refusals_settled().await;
        self.reading(refusals::of_key(&self.database, key, account)).await
    }

    /// Reverses an operation as it was read, in one transaction over all of its accounts, or nothing of it. From then on
    /// nothing more is recorded under it.
    ///
    /// # Errors
    ///
    /// When nothing is known to have been done.
    ///
    /// # Panics
    ///
    /// With more than [`REVERSALS_MAX`] reversals.
    pub async fn compensate(
        &self,
        operation: &Operation,
        reversals: &[Reversal],
        asked: &Asked,
    ) -> Result<Compensated, Unavailable> {
        assert!(reversals.len() <= REVERSALS_MAX, "the caller counts them first");
        let description: Arc<str> = "compensation of the operation".into();
        let commands = reversals.iter().map(|reversal| Command {
            action: reversal.action.clone(),
            key: reversal.key(),
            expected_version: None,
            provenance: Provenance {
                operation_id: Some(operation.id),
                request_id: asked.request_id.clone(),
                actor: asked.actor.clone(),
                description: Some(description.clone()),
                metadata: None,
            },
        });
        let compensate = Compensate {
            compensation: Compensation {
                partition: operation::partition(operation.id).number(),
                operation_id: operation.id,
                compensated_at: Time(asked.at),
                request_id: asked.request_id.to_string(),
                actor: asked.actor.to_string(),
                reason: asked.reason.to_string(),
                reversals: 0,
            },
            reversals: commands.collect(),
            seen: *operation.seen,
        };
        let weight = compensate.reversals.len().max(1);
        match self.ask(Ask::Compensate(Box::new(compensate)), weight).await {
            Answer::Compensated(compensated) => Ok(compensated),
            other => Err(unavailable(&other)),
        }
    }

    async fn reading<T>(&self, read: impl Future<Output = Result<T, StoreError>>) -> Result<T, Unavailable> {
        read.await.map_err(|error| failed(&error))
    }
}

impl Database {
    /// Adds a row to a flow; false when a row of that number is there already.
    ///
    /// # Errors
    ///
    /// When the database cannot be written.
    pub async fn record_step(&self, record: Record) -> Result<bool, StoreError> {
        let database = self.clone();
        // A task of its own: whoever asked may go away in the middle.
        let task = tokio::spawn(async move { RECORDS.insert(&database, &[record]).await });
        let written =
            task.await.unwrap_or_else(|_| Err(StoreError::Inconsistent("a record's task ended early".into())))?;
        Ok(written == 1)
    }

    /// The rows of a flow, in order.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub async fn operation_records(&self, operation_id: Uuid) -> Result<Vec<Record>, StoreError> {
        let partition = operation::partition(operation_id);
        let rest = format!("where partition = {partition} and operation_id = $1{{uuid}} order by number");
        RECORDS.select(self, &rest, &[&operation_id.to_string()]).await
    }

    /// The compensation of an operation, if it was compensated.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub async fn compensation(&self, operation_id: Uuid) -> Result<Option<Compensation>, StoreError> {
        Ok(self.compensations(&[operation_id]).await?.pop())
    }

    /// Those of some operations that were compensated.
    pub(crate) async fn compensations(&self, operations: &[Uuid]) -> Result<Vec<Compensation>, StoreError> {
        let mut found = Vec::new();
        for some in operations.chunks(500) {
            // Numbers and ids of our own making: nothing of a caller's text gets into the statement.
            let wanted = some.iter().map(|id| format!("({}, '{id}'{{uuid}})", operation::partition(*id)));
            let wanted = wanted.collect::<Vec<_>>().join(", ");
            let rest = format!("where (partition, operation_id) in (values {wanted})");
            found.extend(COMPENSATIONS.select(self, &rest, &[]).await?);
        }
        Ok(found)
    }
}

impl Database {
    /// The compensations of which the log and the rows say different things, up to some head that the log had meanwhile. Those
    /// that reversed nothing are not among them: only their rows tell of them. Reads the whole log.
    ///
    /// # Errors
    ///
    /// When the database cannot be read, or the log lacks an event: it may be the one that tells of a compensation.
    pub async fn contradicted_compensations(&self) -> Result<Vec<Contradiction>, StoreError> {
        // The rows first: the events of each of them are in the log by the time that is read.
        let (mut rows, mut unreadable) = self.all_compensations().await?;
        let heads = self.heads().await?;
        let mut found = Vec::new();
        for partition in Partition::all() {
            let head = heads[partition.index()].position;
            let mut scan = self.scan(partition, Position::ZERO, head);
            let mut read = Position::ZERO;
            while read < head {
                let events = scan.next().await?;
                if events.is_empty() {
                    return Err(lacking(partition, read.next()));
                }
                for event in events {
                    let next = read.next();
                    let Some(event) = event.ok().filter(|event| event.position == next) else {
                        return Err(lacking(partition, next));
                    };
                    read = next;
                    if event.batch.is_some_and(|mark| mark.index > 0) {
                        continue;
                    }
                    let Some(told) = Compensation::told_by(&event) else { continue };
                    let place = (told.partition.into(), told.operation_id.to_string());
                    let row = match rows.remove(&(told.partition, told.operation_id)) {
                        Some(row) => Some(Ok(row)),
                        None => match unreadable.remove(&place) {
                            Some(row) => Some(Err(row)),
                            // Or it was written after the rows were read.
                            None => self.compensation(told.operation_id).await?.map(Ok),
                        },
                    };
                    let agrees = matches!(&row, Some(Ok(row)) if row.reversals == told.reversals);
                    if !agrees {
                        found.push(Contradiction { told: Some((told, event)), row });
                    }
                }
            }
        }
        let untold = rows.into_values().filter(|row| row.reversals > 0).map(Ok);
        let untold = untold.chain(unreadable.into_values().map(Err));
        found.extend(untold.map(|row| Contradiction { told: None, row: Some(row) }));
        Ok(found)
    }

    /// Makes the rows of compensations say what the log does; tells how many did not. Commands may go on meanwhile.
    ///
    /// # Errors
    ///
    /// When the database cannot be read or written. When the log lacks an event: nothing is changed then. An event that can be
    /// read, and is not what was written, only a verification finds.
    pub async fn mend_compensations(&self) -> Result<usize, StoreError> {
        let contradicted = self.contradicted_compensations().await?;
        const DELETE: &str = "delete from compensations";
        for Contradiction { told, row } in &contradicted {
            match row {
                // What the log did not tell of then it will never tell of.
                Some(Ok(row)) => {
                    let what = match told {
                        None => DELETE.to_owned(),
                        Some((told, _)) => format!("update compensations set reversals = {}", told.reversals),
                    };
                    Table::change(self, &what, row.partition.into(), &row.operation_id.to_string()).await?;
                    continue;
                }
                // An operation that is closed stays closed at every moment, and what the row still tells is kept.
                Some(Err(row)) if row.closes() && (told.is_some() || row.reversals == 0) => {
                    let (at, reversals) = match told {
                        Some((told, _)) => (told.compensated_at.0, told.reversals),
                        None => (system_time(), 0),
                    };
                    let what = format!("update compensations set compensated_at = '{at}', reversals = {reversals}");
                    Table::change(self, &what, row.partition, &row.operation_id).await?;
                    continue;
                }
                Some(Err(row)) => {
                    let mut what = DELETE.to_owned();
                    // What only this row tells it is to tell in the form in which it is found.
                    if let Some(id) = row.names().filter(|_| told.is_none() && row.reversals == 0)
                        && self.compensation(id).await?.is_none()
                    {
                        what = format!("update compensations set operation_id = '{id}'");
                    }
                    Table::change(self, &what, row.partition, &row.operation_id).await?;
                }
                None => {}
            }
            if let Some((told, _)) = told {
                COMPENSATIONS.insert(self, std::slice::from_ref(told)).await?;
            }
        }
        Ok(contradicted.len())
    }

    /// All rows, those that can be read and those that cannot.
    async fn all_compensations(
        &self,
    ) -> Result<(HashMap<(u8, Uuid), Compensation>, HashMap<(i64, String), Unreadable>), StoreError> {
        let (mut rows, mut unreadable) = (HashMap::new(), HashMap::new());
        for text in COMPENSATIONS.select_texts(self, "", &[]).await? {
            let row: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            let operation_id = row["operation_id"].as_str().unwrap_or_default().to_owned();
            let read = match id_of(&operation_id) {
                Some(_) => serde_json::from_str::<Compensation>(&text).map_err(|error| error.to_string()),
                None => Err(format!("operation_id is `{operation_id}`, not an id as the ledger writes it")),
            };
            match read {
                Ok(row) => drop(rows.insert((row.partition, row.operation_id), row)),
                Err(why) => {
                    let partition = row["partition"].as_i64().unwrap_or(-1);
                    let reversals = row["reversals"].as_i64().unwrap_or(-1);
                    let place = (partition, operation_id.clone());
                    unreadable.insert(place, Unreadable { partition, operation_id, reversals, why });
                }
            }
        }
        Ok((rows, unreadable))
    }
}

/// There is no event where one must be.
fn lacking(partition: Partition, position: Position) -> StoreError {
    StoreError::Inconsistent(format!(
        "the log of partition {partition} is damaged at position {position}: run replay-tool verify"
    ))
}

/// Writes compensations in a transaction that has begun.
pub(crate) async fn insert_on_postgres(
    connection: &mut PgConnection,
    compensations: &[Compensation],
) -> Result<(), StoreError> {
    COMPENSATIONS.insert_on_postgres(connection, compensations).await.map(drop)
}

/// After a restore: the compensations are those that the log tells of, and those that reversed nothing. One whose events
/// were lost did not happen.
pub(crate) async fn restore_on_postgres(
    connection: &mut PgConnection,
    told: &[Compensation],
) -> Result<(), StoreError> {
    let told_of: Vec<_> = told.iter().map(|compensation| compensation.operation_id).collect();
    sqlx::query("delete from compensations where reversals > 0 and operation_id <> all($1)")
        .bind(told_of)
        .execute(&mut *connection)
        .await?;
    insert_on_postgres(connection, told).await
}

/// The same on SQLite.
pub(crate) async fn restore_on_sqlite(
    connection: &mut SqliteConnection,
    told: &[Compensation],
) -> Result<(), StoreError> {
    let told_of: Vec<_> = told.iter().map(|compensation| compensation.operation_id).collect();
    sqlx::query(
        "delete from compensations where reversals > 0 and operation_id not in (select value from json_each(?))",
    )
    .bind(serde_json::to_string(&told_of).expect("ids are JSON"))
    .execute(&mut *connection)
    .await?;
    insert_on_sqlite(connection, told).await
}

/// Writes compensations in a transaction that has begun.
pub(crate) async fn insert_on_sqlite(
    connection: &mut SqliteConnection,
    compensations: &[Compensation],
) -> Result<(), StoreError> {
    COMPENSATIONS.insert_on_sqlite(connection, compensations).await.map(drop)
}
