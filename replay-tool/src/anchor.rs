//! Heads that are kept elsewhere, against which a truncated or re-hashed log is found out.

use std::{
    fs,
    path::{Path, PathBuf},
};

use chrono::{SecondsFormat, Utc};
use clap::Args;
use ledger_core::{Epoch, Hash, Head, PARTITIONS, Partition, Position};
use ledger_store::Database;
use serde_json::{Value, json};

use crate::{
    context::{Context, Failure, Outcome, say},
    report::write_whole,
};

/// Prints where the log of each partition ends, to be kept elsewhere: an anchor.
///
/// A log whose end was cut off, or that was written anew from some point on with new hashes, agrees with itself. Only
/// heads that were kept where nobody could change them prove what it held: keep one every day, on another machine, and
/// give it to `replay-tool verify --anchor FILE`.
///
///     replay-tool heads --out heads-2026-11-21.json
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Write the anchor to this file instead of printing it. The file is there whole or not at all.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) async fn run(context: &Context, arguments: &Arguments) -> Result<Outcome, Failure> {
    let database = context.open().await?;
    let heads = database.heads().await?;
    let unproved = unproved(&database, &heads).await?;
    database.close().await;
    if let Some(partition) = unproved {
        // Kept as an anchor, a head that names no event would accuse a sound log for ever.
        say!("partition {partition}: the head names no event of the log; run replay-tool verify");
        return Ok(Outcome::Inconsistent);
    }
    let anchor = Anchor::of(&heads).to_json();
    match &arguments.out {
        None if context.json => say!("{anchor}"),
        None => say!("{anchor:#}"),
        Some(path) => {
            write_whole(path, format!("{anchor:#}\n").as_bytes())?;
            if context.json {
                say!("{anchor}");
            } else {
                let events = heads.iter().fold(0, |sum: u64, head| sum.saturating_add(head.position.0));
                say!("{} heads of {events} events written to {}", heads.len(), path.display());
            }
        }
    }
    Ok(Outcome::Consistent)
}

/// The first partition whose head is not the hash of the event that it names.
async fn unproved(database: &Database, heads: &[Head; PARTITIONS]) -> Result<Option<Partition>, Failure> {
    let named = || Partition::all().zip(heads).filter(|(_, head)| head.position > Position::ZERO);
    let places: Vec<_> = named().map(|(partition, head)| (partition, head.position)).collect();
    let events = database.events_at(&places).await?;
    let is_there = |partition: Partition, head: &Head| {
        events
            .iter()
            .any(|event| event.partition == partition && event.position == head.position && event.hash == head.hash)
    };
    Ok(named().find(|(partition, head)| !is_there(*partition, head)).map(|(partition, _)| partition))
}

/// Some heads, and where they were kept.
#[derive(Debug, Clone)]
pub(crate) struct Anchor {
    /// In words, for whoever reads a finding.
    pub(crate) source: String,
    pub(crate) heads: Vec<(Partition, Head)>,
}

impl Anchor {
    /// The heads of a ledger as they are.
    pub(crate) fn of(heads: &[Head; PARTITIONS]) -> Self {
        Self { source: "the ledger".to_owned(), heads: Partition::all().zip(heads.iter().copied()).collect() }
    }

    /// Reads any JSON object that has `heads`: what `replay-tool heads` prints, or an archive's manifest.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let refused = |why: String| Failure::new(format!("--anchor {}: {why}", path.display()));
        let bytes = fs::read(path)
            .map_err(|error| refused(format!("cannot be read: {error}; give a file of `replay-tool heads`")))?;
        let document: Value = serde_json::from_slice(&bytes)
            .map_err(|error| refused(format!("is not JSON ({error}); give a file of `replay-tool heads`")))?;
        let heads = heads_of(&document).map_err(|why| refused(format!("{why}; give a file of `replay-tool heads`")))?;
        Ok(Self { source: format!("the anchor {}", path.display()), heads })
    }

    fn to_json(&self) -> Value {
        let heads: Vec<_> = self
            .heads
            .iter()
            .map(|(partition, head)| {
                json!({ "partition": partition, "epoch": head.epoch, "position": head.position, "hash": head.hash })
            })
            .collect();
        json!({ "taken_at": Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true), "heads": heads })
    }
}

fn heads_of(document: &Value) -> Result<Vec<(Partition, Head)>, String> {
    let heads = document.get("heads").and_then(Value::as_array).ok_or("has no array `heads`")?;
    if heads.is_empty() {
        return Err("has no head in `heads`".to_owned());
    }
    heads.iter().enumerate().map(|(index, head)| head_of(head).map_err(|why| format!("heads[{index}].{why}"))).collect()
}

fn head_of(head: &Value) -> Result<(Partition, Head), String> {
    let number = |field: &str| {
        head.get(field).and_then(Value::as_u64).ok_or_else(|| format!("{field} is not a whole number of at least 0"))
    };
    let partition = u8::try_from(number("partition")?)
        .ok()
        .and_then(Partition::new)
        .ok_or_else(|| format!("partition is not 0 to {}", PARTITIONS - 1))?;
    let epoch = u32::try_from(number("epoch")?).map_err(|_| "epoch is larger than an epoch can be".to_owned())?;
    let position = Position(number("position")?);
    let hash: Hash = head
        .get("hash")
        .and_then(Value::as_str)
        .and_then(|text| text.parse().ok())
        .ok_or("hash is not 64 hexadecimal digits")?;
    Ok((partition, Head { epoch: Epoch(epoch), position, hash }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_read_back_is_the_one_that_was_kept() {
        let mut heads = [Head::EMPTY; PARTITIONS];
        heads[7] = Head { epoch: Epoch(3), position: Position(9), hash: Hash([0xab; 32]) };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("heads.json");
        write_whole(&path, Anchor::of(&heads).to_json().to_string().as_bytes()).expect("written");
        let read = Anchor::read(&path).expect("an anchor");
        assert_eq!(read.heads, Anchor::of(&heads).heads);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_is_no_anchor_is_refused_by_the_field_that_is_wrong() {
        let head = json!({ "partition": 1, "epoch": 1, "position": 2, "hash": "00".repeat(32) });
        let with = |field: &str, value: Value| {
            let mut head = head.clone();
            head[field] = value;
            heads_of(&json!({ "heads": [head] })).err().unwrap_or_default()
        };
        assert!(heads_of(&json!({ "heads": [head] })).is_ok());
        assert!(heads_of(&json!({})).is_err() && heads_of(&json!({ "heads": [] })).is_err());
        assert_eq!(with("partition", json!(64)), "heads[0].partition is not 0 to 63");
        assert!(with("epoch", json!(1_u64 << 40)).starts_with("heads[0].epoch"));
        assert!(with("position", json!(-1)).starts_with("heads[0].position"));
        assert!(with("hash", json!("00")).starts_with("heads[0].hash"));
    }
}
