//! The file of one partition: a zstd stream of records, each the length of an event's canonical bytes (4 bytes,
//! big-endian), those bytes, and the event's hash (32 bytes).

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use ledger_core::{Event, Hash, Partition, Position, chain};

use super::manifest::{PartitionFile, file_name};
use crate::context::Failure;

/// Three times quicker than zstd's own default, and the file a tenth larger.
const LEVEL: i32 = 1;
/// No event comes near this: its texts are bounded.
const EVENT_BYTES_MAX: u32 = 1 << 20;
/// Bytes of one read when a file is hashed.
const BLOCK: usize = 1 << 18;

/// A file in the making.
pub(crate) struct Writer {
    partition: Partition,
    path: PathBuf,
    stream: zstd::Encoder<'static, Hashing>,
    buffer: Vec<u8>,
    events: u64,
    first_position: Position,
}

impl Writer {
    /// Begins the file of a partition whose first event will be at `first_position`.
    pub(crate) fn create(folder: &Path, partition: Partition, first_position: Position) -> Result<Self, Failure> {
        let path = folder.join(file_name(partition));
        let file = Hashing {
            file: BufWriter::new(File::create(&path).map_err(|error| failed(&path, &error))?),
            hasher: blake3::Hasher::new(),
            bytes: 0,
        };
        let stream = zstd::Encoder::new(file, LEVEL).map_err(|error| failed(&path, &error))?;
        Ok(Self { partition, path, stream, buffer: Vec::new(), events: 0, first_position })
    }

    /// Adds the partition's next event.
    pub(crate) fn add(&mut self, event: &Event) -> Result<(), Failure> {
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.extend_from_slice(&[0; 4]);
        chain::write_canonical(buffer, event);
        let length = u32::try_from(buffer.len() - 4).unwrap_or(u32::MAX);
        buffer[..4].copy_from_slice(&length.to_be_bytes());
        buffer.extend_from_slice(&event.hash.0);
        self.events += 1;
        self.stream.write_all(buffer).map_err(|error| failed(&self.path, &error))
    }

    /// Ends the file, puts it on the disk, and tells what the manifest says of it.
    pub(crate) fn finish(self) -> Result<PartitionFile, Failure> {
        let path = &self.path;
        let Hashing { file, hasher, bytes } = self.stream.finish().map_err(|error| failed(path, &error))?;
        let file = file.into_inner().map_err(|error| failed(path, error.error()))?;
        file.sync_all().map_err(|error| failed(path, &error))?;
        Ok(PartitionFile {
            partition: self.partition,
            file: file_name(self.partition),
            events: self.events,
            first_position: self.first_position,
            bytes,
            blake3: Hash(*hasher.finalize().as_bytes()),
        })
    }
}

/// Hashes what is written.
struct Hashing {
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Compares a file with what the manifest says of it.
pub(crate) fn check(folder: &Path, expected: &PartitionFile) -> Result<(), Failure> {
    let path = folder.join(&expected.file);
    let refused = |what: String| {
        Failure::new(format!(
            "{}: {what}; the archive is not as it was written, take another copy of it",
            path.display()
        ))
    };
    let mut file = File::open(&path).map_err(|error| refused(error.to_string()))?;
    let length = file.metadata().map_err(|error| refused(error.to_string()))?.len();
    if length != expected.bytes {
        return Err(refused(format!("has {length} bytes instead of {}", expected.bytes)));
    }
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0; BLOCK];
    loop {
        let read = file.read(&mut block).map_err(|error| refused(error.to_string()))?;
        if read == 0 {
            break;
        }
        hasher.update(&block[..read]);
    }
    if *hasher.finalize().as_bytes() != expected.blake3.0 {
        return Err(refused("its content is not the one that the manifest names".to_owned()));
    }
    Ok(())
}

/// The events of a file, in order.
pub(crate) struct Reader {
    path: PathBuf,
    stream: Option<zstd::Decoder<'static, BufReader<File>>>,
    buffer: Vec<u8>,
    /// Events that were promised and are not read yet.
    left: u64,
}

impl Reader {
    pub(crate) fn open(folder: &Path, file: &PartitionFile) -> Result<Self, Failure> {
        let path = folder.join(&file.file);
        let stream = File::open(&path).and_then(zstd::Decoder::new).map_err(|error| failed(&path, &error))?;
        Ok(Self { path, stream: Some(stream), buffer: Vec::new(), left: file.events })
    }

    fn read(&mut self) -> Result<Option<Event>, String> {
        let Some(stream) = &mut self.stream else { return Ok(None) };
        let mut length = [0; 4];
        if self.left == 0 {
            let more = stream.read(&mut length[..1]).map_err(|error| error.to_string())?;
            return if more == 0 { Ok(None) } else { Err("holds more events than the manifest names".to_owned()) };
        }
        let torn = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "ends before its last event".to_owned(),
            _ => error.to_string(),
        };
        stream.read_exact(&mut length).map_err(torn)?;
        let length = u32::from_be_bytes(length);
        if length > EVENT_BYTES_MAX {
            return Err(format!("names an event of {length} bytes"));
        }
        self.buffer.resize(length as usize, 0);
        stream.read_exact(&mut self.buffer).map_err(torn)?;
        let mut hash = [0; 32];
        stream.read_exact(&mut hash).map_err(torn)?;
        self.left -= 1;
        chain::read_canonical(&self.buffer, Hash(hash))
            .map(Some)
            .map_err(|error| format!("holds a damaged event: {error}"))
    }
}

impl Iterator for Reader {
    type Item = Result<Event, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.read() {
            Ok(Some(event)) => Some(Ok(event)),
            Ok(None) => {
                self.stream = None;
                None
            }
            Err(what) => {
                // After a failure there is nothing more to be had.
                self.stream = None;
                Some(Err(Failure::new(format!("{}: {what}", self.path.display()))))
            }
        }
    }
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{}: {error}; check that the folder may be used and has room", path.display()))
}
