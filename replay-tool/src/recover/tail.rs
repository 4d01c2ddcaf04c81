//! What follows the archive: for each partition the events that continue its hash chain, up to the first that is missing,
//! and of atomic batches only whole ones.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use ledger_core::{Epoch, Event, Hash, Head, PARTITIONS, Partition, Position, TransactionId, chain};
use projector::publisher::restored::Restored;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    base::Base,
    batches::{self, Cut, GROUPS, Member},
    candidates::{Candidate, Files, Places, Source, Writers},
};
use crate::context::Failure;

/// Events that were found and not taken, by name; more are only counted.
const REFUSED_MAX: usize = 1_000;

/// The whole log that is to be restored.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) partitions: Vec<PartitionTail>,
    pub(super) cut: Cut,
    pub(super) refused: Refusals,
    accepted: Files,
}

/// One partition of it.
#[derive(Debug, Clone)]
pub(super) struct PartitionTail {
    /// The archive counts up to here: its own end, or where a later restore went on.
    pub(super) base: Position,
    /// The newest event.
    pub(super) end: Head,
    pub(super) from_stream: u64,
    pub(super) from_database: u64,
    /// Events that the database holds, and that nothing connects with the log that is to be restored.
    pub(super) only_in_database: u64,
    /// The newest of them.
    pub(super) only_in_database_to: Position,
}

/// What was found and not taken.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    pub(super) named: Vec<Value>,
    pub(super) count: u64,
}

impl Refusals {
    pub(super) fn push(&mut self, refused: impl FnOnce() -> Value) {
        self.count += 1;
        if self.named.len() < REFUSED_MAX {
            self.named.push(refused());
        }
    }
}

impl Tail {
    /// Judges the candidates. Reads and writes files: not for the runtime's own threads.
    pub(super) fn build(
        base: &Base,
        candidates: &Files,
        restores: &[Restored],
        folder: &Path,
        mut refused: Refusals,
    ) -> Result<Self, Failure> {
        let mut accepted = Writers::create(folder, "accepted")?;
        let mut members = MemberFiles::create(folder)?;
        let mut bases = [Head::EMPTY; PARTITIONS];
        let mut ends = [Position::ZERO; PARTITIONS];
        for partition in Partition::all() {
            let places = candidates.places(partition)?;
            let mut walk = Walk::begin(base, partition, &places, restores)?;
            bases[partition.index()] = walk.tip;
            while let Some((candidate, event, entry)) = walk.step(&places)? {
                accepted.push(candidate.source, &event, &entry)?;
                if let Some(member) = Member::of(&event) {
                    members.push(&member)?;
                }
            }
            ends[partition.index()] = walk.tip.position;
        }
        let accepted = accepted.finish()?;
        let members = members.finish()?;
        let cut = batches::cut(&mut ends, |group| members.read(group))?;
        members.remove();
        let mut partitions = Vec::with_capacity(PARTITIONS);
        for partition in Partition::all() {
            let index = partition.index();
            let voids = |candidate: &Candidate| {
                restores.iter().any(|restored| restored.voids(partition, candidate.epoch, candidate.position))
            };
            let places = candidates.places(partition)?;
            partitions.push(sum_up(partition, bases[index], ends[index], &accepted, &places, &voids, &mut refused)?);
        }
        Ok(Self { partitions, cut, refused, accepted })
    }

    pub(super) fn heads(&self) -> [Head; PARTITIONS] {
        std::array::from_fn(|index| self.partitions[index].end)
    }

    /// A partition's events after the archive's, in order.
    pub(super) fn events(
        &self,
        partition: Partition,
    ) -> Result<impl Iterator<Item = Result<Event, Failure>> + Send + use<>, Failure> {
        let end = self.partitions[partition.index()].end.position;
        let reader = self.accepted.read(partition)?;
        Ok(reader
            .map(|read| read.map(|(_, event)| event))
            .take_while(move |event| event.as_ref().map_or(true, |event| event.position <= end)))
    }
}

/// The way along one partition's chain.
struct Walk<'a> {
    tip: Head,
    /// Places in the order in which they are tried.
    order: Vec<Candidate>,
    next: usize,
    restores: &'a [Restored],
    /// Whether the chain passed where each restore went on, with that restore's hash there.
    confirmed: Vec<bool>,
    partition: Partition,
}

impl<'a> Walk<'a> {
    /// Begins at the archive's end, or before it where a later restore went on from there.
    fn begin(base: &Base, partition: Partition, places: &Places, restores: &'a [Restored]) -> Result<Self, Failure> {
        let head = base.heads[partition.index()];
        let mut tip = head;
        let later = restores.iter().filter(|restored| restored.epoch > head.epoch);
        let point = later.map(|restored| restored.heads[partition.index()]).min_by_key(|point| point.position);
        if let Some(point) = point.filter(|point| point.position < head.position)
            && base.hash_at(partition, point.position)? == Some(point.hash)
        {
            tip = Head { epoch: Epoch(0), ..point };
        }
        // Without a word about the restore, its first event tells where it went on, if the chain agrees.
        let earlier =
            places.candidates.iter().filter(|found| found.epoch > head.epoch && found.position <= tip.position);
        if let Some(first) = earlier.min_by_key(|found| found.position) {
            let before = Position(first.position.0.saturating_sub(1));
            if let Some(hash) = base.hash_at(partition, before)?
                && chain::link(&hash, &places.event(first)?.0) == first.hash
            {
                tip = Head { epoch: Epoch(0), position: before, hash };
            }
        }
        let mut order = places.candidates.clone();
        // The newest epoch first: where two continue the same event, a restore wrote the newer one over the older.
        order.sort_by_key(|found| (found.position, std::cmp::Reverse(found.epoch), found.source));
        let mut walk = Self { tip, order, next: 0, restores, confirmed: vec![false; restores.len()], partition };
        for (confirmed, restored) in walk.confirmed.iter_mut().zip(restores) {
            let point = restored.heads[partition.index()];
            // What older epochs held past the archive is passed over in any case; only newer restores are asked about.
            *confirmed = restored.epoch <= head.epoch
                || (point.position <= tip.position && base.hash_at(partition, point.position)? == Some(point.hash));
        }
        Ok(walk)
    }

    /// The next event of the chain, and its JSON.
    fn step(&mut self, places: &Places) -> Result<Option<(Candidate, Event, Vec<u8>)>, Failure> {
        let wanted = self.tip.position.next();
        while let Some(candidate) = self.order.get(self.next).copied() {
            if candidate.position > wanted {
                return Ok(None);
            }
            self.next += 1;
            if candidate.position < wanted || candidate.epoch < self.tip.epoch || self.is_void(&candidate) {
                continue;
            }
            let (event, entry) = places.event(&candidate)?;
            if chain::link(&self.tip.hash, &event) != event.hash || !has_own_ids(&event) {
                continue;
            }
            self.tip = event.head();
            for (confirmed, restored) in self.confirmed.iter_mut().zip(self.restores) {
                let point = restored.heads[self.partition.index()];
                *confirmed |= point.position == self.tip.position && point.hash == self.tip.hash;
            }
            return Ok(Some((candidate, event, entry)));
        }
        Ok(None)
    }

    /// A restore of this very history went on without it.
    fn is_void(&self, found: &Candidate) -> bool {
        let mut restores = self.restores.iter().zip(&self.confirmed);
        restores.any(|(restored, confirmed)| *confirmed && restored.voids(self.partition, found.epoch, found.position))
    }
}

/// Whether the ids follow from the event. The hash says only that nobody changed it.
fn has_own_ids(event: &Event) -> bool {
    event.account.is_consistent()
        && event.transaction_id == TransactionId::derive(&event.account, event.epoch, event.position, &event.key)
}

/// What became of a partition's candidates once the ends are known.
fn sum_up(
    partition: Partition,
    base: Head,
    end: Position,
    accepted: &Files,
    places: &Places,
    voids: &dyn Fn(&Candidate) -> bool,
    refused: &mut Refusals,
) -> Result<PartitionTail, Failure> {
    let mut sum = PartitionTail {
        base: base.position,
        end: base,
        from_stream: 0,
        from_database: 0,
        only_in_database: 0,
        only_in_database_to: Position::ZERO,
    };
    let mut taken: HashMap<Position, Hash> = HashMap::new();
    for read in accepted.read(partition)? {
        let (candidate, event) = read?;
        if event.position > end {
            break;
        }
        match candidate.source {
            Source::Stream => sum.from_stream += 1,
            Source::Database => sum.from_database += 1,
        }
        sum.end = event.head();
        taken.insert(event.position, event.hash);
    }
    let mut counted: HashMap<Position, ()> = HashMap::new();
    for candidate in &places.candidates {
        let is_taken = taken.get(&candidate.position) == Some(&candidate.hash);
        if is_taken || voids(candidate) || candidate.position <= base.position {
            continue;
        }
        if candidate.source == Source::Database && counted.insert(candidate.position, ()).is_none() {
            sum.only_in_database += 1;
            sum.only_in_database_to = sum.only_in_database_to.max(candidate.position);
        }
        let why = if candidate.position <= end {
            "does not follow the event before it: its hash is not the one of its content"
        } else if candidate.position == end.next() {
            "does not follow the newest event that is whole and proved"
        } else {
            "stands after a position that is missing or not proved"
        };
        refused.push(|| {
            json!({ "source": candidate.source.name(), "partition": partition, "epoch": candidate.epoch,
                "position": candidate.position, "why": why })
        });
    }
    Ok(sum)
}

/// The members of batches, grouped so that one group is in memory at a time.
struct MemberFiles {
    folder: PathBuf,
    files: Vec<Option<BufWriter<File>>>,
}

const MEMBER_BYTES: usize = 16 + 4 + 4 + 1 + 8;

impl MemberFiles {
    fn create(folder: &Path) -> Result<Self, Failure> {
        let files = Self { folder: folder.to_owned(), files: (0..GROUPS).map(|_| None).collect() };
        files.remove();
        Ok(files)
    }

    fn path(&self, group: usize) -> PathBuf {
        self.folder.join(format!("members-{group:02}"))
    }

    fn push(&mut self, member: &Member) -> Result<(), Failure> {
        let path = self.path(member.group());
        let slot = &mut self.files[member.group()];
        let file = match slot {
            Some(file) => file,
            None => slot.insert(BufWriter::new(File::create(&path).map_err(|error| failed(&path, &error))?)),
        };
        let mut bytes = [0; MEMBER_BYTES];
        bytes[..16].copy_from_slice(member.id.as_bytes());
        bytes[16..20].copy_from_slice(&member.size.to_be_bytes());
        bytes[20..24].copy_from_slice(&member.index.to_be_bytes());
        bytes[24] = member.partition.number();
        bytes[25..].copy_from_slice(&member.position.0.to_be_bytes());
        file.write_all(&bytes).map_err(|error| failed(&path, &error))
    }

    fn finish(mut self) -> Result<Self, Failure> {
        for file in self.files.iter_mut().filter_map(Option::take) {
            file.into_inner().map_err(|error| failed(&self.folder, error.error()))?;
        }
        Ok(self)
    }

    fn read(&self, group: usize) -> Result<Vec<Member>, Failure> {
        let path = self.path(group);
        let mut file = match File::open(&path) {
            Ok(file) => BufReader::new(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&path, &error)),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|error| failed(&path, &error))?;
        let word = |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        let small = |bytes: &[u8]| u32::try_from(word(bytes)).unwrap_or(u32::MAX);
        let member = |bytes: &[u8]| {
            let partition =
                Partition::new(bytes[24]).ok_or_else(|| Failure::new(format!("{} was changed", path.display())))?;
            Ok(Member {
                id: Uuid::from_slice(&bytes[..16]).unwrap_or_default(),
                size: small(&bytes[16..20]),
                index: small(&bytes[20..24]),
                partition,
                position: Position(word(&bytes[25..])),
            })
        };
        bytes.chunks_exact(MEMBER_BYTES).map(member).collect()
    }

    fn remove(&self) {
        for group in 0..GROUPS {
            // Not there is what is wanted.
            let _ = std::fs::remove_file(self.path(group));
        }
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}; free some space or give another folder with --report", path.display()))
}
