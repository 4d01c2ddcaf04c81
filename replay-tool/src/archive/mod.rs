//! Archives of the event table: a folder with a manifest and one file for each partition that has events.
//!
//! The manifest names the content of every file by its hash, and bears a hash of itself, so that a torn, edited or mixed
//! archive is refused as a whole. Whether the events follow one another is checked when they are restored.

mod columnar;
pub(crate) mod export;
mod fold;
pub(crate) mod import;
pub(crate) mod manifest;
mod records;
mod restore;

use std::path::{Path, PathBuf};

use ledger_core::{Event, Head, Partition};
use tokio::task::spawn_blocking;

use crate::context::Failure;
pub(crate) use fold::PartitionState;
pub(crate) use ledger_store::restore::Target;
pub(crate) use manifest::Manifest;
pub(crate) use restore::{Restored, Summary, make_read_models, next_epoch, restore, wait_for_other_restores};

/// An archive, and the archives that it goes on from: together a whole log. Its files are as they were written.
#[derive(Debug, Clone)]
pub(crate) struct Archive {
    /// Of the newest of them, which says where the log ends.
    pub(crate) manifest: Manifest,
    parts: Vec<(PathBuf, Manifest)>,
}

impl Archive {
    /// Opens the archive in a folder; it is read once to see that it is whole.
    pub(crate) async fn open(folder: &Path) -> Result<Self, Failure> {
        Self::open_all(&[folder.to_owned()]).await
    }

    /// Opens an archive and those that go on from it, in order.
    pub(crate) async fn open_all(folders: &[PathBuf]) -> Result<Self, Failure> {
        let folders = folders.to_vec();
        let opened = spawn_blocking(move || open(&folders)).await;
        opened.unwrap_or_else(|_| Err(Failure::new("the archive's reader ended early")))
    }

    /// How many events the whole log has.
    pub(crate) fn events_count(&self) -> u64 {
        self.manifest.heads.iter().map(|head| head.position.0).sum()
    }

    /// The events of a partition, in order. Reading them blocks.
    pub(crate) fn events(&self, partition: Partition) -> impl Iterator<Item = Result<Event, Failure>> + Send + use<> {
        let files: Vec<_> = self
            .parts
            .iter()
            .filter_map(|(folder, manifest)| Some((folder.clone(), manifest.file(partition)?.clone())))
            .collect();
        files.into_iter().flat_map(|(folder, file)| {
            let (reader, failure) = match records::Reader::open(&folder, &file) {
                Ok(reader) => (Some(reader), None),
                Err(failure) => (None, Some(Err(failure))),
            };
            failure.into_iter().chain(reader.into_iter().flatten())
        })
    }
}

fn open(folders: &[PathBuf]) -> Result<Archive, Failure> {
    let mut parts: Vec<(PathBuf, Manifest)> = Vec::with_capacity(folders.len());
    for folder in folders {
        let manifest = Manifest::read(folder)?;
        follows(parts.last(), folder, &manifest)?;
        parts.push((folder.clone(), manifest));
    }
    // Their manifests first: a wrong order is told before gigabytes are read.
    for (folder, manifest) in &parts {
        for file in &manifest.files {
            records::check(folder, file)?;
        }
    }
    let (_, manifest) = parts.last().ok_or_else(|| Failure::new("name an archive: --from FOLDER"))?;
    Ok(Archive { manifest: manifest.clone(), parts })
}

/// Whether an archive goes on from the one before it.
fn follows(before: Option<&(PathBuf, Manifest)>, folder: &Path, manifest: &Manifest) -> Result<(), Failure> {
    let folder = folder.display();
    match (before, &manifest.since) {
        (None, None) => Ok(()),
        (None, Some(since)) => Err(Failure::new(format!(
            "{folder}: goes on from the archive {}; name that one before it, each with --from",
            since.archive_id
        ))),
        (Some((before, _)), None) => Err(Failure::new(format!(
            "{folder}: is a whole archive and does not go on from {}; name only one of them",
            before.display()
        ))),
        (Some((before, older)), Some(since)) => {
            let same = |(a, b): (&Head, &Head)| a.position == b.position && a.hash == b.hash;
            if since.archive_id == older.archive_id && since.heads.iter().zip(&older.heads).all(same) {
                Ok(())
            } else {
                Err(Failure::new(format!(
                    "{folder}: goes on from the archive {}, but {} is {}; name them in the order in which they were written",
                    since.archive_id,
                    before.display(),
                    older.archive_id
                )))
            }
        }
    }
}
