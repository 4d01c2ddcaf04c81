//! What is there, kept before anything is touched.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use futures::StreamExt;
use ledger_store::{postgres::begin_session, sqlite::copy_of_open};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, postgres::PgConnectOptions, sqlite::SqliteConnectOptions};

use super::steps::now;
use crate::context::Failure;

/// The folder's name beside the record; later ones have a number behind it.
pub(super) const FOLDER: &str = "backup";
/// What the folder holds; it is whole when this is there.
const MANIFEST: &str = "backup.json";
/// Level 3 costs little beside the database's own work.
const COMPRESSION: i32 = 3;
const BLOCK_BYTES: i64 = 8_192;

/// Keeps a copy of everything that can be read, whole or not at all, and says what it is. `standing` tells one state of the
/// log from another, if that can be told.
pub(super) async fn backup(url: &str, folder: &Path, standing: Option<String>) -> Result<Value, Failure> {
    let partial = folder.join(format!("{FOLDER}.partial"));
    let mut whole = folder.join(FOLDER);
    let mut number = 1;
    while let Ok(kept) = fs::read(whole.join(MANIFEST)) {
        let kept: Value = serde_json::from_slice(&kept).map_err(|error| {
            Failure::new(format!("{} was changed: {error}; give another folder with --report", whole.display()))
        })?;
        // A run that was killed before it could write down that this is done: nothing was recorded since.
        if kept["standing"] == json!(standing) {
            return Ok(kept);
        }
        number += 1;
        whole = folder.join(format!("{FOLDER}-{number}"));
    }
    match fs::remove_dir_all(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&partial, &error)),
        _ => {}
    }
    fs::create_dir_all(&partial).map_err(|error| failed(&partial, &error))?;
    let contents = if url.starts_with("sqlite:") { copy_files(url, &partial)? } else { dump(url, &partial).await? };
    let manifest = json!({ "folder": whole, "taken_at": now(), "standing": standing, "contents": contents });
    let text = serde_json::to_vec_pretty(&manifest).map_err(|error| Failure::new(error.to_string()))?;
    crate::report::write_whole(&partial.join(MANIFEST), &text)?;
    fs::rename(&partial, &whole).map_err(|error| failed(&whole, &error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| failed(folder, &error))?;
    Ok(manifest)
}

/// The file of a SQLite database and its write-ahead log, byte by byte: also what SQLite itself cannot read any more.
fn copy_files(url: &str, folder: &Path) -> Result<Value, Failure> {
    let file = sqlite_file(url)?;
    let mut contents = Vec::new();
    for suffix in ["", "-wal", "-journal"] {
        let mut from = file.as_os_str().to_owned();
        from.push(suffix);
        let from = PathBuf::from(from);
        if !from.is_file() {
            continue;
        }
        let Some(name) = from.file_name() else { continue };
        let to = folder.join(name);
        // This process has it open, and must keep its locks.
        let bytes = copy_of_open(&from, &to).map_err(|error| failed(&from, &error))?;
        contents.push(json!({ "file": name.to_string_lossy(), "bytes": bytes }));
    }
    Ok(json!(contents))
}

/// Whether commits are left of a SQLite database whose file is gone.
pub(super) fn has_leftovers(url: &str) -> Result<bool, Failure> {
    if !url.starts_with("sqlite:") {
        return Ok(false);
    }
    let mut log = sqlite_file(url)?.into_os_string();
    log.push("-wal");
    Ok(fs::metadata(log).is_ok_and(|log| log.len() > 0))
}

pub(super) fn sqlite_file(url: &str) -> Result<PathBuf, Failure> {
    Ok(SqliteConnectOptions::from_str(url)?.get_filename().to_path_buf())
}

/// Every table as CSV, compressed. What PostgreSQL cannot read of a table is left out block by block, and said.
async fn dump(url: &str, folder: &Path) -> Result<Value, Failure> {
    let mut connection = connect(url).await?;
    let tables: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.tables \
         where table_schema = current_schema() and table_type = 'BASE TABLE' order by 1",
    )
    .fetch_all(&mut connection)
    .await?;
    let mut contents = Vec::new();
    for table in tables {
        let quoted = format!("\"{}\"", table.replace('"', "\"\""));
        let path = folder.join(format!("{}.csv.zst", table.replace('/', "_")));
        let mut out = Compressed::create(&path)?;
        let whole = format!("copy (select * from {quoted}) to stdout (format csv, header)");
        let mut unreadable = Vec::new();
        if let Err(error) = copy_out(&mut connection, &whole, &mut out).await {
            tracing::warn!(%error, table, "the table cannot be read as a whole");
            // A failed COPY may leave half a row behind: begin the file anew, block by block.
            out = Compressed::create(&path)?;
            connection = connect(url).await?;
            unreadable = copy_blocks(url, &mut connection, &quoted, &mut out).await?;
        }
        let bytes = out.finish()?;
        contents.push(json!({ "table": table, "bytes": bytes, "unreadable_blocks": unreadable }));
    }
    Ok(json!(contents))
}

async fn copy_blocks(
    url: &str,
    connection: &mut PgConnection,
    table: &str,
    out: &mut Compressed,
) -> Result<Vec<i64>, Failure> {
    let bytes: Result<i64, _> = sqlx::query_scalar(AssertSqlSafe("select pg_relation_size($1::regclass)".to_owned()))
        .bind(table)
        .fetch_one(&mut *connection)
        .await;
    // A file that is not there has no blocks that could be read.
    let Ok(bytes) = bytes else { return Ok(vec![0]) };
    let mut unreadable = Vec::new();
    for block in 0..(bytes / BLOCK_BYTES) {
        let header = if block == 0 { ", header" } else { "" };
        let some = format!(
            "copy (select * from {table} where ctid >= '({block},0)' and ctid < '({},0)') to stdout (format csv{header})",
            block + 1
        );
        let mut rows = Vec::new();
        match copy_out(connection, &some, &mut rows).await {
            Ok(()) => out.write_all(&rows).map_err(|error| Failure::new(error.to_string()))?,
            Err(_) => {
                unreadable.push(block);
                *connection = connect(url).await?;
            }
        }
    }
    Ok(unreadable)
}

async fn copy_out(connection: &mut PgConnection, statement: &str, out: &mut impl Write) -> Result<(), sqlx::Error> {
    let mut rows = connection.copy_out_raw(statement).await?;
    while let Some(chunk) = rows.next().await {
        out.write_all(&chunk?).map_err(sqlx::Error::Io)?;
    }
    Ok(())
}

async fn connect(url: &str) -> Result<PgConnection, Failure> {
    let options = PgConnectOptions::from_str(url)?.application_name("replay-tool recover").disable_statement_logging();
    Ok(begin_session(&options).await?)
}

/// A file that is written compressed.
struct Compressed {
    path: PathBuf,
    encoder: zstd::Encoder<'static, BufWriter<File>>,
}

impl Compressed {
    fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|error| failed(path, &error))?;
        let encoder = zstd::Encoder::new(BufWriter::new(file), COMPRESSION).map_err(|error| failed(path, &error))?;
        Ok(Self { path: path.to_owned(), encoder })
    }

    /// How large it became on the disk.
    fn finish(self) -> Result<u64, Failure> {
        let Self { path, encoder } = self;
        let written = encoder.finish().and_then(|file| file.into_inner().map_err(std::io::IntoInnerError::into_error));
        let file = written.map_err(|error| failed(&path, &error))?;
        file.sync_all().and_then(|()| file.metadata()).map(|file| file.len()).map_err(|error| failed(&path, &error))
    }
}

impl Write for Compressed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.encoder.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.encoder.flush()
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!(
        "what is there cannot be kept, so nothing was touched: {}: {error}; give a folder with room with --report",
        path.display()
    ))
}
