//! The files of a database, beside SQLite.
//!
//! SQLite's locks are the process's, not the descriptor's: they would be gone once any descriptor of the file were closed.
//! See <https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>.

use std::{
    fs::{self, File},
    io,
    mem::ManuallyDrop,
    os::unix::fs::MetadataExt,
    path::Path,
};

/// What tells a file from every other one, whatever its name is: its device and its number there.
pub(super) type Identity = (u64, u64);

/// Which file has this name; none when it cannot be looked for.
pub(super) fn identity(file: &Path) -> Option<Identity> {
    let found = fs::metadata(file).ok()?;
    Some((found.dev(), found.ino()))
}

/// Opens a file that this process may have open as a database, never to close it.
pub(super) fn never_closed(file: impl AsRef<Path>) -> io::Result<ManuallyDrop<File>> {
    File::open(file).map(ManuallyDrop::new)
}

/// Copies a file of a database that this process may have open, onto the disk, and says how many bytes it has. One
/// descriptor stays open until the process ends.
///
/// # Errors
///
/// When `from` cannot be read or `to` cannot be written.
pub fn copy_of_open(from: &Path, to: &Path) -> io::Result<u64> {
    let from = never_closed(from)?;
    let mut to = File::create(to)?;
    let bytes = io::copy(&mut &*from, &mut to)?;
    to.sync_all()?;
    Ok(bytes)
}
