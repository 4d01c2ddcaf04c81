//! `import`: an archive into an empty database.

use std::{path::PathBuf, time::Instant};

use clap::Args;
use ledger_core::{Head, PARTITIONS};
use ledger_store::{
    Database,
    restore::{self as store, Found},
};
use serde_json::json;

use super::{
    Archive, Target,
    restore::{Restored, Summary, make_read_models, next_epoch, restore},
};
use crate::context::{Context, Failure, Outcome, say};

/// Fills an empty database from an archive: SQLite or PostgreSQL, whichever the archive came from.
///
/// The archive is read as a whole first; a torn, edited, mixed or incomplete one is refused, and so is a database that holds
/// a ledger with events. Then the log and the read models that it makes are written in one step that is either done or not;
/// what the read models hold then is compared with what the events come to, and its digest with the archive's. The ledger goes
/// on in a new epoch, so that everybody who reads it can tell its events from those that the old one may still write.
///
/// A run that was killed is simply run again. No service may use the database meanwhile.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  replay-tool --database-url postgres://ledger@db/ledger import --from backup/monday\n  replay-tool --database-url sqlite://new.db import --from backup/monday --from backup/tuesday"
)]
pub(crate) struct Arguments {
    /// The archive's folder. For one that was exported with --since-manifest name the one before it first, each with
    /// --from.
    #[arg(long, value_name = "FOLDER", required = true)]
    from: Vec<PathBuf>,
}

pub(crate) async fn run(context: &Context, arguments: &Arguments) -> Result<Outcome, Failure> {
    let began = Instant::now();
    let archive = Archive::open_all(&arguments.from).await?;
    let (summary, was_there) = match store::look(&context.database_url).await? {
        Found::Nothing | Found::EmptyLedger => match import(&context.database_url, &archive).await {
            Ok(summary) => (summary, false),
            // The commit of a run that was killed may have come through in between.
            Err(failure) => (finish(&context.database_url, &archive).await.map_err(|_| failure)?, true),
        },
        Found::Ledger => (finish(&context.database_url, &archive).await?, true),
    };
    let equal = summary.digest == archive.manifest.digest;
    let seconds = began.elapsed().as_secs_f64();
    let Summary { events, accounts, freezes, digest, epoch, wrote_in, compared_in, .. } = summary;
    if context.json {
        let document = json!({
            "imported": true, "equal": equal, "archive_id": archive.manifest.archive_id, "epoch": epoch,
            "events": events, "accounts": accounts, "freezes": freezes, "digest": digest,
            "expected_digest": archive.manifest.digest, "log_was_there": was_there,
            "write_seconds": wrote_in.as_secs_f64(), "compare_seconds": compared_in.as_secs_f64(), "seconds": seconds,
        });
        say!("{document}");
    } else {
        say!("archive   {}\nepoch     {}", archive.manifest.archive_id, epoch.0);
        say!("events    {events}\naccounts  {accounts}\nfreezes   {freezes}\ndigest    {digest}");
        let (wrote, compared) = (wrote_in.as_secs_f64(), compared_in.as_secs_f64());
        say!("seconds   {seconds:.1} (written in {wrote:.1}, compared in {compared:.1})");
        if was_there {
            say!("the log was there already from a run before; the read models were made anew from it");
        }
        if equal {
            say!("imported; the digest is the archive's");
        } else {
            say!("IMPORTED, BUT THE DIGEST IS NOT THE ARCHIVE'S ({}): run replay-tool verify", archive.manifest.digest);
        }
        if lacks_keys(context).await {
            say!("next      {MAKE_KEYS}");
        }
    }
    Ok(Outcome::of(equal))
}

/// What a person does before a ledger that has no keys is reachable.
pub(crate) const MAKE_KEYS: &str = "make API keys (api keys create): this database has none, and so is open";

/// Whether the database has no API key at all: an archive holds none. Nothing is said of one that cannot be asked.
pub(crate) async fn lacks_keys(context: &Context) -> bool {
    let Ok(database) = context.open().await else { return false };
    let has_keys = has_keys(&database).await;
    database.close().await;
    has_keys.is_ok_and(|has_keys| !has_keys)
}

async fn has_keys(database: &Database) -> Result<bool, sqlx::Error> {
    const HAS_KEYS: &str = "select exists (select 1 from api_keys)";
    match database {
        Database::Postgres(database) => sqlx::query_scalar(HAS_KEYS).fetch_one(database.pool()).await,
        Database::Sqlite(database) => sqlx::query_scalar(HAS_KEYS).fetch_one(database.readers()).await,
    }
}

/// Puts an archive into an empty database.
pub(crate) async fn import(database_url: &str, archive: &Archive) -> Result<Summary, Failure> {
    let events = archive.clone();
    let restored = Restored {
        archive_id: archive.manifest.archive_id.to_string(),
        epoch: next_epoch(archive.manifest.epoch),
        heads: archive.manifest.heads,
        events: Box::new(move |partition| Box::new(events.events(partition))),
        appends_are_held: false,
        standing: None,
    };
    restore(database_url, Target::Empty, restored).await
}

/// Finishes an import that was killed after everything was written: recognised by the archive's id and by the heads, which
/// must be where the archive put them.
async fn finish(database_url: &str, archive: &Archive) -> Result<Summary, Failure> {
    let database = Database::open_existing(database_url).await?;
    let heads = database.heads().await?;
    let epoch = heads[0].epoch;
    let points = store::points(&database).await?;
    let id = archive.manifest.archive_id.to_string();
    let ours = points.iter().filter(|point| point.head.epoch == epoch && point.archive_id == id).count();
    if ours != PARTITIONS || !stands_at(&heads, &archive.manifest.heads, heads[0]) {
        let place = database.describe();
        database.close().await;
        return Err(Failure::new(format!(
            "{place} holds a ledger with events already; name an empty database, or use `recover`, which keeps what is there"
        )));
    }
    let began = Instant::now();
    let rebuilt = make_read_models(&database).await;
    database.close().await;
    let rebuilt = rebuilt?;
    Ok(Summary {
        events: archive.events_count(),
        accounts: rebuilt.accounts,
        freezes: rebuilt.freezes,
        digest: rebuilt.digest,
        epoch,
        kept: None,
        left_out: Vec::new(),
        wrote_in: std::time::Duration::ZERO,
        compared_in: began.elapsed(),
    })
}

/// Whether the heads are the archive's, in one new epoch.
fn stands_at(heads: &[Head; PARTITIONS], archived: &[Head; PARTITIONS], first: Head) -> bool {
    heads.iter().zip(archived).all(|(head, archived)| {
        head.epoch == first.epoch && head.position == archived.position && head.hash == archived.hash
    })
}
