//! Balances in a table that each command updates, driven by PostgreSQL's own benchmark.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use hdrhistogram::Histogram;
use tests::children::bound_to_this_process;

use crate::figures::{Figures, Latency, histogram};

/// Threads of the client: the service has the same two cores.
const THREADS: &str = "2";

/// The tables, without the accounts. The unique business key is what makes a command idempotent; without it this would
/// not do the ledger's job. The room in the pages of the accounts keeps the updates out of the index.
const SCHEMA: &str = "
drop function if exists peer_debit(integer);
drop table if exists peer_accounts, peer_entries, peer_rows;

create table peer_accounts (
    id      integer primary key,
    balance bigint  not null,
    version bigint  not null
) with (fillfactor = 50);

create table peer_entries (
    id           bigserial   primary key,
    account_id   integer     not null,
    version      bigint      not null,
    amount       bigint      not null,
    balance      bigint      not null,
    business_key uuid        not null unique,
    created_at   timestamptz not null default now()
);

create table peer_rows (
    id           bigserial primary key,
    account_id   integer   not null,
    amount       bigint    not null,
    business_key uuid      not null
);

create function peer_debit(account integer) returns bigint language plpgsql as $$
declare
    next_balance bigint;
    next_version bigint;
begin
    select balance - 1, version + 1 into next_balance, next_version from peer_accounts where id = account for update;
    if next_balance < 0 then
        raise exception 'account % has too little', account;
    end if;
    update peer_accounts set balance = next_balance, version = next_version where id = account;
    insert into peer_entries (account_id, version, amount, balance, business_key)
    values (account, next_version, 1, next_balance, gen_random_uuid());
    return next_balance;
end
$$;

do $$
begin
    if current_setting('fsync') <> 'on' or current_setting('synchronous_commit') <> 'on' then
        raise exception 'the commits of this cluster are not durable';
    end if;
end
$$;
";

/// How the command is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A transaction with one statement a round trip: lock and read, update, insert.
    RowLocked,
    /// The same in one function and one round trip.
    OneFunction,
    /// A durable insert of one row, which decides nothing.
    SingleInsert,
}

impl Form {
    /// The transaction, in pgbench's language.
    fn script(self, accounts: u32) -> String {
        let statements = match self {
            Self::RowLocked => {
                "BEGIN;\n\
                 SELECT balance, version FROM peer_accounts WHERE id = :a FOR UPDATE \\gset\n\
                 \\set balance :balance - 1\n\
                 \\set version :version + 1\n\
                 UPDATE peer_accounts SET balance = :balance, version = :version WHERE id = :a;\n\
                 INSERT INTO peer_entries (account_id, version, amount, balance, business_key) \
                 VALUES (:a, :version, 1, :balance, gen_random_uuid());\n\
                 COMMIT;\n"
            }
            Self::OneFunction => "SELECT peer_debit(:a);\n",
            Self::SingleInsert => {
                "INSERT INTO peer_rows (account_id, amount, business_key) VALUES (:a, 1, gen_random_uuid());\n"
            }
        };
        format!("\\set a random(1, {accounts})\n{statements}")
    }
}

/// Makes the tables anew, with accounts that can pay for every run.
///
/// # Panics
///
/// When psql is missing or the database refuses.
pub(crate) fn prepare(url: &str, accounts: u32) {
    let accounts = format!(
        "insert into peer_accounts (id, balance, version) \
         select id, 1000000000000, 0 from generate_series(1, {accounts}) as id"
    );
    let mut psql = bound_to_this_process(&program("psql"), "KILL");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url]).args(["-c", "set client_min_messages = warning"]);
    // Each a command of its own, as a vacuum cannot run in a transaction.
    for sql in [SCHEMA, &accounts, "vacuum analyze peer_accounts", "analyze peer_entries", "analyze peer_rows"] {
        psql.args(["-c", sql]);
    }
    output(psql);
}

/// Runs the transaction from `clients` connections, each waiting for its answer before it sends the next, or at a given
/// rate: latencies then count from when a transaction was due. With one account all of them want the same row.
///
/// # Panics
///
/// When pgbench is missing, or a transaction fails.
pub(crate) fn run(
    url: &str,
    form: Form,
    accounts: u32,
    clients: u32,
    per_second: Option<f64>,
    seconds: u32,
) -> Figures {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (script, log) = (folder.path().join("script.sql"), folder.path().join("log"));
    fs::write(&script, form.script(accounts)).expect("the temporary folder takes a file");
    // A tenth is enough for quantiles and costs the client little; on one row there are too few transactions for that.
    let sampling_rate = if accounts == 1 { 1.0 } else { 0.1 };
    let mut pgbench = bound_to_this_process(&program("pgbench"), "KILL");
    pgbench
        .args(["-M", "prepared", "-n", "-j", THREADS])
        .args(["-c", &clients.to_string(), "-T", &seconds.to_string()])
        .args(["-l", &format!("--sampling-rate={sampling_rate}")])
        .arg(format!("--log-prefix={}", log.display()))
        .args(per_second.map(|rate| format!("--rate={rate}")))
        .arg("-f")
        .arg(&script)
        .arg(url);
    let printed = output(pgbench);
    let rate = transactions_per_second(&printed).unwrap_or_else(|| panic!("pgbench printed no rate: {printed}"));
    Figures { rate, latency: Some(Latency::of(&latencies(folder.path()))), ..Figures::default() }
}

/// The rate without the time that connecting took, and only when nothing failed.
fn transactions_per_second(printed: &str) -> Option<f64> {
    let failed = printed.lines().find_map(|line| line.strip_prefix("number of failed transactions: "));
    assert!(failed.is_none_or(|failed| failed.starts_with("0 ")), "{printed}");
    let line = printed.lines().find_map(|line| line.strip_prefix("tps = "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The sampled transactions' times: the third column of the logs, of which each thread writes one, in microseconds.
fn latencies(folder: &Path) -> Histogram<u64> {
    let mut times = histogram();
    for file in fs::read_dir(folder).expect("our own folder").flatten() {
        if !file.file_name().to_string_lossy().starts_with("log.") {
            continue;
        }
        for line in fs::read_to_string(file.path()).expect("pgbench writes text").lines() {
            let time = line.split(' ').nth(2).and_then(|micros| micros.parse::<u64>().ok());
            times.saturating_record(time.unwrap_or_else(|| panic!("pgbench logged {line}")).max(1));
        }
    }
    times
}

/// Runs a program to its end and gives what it printed.
fn output(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("setpriv is installed");
    let (printed, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed: {complaints}{printed}");
    printed.into_owned()
}

/// The newest installed version, as the cluster's; Debian keeps the programs outside the path.
fn program(name: &str) -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut installed: Vec<_> =
        versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).collect();
    installed.sort();
    installed.pop().map_or_else(|| name.to_owned(), |path| path.display().to_string())
}
