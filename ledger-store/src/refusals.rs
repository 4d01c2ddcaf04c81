//! What was refused, kept for those who never heard the answer.
//!
//! The writer only notes a refusal once the batch that it was decided in is durable; a task of its own writes the rows, so
//! that no command waits for them. A crash may lose the newest: a refusal that is not found has done nothing either.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ledger_core::{Account, Amount, BusinessKey, Command, Partition, Rejection, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use uuid::Uuid;

use crate::{
    Database, StoreError,
    beside::{EVERY_PARTITION, Table},
    error::chain,
};

/// Refusals that may wait to be written; past that the oldest are let go: some 30 MiB.
const WAITING_MAX: usize = 50_000;
/// Rows of one statement.
const ROWS_MAX: usize = 500;
/// How long refusals gather before they are written.
const GATHER: Duration = Duration::from_millis(20);
/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// How long a reader waits for what was refused before it asked.
const PATIENCE: Duration = Duration::from_secs(1);
/// Refusals of one answer: the newest.
const READ_MAX: usize = 500;

const TABLE: Table = Table {
    name: "refusals",
    columns: &[
        "partition",
        "refused_at",
        "refusal_id",
        "account_id",
        "operation_id",
        "related_id",
        "amount",
        "type",
        "user_id",
        "credit_type",
        "business_code",
        "business_id",
        "code",
        "message",
        "figures",
        "request_id",
        "actor",
    ],
};

/// A refusal that is not written yet.
#[derive(Debug)]
pub(crate) struct Refused {
    command: Command,
    account: Option<Account>,
    why: Why,
    at: Timestamp,
}

#[derive(Debug)]
enum Why {
    Rejection(Rejection),
    /// Another command of its atomic batch was refused: that one.
    Batch(usize),
}

impl Refused {
    pub(crate) fn of(command: &Command, account: Option<&Account>, rejection: &Rejection, at: Timestamp) -> Self {
        Self { command: command.clone(), account: account.cloned(), why: Why::Rejection(rejection.clone()), at }
    }

    pub(crate) fn with_batch(command: &Command, index: usize, at: Timestamp) -> Self {
        Self { command: command.clone(), account: command.action.account().cloned(), why: Why::Batch(index), at }
    }

    fn row(&self) -> Refusal {
        let Self { command, account, why, at } = self;
        let (code, message, figures) = match why {
            Why::Rejection(rejection) => (rejection.code(), rejection.to_string(), rejection.figures()),
            Why::Batch(index) => (
                "batch_rejected",
                format!("command {index} of the same batch is refused, so nothing of it was done"),
                Map::from_iter([("index".to_owned(), Value::from(*index))]),
            ),
        };
        let named = command.action.named();
        let user_id = account.as_ref().map(Account::user_id).or_else(|| named?.user_id.as_ref());
        let credit_type = account.as_ref().map(Account::credit_type).or_else(|| named?.credit_type.as_ref());
        let original = command.action.original();
        let partition = match (account, original) {
            (Some(account), _) => account.partition(),
            (None, Some(original)) => original.locate().0,
            (None, None) => Partition::all().next().expect("there are partitions"),
        };
        Refusal {
            partition: partition.number(),
            refused_at: Time(*at),
            refusal_id: Uuid::now_v7(),
            account_id: account.as_ref().map(|account| account.id().uuid()),
            operation_id: command.provenance.operation_id,
            related_id: original.map(|original| original.uuid()),
            amount: command.action.stated_amount().map(Amount::units),
            command: command.action.name().to_owned(),
            user_id: user_id.map(|text| text.to_string()),
            credit_type: credit_type.map(|text| text.to_string()),
            business_code: command.key.code().to_string(),
            business_id: command.key.id().to_string(),
            code: code.to_owned(),
            message,
            figures: Value::Object(figures).to_string(),
            request_id: command.provenance.request_id.to_string(),
            actor: command.provenance.actor.to_string(),
        }
    }
}

/// An instant in a row: as the ledger writes it, or as PostgreSQL does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Timestamp);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Timestamp::parse(&text).map(Self).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no time")))
    }
}

/// A command that was refused, by the contract's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub partition: u8,
    pub refused_at: Time,
    pub refusal_id: Uuid,
    /// The account, where the command named it or an original that exists.
    pub account_id: Option<Uuid>,
    /// Where the caller gave one.
    pub operation_id: Option<Uuid>,
    /// The freeze or deduction that the command named.
    pub related_id: Option<Uuid>,
    /// Where the command stated one.
    pub amount: Option<u64>,
    /// `credit`, `debit`, `freeze`, `unfreeze`, `refund`, `lock` or `unlock`.
    #[serde(rename = "type")]
    pub command: String,
    pub user_id: Option<String>,
    pub credit_type: Option<String>,
    pub business_code: String,
    pub business_id: String,
    pub code: String,
    pub message: String,
    /// The refusal's figures: a JSON object.
    pub figures: String,
    pub request_id: String,
    pub actor: String,
}

/// What is not written yet, between the writer and the task that writes it.
#[derive(Debug)]
pub(crate) struct Waiting {
    list: Mutex<VecDeque<Refused>>,
    /// How many were noted, and how many of them are written or were let go.
    noted: watch::Sender<u64>,
    done: watch::Sender<u64>,
}

impl Waiting {
    pub(crate) fn new() -> Self {
        Self { list: Mutex::default(), noted: watch::Sender::new(0), done: watch::Sender::new(0) }
    }

    /// Notes refusals. Nothing is waited for.
    pub(crate) fn add(&self, refused: Vec<Refused>) {
        if refused.is_empty() {
            return;
        }
        let count = refused.len() as u64;
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.extend(refused);
        let excess = list.len().saturating_sub(WAITING_MAX);
        if excess > 0 {
            list.drain(..excess);
            self.done.send_modify(|done| *done += excess as u64);
            tracing::warn!(excess, "refusals come faster than they can be recorded: the oldest were let go");
        }
        self.noted.send_modify(|noted| *noted += count);
    }

    fn take(&self) -> Vec<Refused> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let count = list.len().min(ROWS_MAX);
        list.drain(..count).collect()
    }

    /// Waits until what was noted before is written, but not for long.
    pub(crate) async fn settled(&self) {
        let noted = *self.noted.borrow();
        let mut done = self.done.subscribe();
        // In vain when the database is slow or away: what is written is answered then.
        let _ = timeout(PATIENCE, done.wait_for(|done| *done >= noted)).await;
    }

    /// Writes what is noted, until nothing more can come.
    pub(crate) async fn write(self: Arc<Self>, database: Database, mut stop: watch::Receiver<bool>) {
        let mut news = self.noted.subscribe();
        loop {
            let refused = self.take();
            if refused.is_empty() {
                if *stop.borrow() {
                    return;
                }
                tokio::select! {
                    _ = news.changed() => {}
                    () = until_told(&mut stop) => {}
                }
                sleep(GATHER).await;
                continue;
            }
            let rows: Vec<_> = refused.iter().map(Refused::row).collect();
            // Their ids make them the same rows however often they are written.
            while let Err(error) = TABLE.insert_relaxed(&database, &rows).await {
                tracing::warn!(error = %chain(&error), "refusals cannot be recorded; trying again");
                tokio::select! {
                    () = sleep(RETRY) => {}
                    () = until_told(&mut stop) => return,
                }
            }
            self.done.send_modify(|done| *done += rows.len() as u64);
        }
    }
}

async fn until_told(stop: &mut watch::Receiver<bool>) {
    // Whoever could tell is gone: the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The newest refusals of commands that their callers put under an operation, newest first.
pub(crate) async fn of_operation(database: &Database, operation_id: Uuid) -> Result<Vec<Refusal>, StoreError> {
    let every = &*EVERY_PARTITION;
    let rest = format!(
        "where {every} and operation_id = $1{{uuid}} order by refused_at desc, refusal_id desc limit {READ_MAX}"
    );
    TABLE.select(database, &rest, &[&operation_id.to_string()]).await
}

/// The newest refusals of a key, in one account or in all, newest first.
pub(crate) async fn of_key(
    database: &Database,
    key: &BusinessKey,
    account: Option<&Account>,
) -> Result<Vec<Refusal>, StoreError> {
    let newest = format!("order by refused_at desc, refusal_id desc limit {READ_MAX}");
    let this = "business_code = $1 and business_id = $2";
    match account {
        None => {
            let rest = format!("where {} and {this} {newest}", &*EVERY_PARTITION);
            TABLE.select(database, &rest, &[key.code(), key.id()]).await
        }
        Some(account) => {
            let partition = account.partition();
            let rest = format!("where partition = {partition} and {this} and account_id = $3{{uuid}} {newest}");
            TABLE.select(database, &rest, &[key.code(), key.id(), &account.id().to_string()]).await
        }
    }
}
