//! The events by columns, for people who analyse them: one Parquet file beside the archive's own.
//!
//! Nothing is restored from it, so the manifest does not name it. It is written by a feature of its own: the crate that
//! knows the format takes longer to build than the rest of the tool.

use std::path::Path;

use ledger_core::Event;

use crate::context::Failure;

#[cfg(feature = "columnar")]
mod file;

/// The file's name in the archive's folder.
#[cfg(feature = "columnar")]
const FILE_NAME: &str = "events.parquet";

/// Events that are being written by columns.
pub(super) struct Columnar {
    #[cfg(feature = "columnar")]
    file: file::Writer,
    /// Without the feature there is none.
    #[cfg(not(feature = "columnar"))]
    never: std::convert::Infallible,
}

#[cfg(feature = "columnar")]
impl Columnar {
    /// Whether this program can write it.
    #[expect(clippy::unnecessary_wraps, reason = "without the feature it fails")]
    pub(super) const fn check() -> Result<(), Failure> {
        Ok(())
    }

    pub(super) fn create(folder: &Path) -> Result<Self, Failure> {
        Ok(Self { file: file::Writer::create(&folder.join(FILE_NAME))? })
    }

    pub(super) fn add(&mut self, event: &Event) -> Result<(), Failure> {
        self.file.add(event)
    }

    /// Puts all of it on the disk.
    pub(super) fn finish(self) -> Result<(), Failure> {
        self.file.finish()
    }
}

#[cfg(not(feature = "columnar"))]
impl Columnar {
    /// Whether this program can write it.
    pub(super) fn check() -> Result<(), Failure> {
        Err(built_without())
    }

    pub(super) fn create(_: &Path) -> Result<Self, Failure> {
        Err(built_without())
    }

    pub(super) fn add(&mut self, _: &Event) -> Result<(), Failure> {
        match self.never {}
    }

    pub(super) fn finish(self) -> Result<(), Failure> {
        match self.never {}
    }
}

#[cfg(not(feature = "columnar"))]
fn built_without() -> Failure {
    Failure::new(
        "--columnar: this program was built without it; build one with \
         cargo build --release -p replay-tool --features columnar",
    )
}
