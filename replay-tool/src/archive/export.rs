//! `export`: an archive of the event table.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use clap::Args;
use ledger_core::{Event, Hash, Head, PARTITIONS, Partition, Position, digest};
use ledger_store::Database;
use serde_json::json;
use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    columnar::Columnar,
    fold::PartitionState,
    manifest::{self, Manifest, PartitionFile, Since, Source},
    records,
    restore::now,
};
use crate::{
    context::{Context, Failure, Outcome, say},
    progress::Progress,
};

/// Pages of events that wait to be written.
const WAITING_MAX: usize = 4;
/// In the folder while it is written: whoever has it locked writes there.
const LOCK_NAME: &str = "lock";

/// Writes an archive of the ledger: its whole log as it stands now, from which `import` and `recover` make it anew.
///
/// The archive is a folder with one file for each partition that has events, and manifest.json, which names how far the log
/// goes (position and hash of each partition), the content of each file by its hash, and the digest of the state as `verify`
/// prints it. Every event is checked on the way; a damaged log is not archived: exit code 1, and what is wrong is named.
///
/// The service may go on: what it writes after the beginning is not in the archive. The folder appears under its name only
/// when it is complete and on the disk; whatever is left of a run that was killed is removed by the next one.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  replay-tool export --out backup/monday\n  replay-tool export --out backup/tuesday --since-manifest backup/monday/manifest.json\n\nKeep a copy of manifest.json somewhere else: it is an anchor for `verify --anchor`."
)]
pub(crate) struct Arguments {
    /// The folder to write; it must not exist yet, or be empty.
    #[arg(long = "out", value_name = "FOLDER")]
    to: PathBuf,
    /// Write only the events after another archive, whose manifest.json this is. `import` then needs both, in order.
    #[arg(long, value_name = "FILE")]
    since_manifest: Option<PathBuf>,
    /// Write the same events by columns, too: events.parquet in the folder, for DuckDB, pandas, Spark and their like. (The
    /// program must be built with `--features columnar`.)
    #[arg(long)]
    columnar: bool,
}

pub(crate) async fn run(context: &Context, arguments: &Arguments) -> Result<Outcome, Failure> {
    let began = Instant::now();
    if arguments.columnar {
        Columnar::check()?;
    }
    let since = arguments.since_manifest.as_deref().map(Manifest::read_file).transpose()?;
    let database = context.open().await?;
    let exported = export(&database, &arguments.to, since.as_ref(), arguments.columnar).await;
    database.close().await;
    let folder = arguments.to.display();
    match exported? {
        Exported::Done(manifest) if context.json => {
            let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
            let document = json!({
                "exported": true, "folder": folder.to_string(), "archive_id": manifest.archive_id,
                "epoch": manifest.epoch, "events": manifest.events, "accounts": manifest.accounts,
                "digest": manifest.digest, "bytes": bytes, "since": manifest.since.map(|since| since.archive_id),
                "seconds": began.elapsed().as_secs_f64(),
            });
            say!("{document}");
            Ok(Outcome::Consistent)
        }
        Exported::Done(manifest) => {
            let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
            say!(
                "archive   {}\nepoch     {}\nevents    {}\naccounts  {}\ndigest    {}\nbytes     {bytes}\nseconds   {:.1}",
                manifest.archive_id,
                manifest.epoch.0,
                manifest.events,
                manifest.accounts,
                manifest.digest,
                began.elapsed().as_secs_f64()
            );
            say!("exported to {folder}");
            Ok(Outcome::Consistent)
        }
        Exported::Damaged { partition, position, what } => {
            if context.json {
                let document = json!({
                    "exported": false, "partition": partition, "position": position, "what": what,
                    "remedy": "run replay-tool verify, which names all that is damaged",
                });
                say!("{document}");
            } else {
                say!("partition {partition} position {position}: {what}");
                say!("not exported: the log is damaged; run replay-tool verify, which names all that is damaged");
            }
            Ok(Outcome::Inconsistent)
        }
    }
}

/// What an export came to.
pub(crate) enum Exported {
    Done(Box<Manifest>),
    /// The log contradicts itself: nothing was written.
    Damaged {
        partition: Partition,
        position: Position,
        what: String,
    },
}

/// Why an export cannot go on.
enum Stopped {
    Damaged { partition: Partition, position: Position, what: String },
    Failed(Failure),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Writes the log, as far as it is when this begins, into the folder `to`.
pub(crate) async fn export(
    database: &Database,
    to: &Path,
    since: Option<&Manifest>,
    columnar: bool,
) -> Result<Exported, Failure> {
    let work = Work::create(to)?;
    // Once: the log only grows, so what lies before these heads can be read at any time.
    let heads = database.heads().await?;
    if let Some(since) = since {
        check_since(since, &heads)?;
    }
    let since = since.map(|since| Since { archive_id: since.archive_id, heads: since.heads });
    let progress = Arc::new(Progress::new("exporting"));
    progress.expect(heads.iter().map(|head| head.position.0).sum());
    let (send, pages) = mpsc::channel(WAITING_MAX);
    let columnar = columnar.then(|| Columnar::create(&work.folder)).transpose()?;
    let task = {
        let (folder, since, progress) = (work.folder.clone(), since.clone(), progress.clone());
        spawn_blocking(move || write_all(&folder, &heads, since.as_ref(), columnar, pages, &progress))
    };
    let read = read_all(database, &heads, &send).await;
    drop(send);
    let written = task.await.unwrap_or_else(|_| Err(Failure::new("the archive's writer ended early").into()));
    progress.finish();
    // When the reader stops, the writer meets the end too early: of two findings the earlier one is told.
    let outcome = match (read, written) {
        (Ok(()), written) => written,
        (
            Err(Stopped::Damaged { partition, position, .. }),
            Err(Stopped::Damaged { partition: other, position: before, what }),
        ) if (other, before) < (partition, position) => {
            Err(Stopped::Damaged { partition: other, position: before, what })
        }
        (Err(stopped), _) => Err(stopped),
    };
    let (files, digest, accounts) = match outcome {
        Ok(written) => written,
        Err(Stopped::Damaged { partition, position, what }) => {
            return Ok(Exported::Damaged { partition, position, what });
        }
        Err(Stopped::Failed(failure)) => return Err(failure),
    };
    let source = match database {
        Database::Postgres(_) => Source::Postgres,
        Database::Sqlite(_) => Source::Sqlite,
    };
    let manifest = Manifest::new(now(), source, heads, accounts, digest, since, files);
    work.finish(&manifest, to)?;
    Ok(Exported::Done(Box::new(manifest)))
}

/// The base must be an earlier state of this very log; whether it is, its hashes tell when they are met on the way.
fn check_since(since: &Manifest, heads: &[Head; PARTITIONS]) -> Result<(), Failure> {
    for (partition, (base, head)) in Partition::all().zip(since.heads.iter().zip(heads)) {
        if base.position > head.position {
            return Err(Failure::new(format!(
                "--since-manifest: partition {partition} of that archive goes to position {}, but this ledger only to {}: it \
                 is another ledger, or was restored from an older archive; export without --since-manifest",
                base.position, head.position
            )));
        }
    }
    Ok(())
}

/// Reads every partition up to its head, page by page.
async fn read_all(
    database: &Database,
    heads: &[Head; PARTITIONS],
    send: &mpsc::Sender<(Partition, Vec<Event>)>,
) -> Result<(), Stopped> {
    for (partition, head) in Partition::all().zip(heads) {
        let mut scan = database.scan(partition, Position::ZERO, head.position);
        loop {
            let rows = scan.next().await.map_err(Failure::from)?;
            if rows.is_empty() {
                break;
            }
            let mut events = Vec::with_capacity(rows.len());
            let mut damage = None;
            for row in rows {
                match row {
                    Ok(event) => events.push(event),
                    Err(found) => {
                        damage = Some(found);
                        break;
                    }
                }
            }
            // What comes before the damage may itself contradict: the writer looks at it first.
            if send.send((partition, events)).await.is_err() {
                return Ok(());
            }
            if let Some(found) = damage {
                let (position, what) = (found.position, format!("column {} {}", found.column, found.reason));
                return Err(Stopped::Damaged { partition, position, what });
            }
        }
    }
    Ok(())
}

type Written = (Vec<PartitionFile>, Hash, u64);

/// Checks and writes what is read.
fn write_all(
    folder: &Path,
    heads: &[Head; PARTITIONS],
    since: Option<&Since>,
    mut columnar: Option<Columnar>,
    mut pages: mpsc::Receiver<(Partition, Vec<Event>)>,
    progress: &Progress,
) -> Result<Written, Stopped> {
    let mut files = Vec::new();
    let mut digests = [(Hash::ZERO, Hash::ZERO); PARTITIONS];
    let mut accounts = 0;
    let mut next = pages.blocking_recv();
    for (partition, head) in Partition::all().zip(heads) {
        let from = since.map_or(Head::EMPTY, |since| since.heads[partition.index()]);
        let mut state = PartitionState::default();
        let mut writer = None;
        if from.position < head.position {
            writer = Some(records::Writer::create(folder, partition, from.position.next())?);
        }
        check_base(partition, &from, &state)?;
        while let Some((_, events)) = next.take_if(|(of, _)| *of == partition) {
            progress.advance(events.len() as u64);
            for event in &events {
                let position = event.position;
                state.add(event).map_err(|contradiction| Stopped::Damaged {
                    partition,
                    position: contradiction.position,
                    what: format!(
                        "{} is {}, but what comes before makes it {}",
                        contradiction.field, contradiction.found, contradiction.expected
                    ),
                })?;
                if position > from.position
                    && let Some(writer) = &mut writer
                {
                    writer.add(event)?;
                    if let Some(columnar) = &mut columnar {
                        columnar.add(event)?;
                    }
                }
                check_base(partition, &from, &state)?;
            }
            next = pages.blocking_recv();
        }
        if state.head.position != head.position || state.head.hash != head.hash {
            // The reader may have failed; then its failure is the one that is told.
            let what = format!(
                "the log ends at position {} with hash {}, but its head is position {} with hash {}",
                state.head.position, state.head.hash, head.position, head.hash
            );
            return Err(Stopped::Damaged { partition, position: state.head.position.next(), what });
        }
        files.extend(writer.map(records::Writer::finish).transpose()?);
        accounts += state.balances.len() as u64;
        digests[partition.index()] = state.digest();
    }
    columnar.map(Columnar::finish).transpose()?;
    Ok((files, digest::combine(&digests), accounts))
}

/// Where the base ended the log must have the base's hash.
fn check_base(partition: Partition, base: &Head, state: &PartitionState) -> Result<(), Failure> {
    if state.head.position == base.position && state.head.hash != base.hash {
        return Err(Failure::new(format!(
            "--since-manifest: position {} of partition {partition} is another event in that archive: it is of another ledger, \
             or this one was restored from an older archive; export without --since-manifest",
            base.position
        )));
    }
    Ok(())
}

/// The folder in which the archive is made, beside the one that it will be.
struct Work {
    folder: PathBuf,
    lock: Option<File>,
}

impl Work {
    fn create(to: &Path) -> Result<Self, Failure> {
        let failed = |what: &str, error: &io::Error| {
            Failure::new(format!(
                "--out {}: cannot {what}: {error}; check that its parent folder may be written to",
                to.display()
            ))
        };
        match fs::read_dir(to).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => return Err(Failure::new(format!("--out {}: is not empty; name a new folder", to.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("use it", &error)),
        }
        let mut name = to.file_name().ok_or_else(|| Failure::new("--out: name a folder"))?.to_owned();
        name.push(".exporting");
        let folder = to.with_file_name(name);
        if let Err(error) = fs::create_dir_all(&folder) {
            return Err(failed("write beside it", &error));
        }
        let lock = File::create(folder.join(LOCK_NAME)).map_err(|error| failed("write beside it", &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::new(format!("--out {}: another export writes there; wait for it", to.display())));
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock it", &error)),
        }
        // What an export that was killed left.
        for entry in fs::read_dir(&folder).map_err(|error| failed("read beside it", &error))?.flatten() {
            if entry.file_name() != LOCK_NAME {
                fs::remove_file(entry.path()).map_err(|error| failed("remove what is left beside it", &error))?;
            }
        }
        Ok(Self { folder, lock: Some(lock) })
    }

    /// Writes the manifest, puts all of it on the disk, and gives it its name.
    fn finish(mut self, manifest: &Manifest, to: &Path) -> Result<(), Failure> {
        let finish = || -> io::Result<()> {
            let path = self.folder.join(manifest::FILE_NAME);
            fs::write(&path, manifest.to_text())?;
            File::open(&path)?.sync_all()?;
            fs::remove_file(self.folder.join(LOCK_NAME))?;
            File::open(&self.folder)?.sync_all()?;
            fs::rename(&self.folder, to)?;
            let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(parent)?.sync_all()
        };
        finish().map_err(|error| Failure::new(format!("--out {}: cannot finish: {error}", to.display())))?;
        self.lock = None;
        Ok(())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.lock.is_some() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
