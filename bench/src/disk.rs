//! What the disk is given to write, by its own counter.
//!
//! The counters of processes would not do: the kernel counts a whole large folio when one page of it becomes dirty,
//! which for a log that is synced at every commit comes to some ten times what is written. The disk's counter is
//! exact, but it counts whoever writes: nothing else should.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// A block device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disk {
    major: u64,
    minor: u64,
}

impl Disk {
    /// The one that holds the folder.
    pub(crate) fn under(folder: &Path) -> Option<Self> {
        let device = fs::metadata(folder).ok()?.dev();
        // As glibc's makedev puts them together.
        let major = (device >> 8) & 0xfff | (device >> 32) & !0xfff;
        let minor = device & 0xff | (device >> 12) & !0xff;
        Some(Self { major, minor })
    }

    /// The bytes that it was given since the machine started; none where the folder is on no disk.
    pub(crate) fn written_bytes(self) -> Option<u64> {
        let stat = fs::read_to_string(format!("/sys/dev/block/{}:{}/stat", self.major, self.minor)).ok()?;
        sectors_written(&stat).map(|sectors| sectors * 512)
    }
}

/// The seventh number (Documentation/block/stat.rst), in sectors of 512 bytes whatever the disk's own are.
fn sectors_written(stat: &str) -> Option<u64> {
    stat.split_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sectors_written_are_found_in_the_kernels_line() {
        let stat = "   57512     1042  4164690    20334   212086   183401 10485760   312001        0   180000   340000";
        assert_eq!(sectors_written(stat), Some(10_485_760));
        assert_eq!(sectors_written(""), None);
    }
}
