//! Where a drill works, and how nothing of it is left.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use ledger_store::{
    Database,
    restore::{self, Found},
};
use tempfile::TempDir;

use crate::{archive::Manifest, context::Failure};

/// What the folders of drills are called.
const PREFIX: &str = "ledger-drill-";
/// In the folder: locked as long as its drill runs.
const LOCK_NAME: &str = "lock";
/// What the table `restores` of a scratch database names, so that the next drill knows that nobody needs it.
const ARCHIVE_ID_PREFIX: &str = "drill:";

/// The name that an archive has in a scratch database.
pub(super) fn archive_id(manifest: &Manifest) -> String {
    format!("{ARCHIVE_ID_PREFIX}{}", manifest.archive_id)
}

/// The folder of one drill, gone with the value.
pub(super) struct WorkFolder {
    folder: TempDir,
    _lock: File,
}

impl WorkFolder {
    /// Makes a folder, after what killed drills left was removed.
    pub(super) fn create(parent: Option<&Path>) -> Result<Self, Failure> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let failed = |error: &io::Error| {
            Failure::new(format!("cannot work in {}: {error}; name another folder with --folder", parent.display()))
        };
        sweep(&parent);
        loop {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent).map_err(|error| failed(&error))?;
            match locked(&folder.path().join(LOCK_NAME)) {
                Ok(lock) => return Ok(Self { folder, _lock: lock }),
                // Another drill swept it away before it was locked.
                Err(error) if error.kind() == io::ErrorKind::NotFound && parent.exists() => {}
                Err(error) => return Err(failed(&error)),
            }
        }
    }

    pub(super) fn archive(&self) -> PathBuf {
        self.folder.path().join("archive")
    }

    /// Keeps it, and tells where it is. Without its lock's file the next drill lets it be.
    pub(super) fn keep(mut self) -> PathBuf {
        let _ = fs::remove_file(self.folder.path().join(LOCK_NAME));
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }
}

/// Makes a file and locks it; not found when it is gone by then.
fn locked(path: &Path) -> io::Result<File> {
    let lock = File::create(path)?;
    lock.lock()?;
    fs::metadata(path)?;
    Ok(lock)
}

/// Removes the folders of drills that were killed: those whose lock nobody holds, and those that are still empty.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_drill = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        if !is_drill || fs::remove_dir(entry.path()).is_ok() {
            continue;
        }
        if let Ok(lock) = File::open(entry.path().join(LOCK_NAME))
            && lock.try_lock().is_ok()
        {
            // Another drill may be sweeping, too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The database that is restored into.
pub(super) struct Scratch {
    url: String,
    place: String,
}

impl Scratch {
    /// The database at `url`, which must be empty or left by a drill; without one a file in the folder.
    pub(super) async fn choose(url: Option<&str>, folder: &WorkFolder, served: &str) -> Result<Self, Failure> {
        let Some(url) = url else {
            let file = folder.folder.path().join("scratch.db");
            return Ok(Self { url: format!("sqlite://{}", file.display()), place: file.display().to_string() });
        };
        let refused = || {
            Failure::new(format!(
                "--scratch-url: that database holds a ledger already; name an empty PostgreSQL database or a SQLite file that \
                 does not exist yet (the ledger itself is {served})"
            ))
        };
        match restore::look(url)
            .await
            .map_err(|error| Failure::new(format!("--scratch-url: {}", Failure::from(error))))?
        {
            Found::Nothing => {}
            // It has tables that this drill would have to remove, and did not make.
            Found::EmptyLedger => return Err(refused()),
            Found::Ledger => {
                let database = Database::open_existing(url).await?;
                if database.describe() == served || !is_put_there_by(ARCHIVE_ID_PREFIX, &database).await? {
                    database.close().await;
                    return Err(refused());
                }
                restore::remove(&database).await?;
                database.close().await;
            }
        }
        // Without the password that the address may hold.
        let place = match url.split_once('@') {
            Some((_, place)) => place.to_owned(),
            None => url.to_owned(),
        };
        Ok(Self { url: url.to_owned(), place })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Removes what was restored of this archive, if anything was. Where somebody else put a ledger meanwhile nothing was, and
    /// that stays.
    pub(super) async fn remove(&self, archive_id: &str) -> Result<(), Failure> {
        if restore::look(&self.url).await? == Found::Nothing {
            return Ok(());
        }
        let database = Database::open_existing(&self.url).await?;
        let removed = match is_put_there_by(archive_id, &database).await {
            Ok(true) => restore::remove(&database).await.map_err(Failure::from),
            Ok(false) => Ok(()),
            Err(failure) => Err(failure),
        };
        database.close().await;
        removed
    }
}

/// Whether the ledger was put there by a drill, of an archive whose name begins like this, and nothing was written to it since.
async fn is_put_there_by(archive_id: &str, database: &Database) -> Result<bool, Failure> {
    let heads = database.heads().await?;
    let points = restore::points(database).await?;
    Ok(heads.iter().enumerate().all(|(index, head)| {
        points.iter().any(|point| {
            point.partition.index() == index && point.head == *head && point.archive_id.starts_with(archive_id)
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_ledger_that_no_drill_made_is_not_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("ledger.db");
        let url = format!("sqlite://{}", file.display());
        // Somebody began to use the file after the drill had looked at it.
        Database::open(&url).await.expect("a new ledger").close().await;
        let scratch = Scratch { url: url.clone(), place: file.display().to_string() };
        for archive_id in [ARCHIVE_ID_PREFIX.to_owned(), format!("{ARCHIVE_ID_PREFIX}7")] {
            scratch.remove(&archive_id).await.expect("there is nothing to remove");
            let there = restore::look(&url).await.expect("it can be read");
            assert_eq!(there, Found::EmptyLedger);
        }
    }
}
