//! Every column of every table that the log is, or that is made from it: what is edited in any of them is found.

use std::collections::BTreeSet;

use futures::future::join_all;
use ledger_core::{PARTITIONS, Partition, operation};
use serde_json::json;
use tests::{
    Nats, Service, replay_tool,
    store::{self, NewDatabase},
    vandal::{TABLES, Vandal},
    verify_consistent,
};
use uuid::Uuid;

use crate::ledger::{account, user, wait_until_projected, wait_until_published};

/// Tables of what no event tells: keys, refusals, what callers describe, who did what, what was found.
const OTHERS: [&str; 6] = ["api_keys", "audit", "inconsistencies", "operation_records", "proofs", "refusals"];

/// Columns that no event tells, or that are not believed without one. An edit of them is no finding.
const FREE: [(&str, &str); 13] = [
    // The row speaks of another stream then, which may have come as far.
    ("publisher_checkpoints", "stream"),
    // The stream numbers its messages.
    ("publisher_checkpoints", "stream_sequence"),
    // Who reversed, when and why is told by this row alone; the events tell which operation, and how much of it.
    ("compensations", "compensated_at"),
    ("compensations", "request_id"),
    ("compensations", "actor"),
    ("compensations", "reason"),
    // When a restore was made, and from which archive, is told by its row alone; the log tells where.
    ("restores", "restored_at"),
    ("restores", "archive_id"),
    // A state whose seal is broken is not believed.
    ("account_positions", "balance"),
    ("account_positions", "frozen"),
    ("account_positions", "version"),
    ("account_positions", "locked"),
    ("account_positions", "seal"),
];

/// What is neither an id nor a time. No column may say that.
const NONSENSE: &str = "'?'";

/// One of these is edited.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    table: String,
    name: String,
    kind: String,
}

/// An edit of one row of a partition.
#[derive(Debug, Clone)]
struct Edit {
    column: Column,
    /// Which row of the partition.
    row: &'static str,
    value: String,
}

pub(crate) async fn what_is_edited_in_any_column_is_found(database: NewDatabase) {
    let nats = Nats::start();
    let users: Vec<String> = Partition::all().map(|partition| user(|of| of == partition)).collect();
    // The last partition stays empty: it is where rows of the others are moved to.
    let (spare, users) = users.split_last().expect("there are some");
    let spare = account(spare).partition();
    ledger(&database, users, &nats).await;
    verify_consistent(&database.url);
    let vandal = Vandal::arrive(&database.url).await;
    let columns = columns(&vandal).await;
    let is_free = |edit: &Edit| FREE.contains(&(&*edit.column.table, &*edit.column.name)) && edit.value != NONSENSE;
    let (free, bound): (Vec<_>, Vec<_>) =
        columns.iter().flat_map(|column| edits(column, spare, &vandal)).partition(is_free);
    let tried: BTreeSet<_> = free.iter().map(|edit| (&*edit.column.table, &*edit.column.name)).collect();
    assert_eq!(tried, BTreeSet::from(FREE), "a column that there is not");
    for edits in free.chunks(users.len()) {
        apply(&vandal, edits).await;
        verify_consistent(&database.url);
        vandal.undo().await;
    }
    // Operations whose events may be damaged themselves are not looked at beside a damaged log.
    let (closing, others): (Vec<_>, Vec<_>) =
        bound.iter().cloned().partition(|edit| edit.column.table == "compensations");
    let mut missed = Vec::new();
    for edits in closing.chunks(users.len()).chain(others.chunks(users.len())) {
        apply(&vandal, edits).await;
        let (code, verified) = replay_tool(&database.url, &["verify"]);
        assert_eq!(code, 1, "{verified:#}");
        let findings = verified["findings"].as_array().expect("findings");
        let found: BTreeSet<_> = findings.iter().filter_map(|finding| finding["partition"].as_u64()).collect();
        let is_missed = |(partition, edit)| (!found.contains(&partition)).then_some(edit);
        missed.extend((0..).zip(edits.to_vec()).filter_map(is_missed));
        vandal.undo().await;
    }
    println!("{} found of {} edits of {} columns", bound.len() - missed.len(), bound.len(), columns.len());
    assert!(missed.is_empty(), "{missed:#?}");
    verify_consistent(&database.url);
}

/// A ledger in which an account of each partition has something of everything, some of it restored from an archive.
async fn ledger(database: &NewDatabase, users: &[String], nats: &Nats) {
    let before = store::sqlite();
    let mut service = Service::start(&before.url, &[]);
    for user in users {
        service.credit(user, 1000, "seed").await;
    }
    wait_until_projected(&service).await;
    service.terminate();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let archive = folder.path().join("archive").display().to_string();
    assert_eq!(replay_tool(&before.url, &["export", "--out", &archive]).0, 0);
    let (code, imported) = replay_tool(&database.url, &["import", "--from", &archive]);
    assert_eq!(code, 0, "{imported:#}");
    let mut service = Service::start(&database.url, &["--nats-url", &nats.url()]);
    join_all(users.iter().map(|user| lead_a_life(&service, user))).await;
    wait_until_projected(&service).await;
    wait_until_published(&service).await;
    service.terminate();
}

/// A batch, a freeze, a part of it captured, a part of that refunded, an operation and its reversal.
async fn lead_a_life(service: &Service, user: &str) {
    let of = |amount: u64, id: &str| {
        json!({ "user_id": user, "credit_type": "points", "amount": amount, "business_code": "order",
            "business_id": id })
    };
    let credit = |id: &str| {
        let mut command = of(5, id);
        command["type"] = json!("credit");
        command["description"] = json!("half of it");
        command["metadata"] = json!({ "half": id });
        command
    };
    service.post("/v1/batches", &json!({ "commands": [credit("a"), credit("b")] })).await.expect(201);
    let mut freeze = of(100, "f");
    freeze["expires_at"] = json!("2099-01-01T00:00:00Z");
    let frozen = service.post("/v1/freezes", &freeze).await.expect(201);
    let about = |field: &str, id: &serde_json::Value, amount: u64, code: &str| json!({ field: id["transaction_id"], "amount": amount, "business_code": code, "business_id": "1" });
    let paid = service.post("/v1/debits", &about("freeze_id", &frozen, 40, "pay")).await.expect(201);
    service.post("/v1/refunds", &about("debit_id", &paid, 10, "back")).await.expect(201);
    let partition = account(user).partition();
    let mut ids = (1..).map(Uuid::from_u128);
    let id = ids.find(|id| operation::partition(*id) == partition).expect("ids spread over all partitions");
    let mut debit = of(3, "o");
    debit["operation_id"] = json!(id);
    service.post("/v1/debits", &debit).await.expect(201);
    let reversed = service.post(&format!("/v1/operations/{id}/compensate"), &json!({ "reason": "out" })).await;
    assert_eq!(reversed.expect(200)["status"], "compensated");
    // Every 256th version of an account has an entry of its own.
    let many: Vec<_> = (0..256).map(|number| credit(&number.to_string())).collect();
    service.post("/v1/batches", &json!({ "atomic": false, "commands": many })).await.expect(200);
}

/// The columns of all tables of the schema, but for those that no event tells anything of.
async fn columns(vandal: &Vandal) -> Vec<Column> {
    let tables = vandal.tables().await;
    let tables: Vec<_> = tables.into_iter().filter(|table| !OTHERS.contains(&&**table)).collect();
    let known: BTreeSet<_> = TABLES.iter().map(|table| (*table).to_owned()).collect();
    assert_eq!(tables.iter().cloned().collect::<BTreeSet<_>>(), known, "a table that this test does not know");
    let mut columns = Vec::new();
    for table in tables {
        for (name, kind) in vandal.columns(&table).await {
            columns.push(Column { table: table.clone(), name, kind });
        }
    }
    columns
}

/// The edits of a column: to something that could be there, and, where the database lets it, to something that could not.
fn edits(column: &Column, spare: Partition, vandal: &Vandal) -> Vec<Edit> {
    let name = &*column.name;
    let rows: &[&str] = match &*column.table {
        "events" => &["type = 'deducted' and related_id is not null", "business_id = 'b'"],
        "projection_checkpoints" => &["projection = 'balances'", "projection = 'freezes'"],
        "compensations" => &["true"],
        "partition_heads" | "index_checkpoints" | "publisher_checkpoints" | "restores" => &["true"],
        table => &[match table {
            "balances" => "position = (select max(position) from balances b where b.partition = balances.partition)",
            "freezes" => "position = (select max(position) from freezes f where f.partition = freezes.partition)",
            "account_positions" => "position > 0",
            "key_positions" => "position = 4",
            "related_positions" => "position = 5",
            _ => "version = 256",
        }],
    };
    let id = "00000000-0000-4000-8000-000000000001";
    let is_id = column.kind == "uuid" || (column.kind == "text" && name.ends_with("_id") && is_uuid(name));
    let is_time = column.kind.starts_with("timestamp") || (column.kind == "text" && name.ends_with("_at"));
    let mut values = Vec::new();
    match &*column.kind {
        _ if name == "partition" => values.push(spare.to_string()),
        _ if is_id => values.push(format!("'{id}'")),
        _ if is_time => values.push("'2019-01-01T00:00:00.000000Z'".to_owned()),
        "boolean" => values.push(format!("not {name}")),
        "bytea" | "blob" => values.extend([vandal.blob(&[7; 32]), vandal.blob(&[7; 3])]),
        "text" => values.push(format!("coalesce({name}, '') || 'x'")),
        // Where the next row's key is, no other can be.
        _ if ["position", "original_position", "version", "run"].contains(&name) => {
            values.push(format!("{name} + 1000"));
        }
        _ => values.push(format!("coalesce({name}, 0) + 1")),
    }
    if column.kind == "text" && (is_id || is_time) {
        values.push(NONSENSE.to_owned());
        // The same id or time, written as the ledger does not: look-ups and orders go by the text.
        values.push(if is_id {
            format!("coalesce(replace({name}, '-', ''), '{}')", id.replace('-', ""))
        } else {
            format!("coalesce(replace({name}, 'Z', '+00:00'), '2019-01-01T00:00:00.000000+00:00')")
        });
    }
    let edit = |row, value| Edit { column: column.clone(), row, value };
    let edits = rows.iter().flat_map(|row| values.iter().map(|value| edit(*row, value.clone())));
    match &*column.table {
        // Each partition has its rows there already, the empty one, too.
        "partition_heads" | "index_checkpoints" | "projection_checkpoints" | "publisher_checkpoints" | "restores"
            if name == "partition" =>
        {
            Vec::new()
        }
        // Rows of one place cannot both be moved to the empty one.
        _ if name == "partition" => edits.take(1).collect(),
        _ => edits.collect(),
    }
}

/// Whether a text column on SQLite holds ids, and not what callers name things.
fn is_uuid(column: &str) -> bool {
    !["user_id", "business_id", "request_id", "archive_id"].contains(&column)
}

/// The first edit in partition 0, the second in partition 1 and so on: each is of one row.
async fn apply(vandal: &Vandal, edits: &[Edit]) {
    assert!(edits.len() < PARTITIONS);
    let statements: Vec<_> = edits
        .iter()
        .enumerate()
        .map(|(partition, Edit { column: Column { table, name, .. }, row, value })| {
            format!("update {table} set {name} = {value} where partition = {partition} and {row}")
        })
        .collect();
    vandal.run(&statements).await;
    for table in TABLES {
        let expected = edits.iter().filter(|edit| edit.column.table == table).count();
        assert_eq!(vandal.changed_rows(table).await, expected, "{table}: {statements:#?}");
    }
}
