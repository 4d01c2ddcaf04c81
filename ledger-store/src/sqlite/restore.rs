//! A restore on SQLite: a new file beside, without a journal, which takes the place of the one that is there when it is
//! complete and on the disk. Whatever ends the process before, the file that is there is as it was.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{MetadataExt, fchown},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use ledger_core::{Epoch, Head, PARTITIONS, Partition, Timestamp};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{MIGRATIONS, Sqlite, files::copy_of_open, index, is_a_folder, log, tables, version};
use crate::{
    StoreError,
    error::chain,
    operations,
    restore::{
        Found, Log, Part, Parts, RestoreError, RestorePoint, Restored, Target, made_from_log, restores_to_take_along,
    },
    row::{self, stored},
    schema,
};

/// Of the new file in memory while it is written, in KiB, as SQLite writes it: negative.
const CACHE: &str = "-65536";
const OLD_FILE: &str = "the file that is replaced";
/// Its restores.
const OLD_RESTORES: &str = "temp.old_restores";
/// A look-up for each row; the events of a new file cannot be there already.
const CHECK_OF_EACH_INSERT: &str = "events_are_not_replaced";
/// Where the log stands, whatever the heads hold.
const STANDING: &str = "select group_concat(concat_ws(' ', quote(partition), quote(epoch), quote(position), quote(hash)), ',') \
    from (select * from partition_heads order by partition, epoch, position)";

impl Sqlite {
    /// Looks what the file holds.
    pub(crate) async fn look(url: &str) -> Result<Found, StoreError> {
        let path = path_of(url)?;
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(StoreError::Address(format!("cannot read {}: {error}", path.display()))),
            Ok(file) if file.is_dir() => return Err(StoreError::Address(is_a_folder(&path.display().to_string()))),
            Ok(file) if file.len() == 0 => return Ok(Found::Nothing),
            Ok(_) => {}
        }
        let place = path.display().to_string();
        let mut connection = existing(&path)?.connect().await?;
        let mut tables = tables(&mut connection).await.map_err(|error| match StoreError::from(error) {
            error if error.is_damage() => {
                StoreError::Schema(format!("{place} is no SQLite database: {}", chain(&error)))
            }
            error => error,
        })?;
        if tables.is_empty() {
            return Ok(Found::Nothing);
        }
        let found = version(&mut connection).await;
        if schema::is_new(&found) {
            schema::refuse_tables(&tables, &place, schema::OTHER_DATABASE)?;
        }
        schema::check(found, &MIGRATIONS, &place)?;
        let has_events = has_events(&mut connection).await?;
        if !has_events {
            // The whole file is replaced, with whatever else is in it.
            tables.retain(|table| !schema::is_made(&MIGRATIONS, table));
            schema::refuse_tables(&tables, &place, schema::OTHER_DATABASE)?;
        }
        connection.close().await?;
        Ok(if has_events { Found::Ledger } else { Found::EmptyLedger })
    }

    /// Puts a log into the file.
    pub(crate) async fn restore(url: &str, target: Target, log: Arc<Log>) -> Result<Restored, RestoreError> {
        let path = path_of(url)?;
        if target == Target::Empty && Self::look(url).await? == Found::Ledger {
            return Err(RestoreError::NotEmpty(path.display().to_string()));
        }
        let next = Next::create(&path)?;
        let (events, left_out) = fill(&next.path, &path, &log).await?;
        next.lock.sync_all().map_err(|error| files("write", &next.path, &error))?;
        let kept = take_place(next, &path, target, &log).await?;
        Ok(Restored { events, kept, left_out })
    }

    /// Removes the file and what stands beside it.
    pub(crate) async fn remove_ledger(&self) -> Result<(), StoreError> {
        self.close().await;
        for suffix in ["-wal", "-shm", "-rebuild.lock", ""] {
            match fs::remove_file(beside(Path::new(self.file()), suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(sqlx::Error::Io(error).into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// See [`crate::restore::standing`].
    pub(crate) async fn standing(&self) -> Result<Option<String>, sqlx::Error> {
        sqlx::query_scalar(STANDING).fetch_one(self.readers()).await
    }

    pub(crate) async fn restore_points(&self) -> Result<Vec<RestorePoint>, StoreError> {
        let sql =
            "select partition, epoch, position, hash, restored_at, archive_id from restores order by epoch, partition";
        let rows = sqlx::query(sql).fetch_all(self.readers()).await?;
        rows.iter()
            .map(|row| {
                let at = Timestamp::parse(row.try_get(4)?);
                let (number, epoch, position) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                row::restore_point(number, epoch, position, row.try_get(3)?, row.try_get(5)?, at)
            })
            .collect()
    }
}

/// The new file, and the lock that lets one restore write it at a time. It is removed when it does not come to anything.
struct Next {
    path: PathBuf,
    lock: File,
    is_in_place: bool,
}

impl Next {
    fn create(path: &Path) -> Result<Self, RestoreError> {
        let next = beside(path, ".importing");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&next)
            .map_err(|error| files("write", &next, &error))?;
        let in_use = || RestoreError::InUse(format!("another restore into {} is running; wait for it", path.display()));
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use()),
            Err(TryLockError::Error(error)) => return Err(files("lock", &next, &error)),
        }
        // Whoever had the lock before may have put this very file in its place, which is the ledger now.
        let is_the_same =
            |file: &fs::Metadata, named: &fs::Metadata| (file.ino(), file.dev()) == (named.ino(), named.dev());
        match (lock.metadata(), fs::metadata(&next)) {
            (Ok(file), Ok(named)) if is_the_same(&file, &named) => {}
            _ => return Err(in_use()),
        }
        // What a restore that was killed left.
        lock.set_len(0).map_err(|error| files("write", &next, &error))?;
        let _ = fs::remove_file(beside(&next, "-journal"));
        Ok(Self { path: next, lock, is_in_place: false })
    }
}

impl Drop for Next {
    fn drop(&mut self) {
        if !self.is_in_place {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes the whole file. Tells how many events it holds, and which tables could not be taken along.
async fn fill(next: &Path, old: &Path, log: &Arc<Log>) -> Result<(u64, Vec<String>), RestoreError> {
    let mut connection = SqliteConnectOptions::new()
        .filename(next)
        .journal_mode(SqliteJournalMode::Memory)
        .synchronous(SqliteSynchronous::Off)
        .pragma("cache_size", CACHE)
        .pragma("temp_store", "memory")
        .disable_statement_logging()
        .connect()
        .await?;
    schema::migrator(&MIGRATIONS).run(&mut connection).await?;
    let trigger: String = sqlx::query_scalar("select sql from sqlite_master where type = 'trigger' and name = ?")
        .bind(CHECK_OF_EACH_INSERT)
        .fetch_one(&mut connection)
        .await?;
    let left_out = take_along(&mut connection, old).await?;
    // Until here a table of which only a part could be read was undone. What comes now is whole or comes to nothing.
    sqlx::raw_sql(AssertSqlSafe(format!("pragma journal_mode = off; begin; drop trigger {CHECK_OF_EACH_INSERT}")))
        .execute(&mut connection)
        .await?;
    let mut parts = Parts::start(log.clone(), |part, hand_on| hand_on(part));
    let mut written = Ok(());
    while let Some(part) = parts.parts.recv().await {
        written = match &part {
            Part::Events(events) => log::insert(&mut connection, events).await,
            Part::Indexes(entries) => index::insert(&mut connection, entries).await,
            Part::Beside(rows) => rows.write_on_sqlite(&mut connection).await,
            Part::End => Ok(()),
        };
        if written.is_err() {
            break;
        }
    }
    let produced = parts.end().await?;
    written?;
    write_heads(&mut connection, &log.next_heads()).await?;
    for point in log.points().chain(produced.points) {
        write_point(&mut connection, &point).await?;
    }
    take_restores_along(&mut connection, log.epoch).await?;
    let compensations: Vec<_> = produced.compensations.into_values().collect();
    operations::restore_on_sqlite(&mut connection, &compensations).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("{trigger}; commit"))).execute(&mut connection).await?;
    connection.close().await?;
    Ok((produced.events, left_out))
}

/// What the log does not make is taken over from the file that is replaced, as far as it can be read. Tells which tables of
/// it could not be: they are empty.
async fn take_along(connection: &mut SqliteConnection, old: &Path) -> Result<Vec<String>, RestoreError> {
    let kept = format!("create temp table {OLD_RESTORES} as select * from main.restores");
    sqlx::query(AssertSqlSafe(kept)).execute(&mut *connection).await?;
    if !fs::metadata(old).is_ok_and(|file| file.is_file() && file.len() > 0) {
        return Ok(Vec::new());
    }
    let tables: Vec<String> = sqlx::query_scalar(
        "select name from sqlite_master where type = 'table' and name <> '_sqlx_migrations' and name not like 'sqlite_%'",
    )
    .fetch_all(&mut *connection)
    .await?;
    // Which of the restores are true is seen once the log is there.
    let taken: Vec<_> = tables
        .into_iter()
        .filter(|table| table == "restores" || made_from_log().all(|made| made != table.as_str()))
        .collect();
    let attached = sqlx::query("attach ? as old").bind(old.display().to_string()).execute(&mut *connection).await;
    if unless_unreadable(attached, OLD_FILE)?.is_none() {
        return Ok(taken);
    }
    let names = made_from_log().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let sql = format!("select exists (select 1 from old.sqlite_master where type = 'table' and name in ({names}))");
    let is_ledger: Result<bool, _> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *connection).await;
    // A file that never held a ledger lacks nothing.
    let is_ledger = unless_unreadable(is_ledger, OLD_FILE)?.unwrap_or(true);
    let mut left_out = Vec::new();
    for table in taken.into_iter().filter(|_| is_ledger) {
        let into = if table == "restores" { OLD_RESTORES.to_owned() } else { format!("main.{table}") };
        let copy = format!("insert into {into} select * from old.{table}");
        let copied = sqlx::query(AssertSqlSafe(copy)).execute(&mut *connection).await;
        if unless_unreadable(copied, &table)?.is_none() {
            left_out.push(table);
        }
    }
    sqlx::query("detach old").execute(connection).await?;
    Ok(left_out)
}

/// What was read; nothing where it cannot be. Others who are in the way say nothing about what is there.
fn unless_unreadable<T>(read: Result<T, sqlx::Error>, what: &str) -> Result<Option<T>, RestoreError> {
    match read.map_err(StoreError::from) {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.is_passing() => Err(error.into()),
        Err(error) => {
            tracing::warn!(error = %chain(&error), what, "it cannot be read, and is not taken along");
            Ok(None)
        }
    }
}

async fn take_restores_along(connection: &mut SqliteConnection, epoch: Epoch) -> Result<(), RestoreError> {
    let told = restores_to_take_along("main.", OLD_RESTORES, epoch);
    // What the log itself tells of a restore does not name the archive; the table does.
    let copy = format!(
        "insert into main.restores select * from {OLD_RESTORES} r where {told} on conflict (partition, epoch) \
         do update set restored_at = excluded.restored_at, archive_id = excluded.archive_id where restores.archive_id = ''"
    );
    sqlx::query(AssertSqlSafe(copy)).execute(connection).await?;
    Ok(())
}

async fn write_heads(connection: &mut SqliteConnection, heads: &[Head; PARTITIONS]) -> Result<(), RestoreError> {
    for table in ["partition_heads", "index_checkpoints"] {
        for (partition, head) in Partition::all().zip(heads) {
            let sql = format!("update {table} set epoch = ?, position = ?, hash = ? where partition = ?");
            sqlx::query(AssertSqlSafe(sql))
                .bind(i64::from(head.epoch.0))
                .bind(stored(head.position.0))
                .bind(head.hash.0.to_vec())
                .bind(i64::from(partition.number()))
                .execute(&mut *connection)
                .await?;
        }
    }
    Ok(())
}

async fn write_point(connection: &mut SqliteConnection, point: &RestorePoint) -> Result<(), RestoreError> {
    sqlx::query(
        "insert or ignore into restores (partition, epoch, position, hash, restored_at, archive_id) values (?, ?, ?, ?, ?, ?)",
    )
    .bind(i64::from(point.partition.number()))
    .bind(i64::from(point.head.epoch.0))
    .bind(stored(point.head.position.0))
    .bind(point.head.hash.0.to_vec())
    .bind(point.restored_at.to_string())
    .bind(point.archive_id.clone())
    .execute(connection)
    .await?;
    Ok(())
}

/// Puts the new file in the place of the old one, which nobody may have open: whoever had would go on with a file that has
/// no name any more.
async fn take_place(mut next: Next, path: &Path, target: Target, log: &Log) -> Result<Option<String>, RestoreError> {
    let mut kept = None;
    let mut old = None;
    if fs::metadata(path).is_ok_and(|file| file.len() > 0) {
        old = alone(path, target, log.standing.as_deref()).await?;
        if target == Target::Replace {
            let aside = free_name(path, log.epoch);
            keep(path, &aside)?;
            kept = Some(aside.display().to_string());
        }
    } else if fs::metadata(beside(path, "-wal")).is_ok_and(|log| log.len() > 0) {
        // The file is gone, its newest commits are not: should it be found, they belong to it.
        let (left, aside) = (beside(path, "-wal"), beside(&free_name(path, log.epoch), "-wal"));
        fs::rename(&left, &aside).map_err(|error| files("keep", &left, &error))?;
        kept = Some(aside.display().to_string());
    }
    // A write-ahead log that is left belongs to the old file, and would be taken for the new one's.
    for suffix in ["-wal", "-shm"] {
        match fs::remove_file(beside(path, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(files("remove", &beside(path, suffix), &error));
            }
            _ => {}
        }
    }
    take_over_rights(&next, path)?;
    fs::rename(&next.path, path).map_err(|error| files("put in place", &next.path, &error))?;
    next.is_in_place = true;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| files("write", folder, &error))?;
    if let Some(old) = old {
        // Held until now, so that nobody could begin to use the old file.
        let _ = old.close().await;
    }
    Ok(kept)
}

/// A connection that holds the old file for itself, with its write-ahead log folded in; none when it is too damaged for
/// that.
async fn alone(path: &Path, target: Target, standing: Option<&str>) -> Result<Option<SqliteConnection>, RestoreError> {
    let in_use = || {
        RestoreError::InUse(format!(
            "{} is in use; stop the service (and every other program that has it open), then run this again",
            path.display()
        ))
    };
    let attempt = async {
        let mut connection = existing(path)?.connect().await?;
        // Leaving the mode of the write-ahead log takes the file for oneself.
        let mode: String = sqlx::query_scalar("pragma journal_mode = delete").fetch_one(&mut connection).await?;
        sqlx::query("begin exclusive").execute(&mut connection).await?;
        Ok::<_, StoreError>((connection, mode))
    };
    let (mut connection, mode) = match attempt.await {
        Ok(alone) => alone,
        Err(error) if error.is_passing() => return Err(in_use()),
        Err(error) if error.is_damage() && target == Target::Replace => return Ok(None),
        Err(error) => {
            let why = format!("{}: {}", path.display(), chain(&error));
            return Err(RestoreError::Files(format!("{why}; check who may write it, and that its disk has room")));
        }
    };
    if mode == "wal" {
        return Err(in_use());
    }
    if target == Target::Empty && has_events(&mut connection).await.unwrap_or(false) {
        return Err(RestoreError::NotEmpty(path.display().to_string()));
    }
    if let Some(standing) = standing {
        let now: Option<String> = sqlx::query_scalar(STANDING).fetch_one(&mut connection).await?;
        if now.as_deref() != Some(standing) {
            return Err(RestoreError::WentOn(path.display().to_string()));
        }
    }
    Ok(Some(connection))
}

/// The files of a database; its own comes last.
const SUFFIXES: [&str; 3] = ["-wal", "-shm", ""];

/// Another name for what is replaced in this epoch, which nothing else has: two restores may come to the same epoch when what
/// tells of the first is lost.
fn free_name(path: &Path, epoch: Epoch) -> PathBuf {
    let is_taken = |aside: &Path| {
        SUFFIXES
            .iter()
            .map(|suffix| (beside(path, suffix), beside(aside, suffix)))
            .any(|(file, named)| fs::symlink_metadata(&named).is_ok() && !is_one_file(&file, &named))
    };
    let mut aside = beside(path, &format!(".before-{}", epoch.0));
    let mut number = 1;
    while is_taken(&aside) {
        number += 1;
        aside = beside(path, &format!(".before-{}-{number}", epoch.0));
    }
    aside
}

/// Gives the old file another name besides its own. At every moment something stands under its own.
fn keep(path: &Path, aside: &Path) -> Result<(), RestoreError> {
    for suffix in SUFFIXES {
        let (from, to) = (beside(path, suffix), beside(aside, suffix));
        if !from.exists() {
            continue;
        }
        match fs::hard_link(&from, &to) {
            Ok(()) => {}
            // An attempt that was ended before the new file took the old one's place.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_one_file(&from, &to) => {}
            // Some file systems know only one name for a file.
            Err(error) if KNOW_ONE_NAME.contains(&error.kind()) => {
                copy_of_open(&from, &to).map_err(|error| files("keep", &from, &error))?;
            }
            Err(error) => return Err(files("keep", &from, &error)),
        }
    }
    Ok(())
}

/// What a file system without hard links answers.
const KNOW_ONE_NAME: [io::ErrorKind; 3] =
    [io::ErrorKind::PermissionDenied, io::ErrorKind::Unsupported, io::ErrorKind::TooManyLinks];

fn is_one_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => one.ino() == other.ino() && one.dev() == other.dev(),
        _ => false,
    }
}

/// Lets the new file belong to whom the old one belongs: the service that uses it is seldom who restores it.
fn take_over_rights(next: &Next, path: &Path) -> Result<(), RestoreError> {
    let Ok(old) = fs::metadata(path) else { return Ok(()) };
    let new = next.lock.metadata().map_err(|error| files("read", &next.path, &error))?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid())
        && let Err(error) = fchown(&next.lock, Some(old.uid()), Some(old.gid()))
    {
        // Only root may give files away.
        tracing::warn!(%error, file = %path.display(), uid = old.uid(), gid = old.gid(), "give the restored file to its owner: chown");
    }
    next.lock.set_permissions(old.permissions()).map_err(|error| files("write", &next.path, &error))
}

async fn has_events(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select exists (select 1 from events)").fetch_one(connection).await
}

fn existing(path: &Path) -> Result<SqliteConnectOptions, StoreError> {
    Ok(SqliteConnectOptions::from_str("sqlite://")?
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(std::time::Duration::from_millis(500))
        .disable_statement_logging())
}

fn path_of(url: &str) -> Result<PathBuf, StoreError> {
    let options = super::options(url)?;
    Ok(options.get_filename().to_path_buf())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn files(what: &str, path: &Path, error: &io::Error) -> RestoreError {
    RestoreError::Files(format!(
        "cannot {what} {}: {error}; check that its folder exists, may be written to and has room",
        path.display()
    ))
}
