//! What an archive says of itself.

use std::{fs, path::Path};

use ledger_core::{Epoch, Hash, Head, PARTITIONS, Partition, Position, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use uuid::Uuid;

use crate::context::Failure;

/// The version of the folder's form.
const FORMAT_VERSION: u32 = 1;
/// The manifest's name in the folder.
pub(crate) const FILE_NAME: &str = "manifest.json";
/// No manifest is longer: what is, is none.
const BYTES_MAX: u64 = 1 << 20;

/// What an archive holds, by which the rest of it is checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    format_version: u32,
    pub(crate) archive_id: Uuid,
    #[serde(deserialize_with = "time")]
    pub(crate) created_at: Timestamp,
    pub(crate) tool_version: String,
    /// The kind of database that it was taken from.
    pub(crate) source: Source,
    /// The newest epoch of any head.
    #[serde(deserialize_with = "epoch")]
    pub(crate) epoch: Epoch,
    /// Where the log of each partition ends.
    #[serde(serialize_with = "write_heads", deserialize_with = "read_heads")]
    pub(crate) heads: [Head; PARTITIONS],
    /// How many events the files hold.
    pub(crate) events: u64,
    /// How many accounts there are at the heads.
    pub(crate) accounts: u64,
    /// Of the state at the heads, as `verify` prints it.
    #[serde(deserialize_with = "hash")]
    pub(crate) digest: Hash,
    /// The archive that this one goes on from; without one it begins at the beginning.
    pub(crate) since: Option<Since>,
    pub(crate) files: Vec<PartitionFile>,
}

/// The kind of database that an archive was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    Sqlite,
    Postgres,
}

/// The archive that an increment goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Since {
    pub(crate) archive_id: Uuid,
    #[serde(serialize_with = "write_heads", deserialize_with = "read_heads")]
    pub(crate) heads: [Head; PARTITIONS],
}

/// A file of the archive: the events of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartitionFile {
    #[serde(deserialize_with = "partition")]
    pub(crate) partition: Partition,
    pub(crate) file: String,
    pub(crate) events: u64,
    #[serde(deserialize_with = "position")]
    pub(crate) first_position: Position,
    pub(crate) bytes: u64,
    #[serde(deserialize_with = "hash")]
    pub(crate) blake3: Hash,
}

impl Manifest {
    /// A manifest of this program's form.
    pub(crate) fn new(
        created_at: Timestamp,
        source: Source,
        heads: [Head; PARTITIONS],
        accounts: u64,
        digest: Hash,
        since: Option<Since>,
        files: Vec<PartitionFile>,
    ) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            archive_id: Uuid::new_v4(),
            created_at,
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            source,
            epoch: heads.iter().map(|head| head.epoch).max().unwrap_or(Epoch::FIRST),
            heads,
            events: files.iter().map(|file| file.events).sum(),
            accounts,
            digest,
            since,
            files,
        }
    }

    /// The manifest of the archive in a folder.
    pub(crate) fn read(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join(FILE_NAME);
        let length = fs::metadata(&path).map(|file| file.len());
        match length {
            Ok(length) if length <= BYTES_MAX => {}
            Ok(_) => return Err(Failure::new(format!("{}: is too long for a manifest", path.display()))),
            Err(error) => {
                return Err(Failure::new(format!(
                    "{}: {error}; name the folder of an archive that `replay-tool export` wrote",
                    path.display()
                )));
            }
        }
        Self::read_file(&path)
    }

    /// The manifest in a file. Its text must be, to the byte, the one that this program writes: whoever edits it has no
    /// manifest any more.
    pub(crate) fn read_file(path: &Path) -> Result<Self, Failure> {
        let refused = |what: &str| Failure::new(format!("{}: {what}", path.display()));
        let text =
            fs::read(path).map_err(|error| refused(&format!("{error}; name the manifest.json of an archive")))?;
        let mut document: Value = serde_json::from_slice(&text)
            .map_err(|error| refused(&format!("is no manifest: {error}; name the manifest.json of an archive")))?;
        if let Some(version) = document.get("format_version").filter(|version| **version != FORMAT_VERSION) {
            return Err(refused(&format!(
                "has format version {version}, this program reads {FORMAT_VERSION}: use the program that wrote it"
            )));
        }
        let stated = document.as_object_mut().and_then(|fields| fields.remove("manifest_hash"));
        let manifest: Self = serde_json::from_value(document)
            .map_err(|error| refused(&format!("is no manifest: {error}; name the manifest.json of an archive")))?;
        let edited = || refused("was edited: its hash is not the one of its content; take another copy of the archive");
        if manifest.to_text() != text || stated.is_none() {
            return Err(edited());
        }
        manifest.check().map_err(|what| refused(&what))?;
        Ok(manifest)
    }

    /// As it is written, with its hash.
    pub(crate) fn to_text(&self) -> Vec<u8> {
        let mut document = serde_json::to_value(self).unwrap_or_default();
        let hash = blake3::hash(document.to_string().as_bytes());
        document["manifest_hash"] = Value::String(Hash(*hash.as_bytes()).to_string());
        let mut text = format!("{document:#}").into_bytes();
        text.push(b'\n');
        text
    }

    /// Whether its parts agree with each other.
    fn check(&self) -> Result<(), String> {
        let mut next = 0;
        for file in &self.files {
            let index = file.partition.index();
            if index < next {
                return Err(format!("names a file of partition {} twice or out of order", file.partition));
            }
            next = index + 1;
            if file.file != file_name(file.partition) {
                return Err(format!(
                    "the file of partition {} must be called {}",
                    file.partition,
                    file_name(file.partition)
                ));
            }
        }
        let newest = self.heads.iter().map(|head| head.epoch).max();
        if newest != Some(self.epoch) {
            return Err(format!("epoch is {}, which is not the newest of its heads", self.epoch.0));
        }
        let mut events = 0_u64;
        for (partition, head) in Partition::all().zip(&self.heads) {
            let from = self.from(partition);
            let file = self.file(partition);
            let promised =
                file.map_or(Some(0), |file| (file.first_position == from.position.next()).then_some(file.events));
            let missing = head.position.0.checked_sub(from.position.0);
            if promised.is_none() || promised != missing || file.is_some_and(|file| file.events == 0) {
                return Err(format!("partition {partition}: its file does not hold the events up to its head"));
            }
            if missing == Some(0) && head.hash != from.hash {
                return Err(format!("partition {partition}: its head is not the one that it goes on from"));
            }
            events = events.saturating_add(missing.unwrap_or(0));
        }
        if events != self.events {
            return Err(format!("events is {}, but the files hold {events}", self.events));
        }
        Ok(())
    }

    /// The place after which the events of a partition begin.
    pub(crate) fn from(&self, partition: Partition) -> Head {
        self.since.as_ref().map_or(Head::EMPTY, |since| since.heads[partition.index()])
    }

    /// The file of a partition, when it has events.
    pub(crate) fn file(&self, partition: Partition) -> Option<&PartitionFile> {
        self.files.iter().find(|file| file.partition == partition)
    }
}

/// The name of a partition's file.
pub(crate) fn file_name(partition: Partition) -> String {
    format!("partition-{:02}.zst", partition.number())
}

/// A head as anchors have it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadEntry {
    #[serde(deserialize_with = "partition")]
    partition: Partition,
    #[serde(deserialize_with = "epoch")]
    epoch: Epoch,
    #[serde(deserialize_with = "position")]
    position: Position,
    #[serde(deserialize_with = "hash")]
    hash: Hash,
}

fn write_heads<S: Serializer>(heads: &[Head; PARTITIONS], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(Partition::all().zip(heads).map(|(partition, head)| HeadEntry {
        partition,
        epoch: head.epoch,
        position: head.position,
        hash: head.hash,
    }))
}

fn read_heads<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[Head; PARTITIONS], D::Error> {
    let entries = Vec::<HeadEntry>::deserialize(deserializer)?;
    if entries.len() != PARTITIONS || entries.iter().zip(Partition::all()).any(|(entry, all)| entry.partition != all) {
        return Err(de::Error::custom("heads must name each partition once, in order"));
    }
    Ok(std::array::from_fn(|index| {
        let HeadEntry { epoch, position, hash, .. } = entries[index];
        Head { epoch, position, hash }
    }))
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    Timestamp::parse(&text).ok_or_else(|| de::Error::custom(format!("`{text}` is no time")))
}

fn hash<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|error| de::Error::custom(format!("`{text}` {error}")))
}

fn epoch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Epoch, D::Error> {
    u32::deserialize(deserializer).map(Epoch)
}

fn position<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Position, D::Error> {
    u64::deserialize(deserializer).map(Position)
}

fn partition<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Partition, D::Error> {
    let number = u8::deserialize(deserializer)?;
    Partition::new(number).ok_or_else(|| de::Error::custom(format!("there is no partition {number}")))
}
