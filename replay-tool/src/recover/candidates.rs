//! Events that may follow the archive, kept in one file a partition until they are judged: memory holds one partition's
//! places at most, whatever the stream and the database held.

use std::{
    fs::{self, File},
    io::{BufReader, BufWriter, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use ledger_core::{Epoch, Event, Hash, PARTITIONS, Partition, Position, json};

use crate::context::Failure;

/// Where an event was found. The order is that of trust: what subscribers were told comes before a damaged database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Stream,
    Database,
}

impl Source {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Database => "database",
        }
    }
}

/// An event that was found, without the event itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) source: Source,
    pub(super) epoch: Epoch,
    pub(super) position: Position,
    /// What the event says its hash is.
    pub(super) hash: Hash,
    /// Where its JSON stands in the file, and how long it is.
    offset: u64,
    length: u32,
}

const HEADER_BYTES: usize = 1 + 4 + 8 + 32 + 4;

/// Files that are being written, one a partition.
#[derive(Debug)]
pub(super) struct Writers {
    folder: PathBuf,
    kind: &'static str,
    files: [Option<BufWriter<File>>; PARTITIONS],
}

impl Writers {
    /// Begins anew: what an earlier run left is taken away.
    pub(super) fn create(folder: &Path, kind: &'static str) -> Result<Self, Failure> {
        fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
        for partition in Partition::all() {
            let path = path(folder, kind, partition);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&path, &error)),
                _ => {}
            }
        }
        Ok(Self { folder: folder.to_owned(), kind, files: std::array::from_fn(|_| None) })
    }

    /// Adds an event, as the JSON that it came as.
    pub(super) fn push(&mut self, source: Source, event: &Event, entry: &[u8]) -> Result<(), Failure> {
        let path = path(&self.folder, self.kind, event.partition);
        let slot = &mut self.files[event.partition.index()];
        let file = match slot {
            Some(file) => file,
            None => slot.insert(BufWriter::new(File::create(&path).map_err(|error| failed(&path, &error))?)),
        };
        let length = u32::try_from(entry.len()).map_err(|_| Failure::new("an event of 4 GiB cannot be kept"))?;
        let mut header = [0; HEADER_BYTES];
        header[0] = source as u8;
        header[1..5].copy_from_slice(&event.epoch.0.to_be_bytes());
        header[5..13].copy_from_slice(&event.position.0.to_be_bytes());
        header[13..45].copy_from_slice(&event.hash.0);
        header[45..].copy_from_slice(&length.to_be_bytes());
        file.write_all(&header).and_then(|()| file.write_all(entry)).map_err(|error| failed(&path, &error))
    }

    pub(super) fn finish(self) -> Result<Files, Failure> {
        for file in self.files.into_iter().flatten() {
            file.into_inner().map_err(|error| failed(&self.folder, error.error()))?;
        }
        Ok(Files { folder: self.folder, kind: self.kind })
    }
}

/// Files that were written.
#[derive(Debug, Clone)]
pub(super) struct Files {
    folder: PathBuf,
    kind: &'static str,
}

impl Files {
    /// The events of a partition, in the order in which they were written.
    pub(super) fn read(&self, partition: Partition) -> Result<Reader, Failure> {
        let path = path(&self.folder, self.kind, partition);
        let file = match File::open(&path) {
            Ok(file) => Some(BufReader::new(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(&path, &error)),
        };
        Ok(Reader { path, file, offset: 0, entry: Vec::new() })
    }

    /// The places of a partition's events, for a look at them in any order.
    pub(super) fn places(&self, partition: Partition) -> Result<Places, Failure> {
        let mut reader = self.read(partition)?;
        let mut candidates = Vec::new();
        while let Some(candidate) = reader.next_place()? {
            candidates.push(candidate);
        }
        let path = path(&self.folder, self.kind, partition);
        let file =
            if candidates.is_empty() { None } else { Some(File::open(&path).map_err(|error| failed(&path, &error))?) };
        Ok(Places { path, file, candidates })
    }
}

/// The places of a partition's events, and the file that holds them.
#[derive(Debug)]
pub(super) struct Places {
    path: PathBuf,
    file: Option<File>,
    pub(super) candidates: Vec<Candidate>,
}

impl Places {
    /// The event itself, and its JSON.
    pub(super) fn event(&self, candidate: &Candidate) -> Result<(Event, Vec<u8>), Failure> {
        let mut entry = vec![0; candidate.length as usize];
        let file = self.file.as_ref().ok_or_else(|| Failure::new("a candidate of no file"))?;
        file.read_exact_at(&mut entry, candidate.offset).map_err(|error| failed(&self.path, &error))?;
        Ok((parse(&self.path, &entry)?, entry))
    }
}

/// A reading of one file in order.
#[derive(Debug)]
pub(super) struct Reader {
    path: PathBuf,
    file: Option<BufReader<File>>,
    offset: u64,
    entry: Vec<u8>,
}

impl Reader {
    fn next_place(&mut self) -> Result<Option<Candidate>, Failure> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let mut header = [0; HEADER_BYTES];
        match file.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(failed(&self.path, &error)),
        }
        let number = |range: std::ops::Range<usize>| {
            header[range].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let length = u32::try_from(number(45..49)).unwrap_or(u32::MAX);
        let offset = self.offset + HEADER_BYTES as u64;
        self.entry.resize(length as usize, 0);
        file.read_exact(&mut self.entry).map_err(|error| failed(&self.path, &error))?;
        self.offset = offset + u64::from(length);
        Ok(Some(Candidate {
            source: if header[0] == Source::Stream as u8 { Source::Stream } else { Source::Database },
            epoch: Epoch(u32::try_from(number(1..5)).unwrap_or(u32::MAX)),
            position: Position(number(5..13)),
            hash: Hash(std::array::from_fn(|index| header[13 + index])),
            offset,
            length,
        }))
    }
}

impl Iterator for Reader {
    type Item = Result<(Candidate, Event), Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        let candidate = self.next_place().transpose()?;
        Some(candidate.and_then(|candidate| Ok((candidate, parse(&self.path, &self.entry)?))))
    }
}

fn parse(path: &Path, entry: &[u8]) -> Result<Event, Failure> {
    json::read_log_entry(entry)
        .map_err(|error| Failure::new(format!("{} was changed while it was used: {error}", path.display())))
}

fn path(folder: &Path, kind: &str, partition: Partition) -> PathBuf {
    folder.join(format!("{kind}-{:02}", partition.number()))
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}; free some space or give another folder with --report", path.display()))
}
