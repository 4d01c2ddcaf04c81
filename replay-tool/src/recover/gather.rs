//! Everything that is known beyond the archive, and what is to be restored of it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use ledger_core::{Epoch, Event, Hash, Head, PARTITIONS, Partition, Position, json::LogEntry};
use ledger_store::Database;
use projector::publisher::restored::{self, Restored};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::{
    base::Base,
    candidates::{Source, Writers},
    examine::Examined,
    loss::{self, Loss, OWN_HEADS, Witness},
    readable::Readable,
    steps::Record,
    stream,
    tail::{Refusals, Tail},
};
use crate::{anchor::Anchor, archive::next_epoch, context::Failure};

/// Partitions that are named where a person must decide.
const NAMED_MAX: usize = 5;

/// What was gathered.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) base: Arc<Base>,
    pub(super) tail: Arc<Tail>,
    pub(super) loss: Loss,
    pub(super) stream: Option<stream::Read>,
    /// The epoch in which the ledger is to go on.
    pub(super) epoch: Epoch,
    database: Compared,
}

/// How the database's events compare with the archive's.
#[derive(Debug, Default, Clone)]
struct Compared {
    agree: usize,
    differ: usize,
    newest_epoch: Option<Epoch>,
    restores: Vec<Restored>,
    /// Where the database could not be read, and why: the first place of each partition that has such.
    unreadable: Vec<(Partition, Position, String)>,
    /// The partitions in which fewer events were met by the primary key than the heads promise.
    unnamed: Vec<Partition>,
}

/// Reads the stream and the database beyond the archive, and judges what they hold.
pub(super) async fn gather(
    base: Base,
    nats_url: Option<&str>,
    anchor: Option<&Anchor>,
    examined: &Examined,
    record: &Record,
) -> Result<Gathered, Failure> {
    let mut candidates = Writers::create(&record.work(), "found")?;
    let mut refused = Refusals::default();
    let stream = match nats_url {
        Some(url) => Some(stream::read(url, &base, &mut candidates, &mut refused).await?),
        None => None,
    };
    if let Some(stream) = &stream
        && stream.differ > 0
        && stream.agree == 0
    {
        return Err(Failure::new(
            "the stream holds other events than the archive: one of them is of another ledger; give the archive and the \
             stream of the same one, or leave --nats-url out",
        ));
    }
    let mut compared = Compared::default();
    if let Some(database) = &examined.database {
        compared = read_database(database, &base, stream.as_ref(), examined.heads.as_ref(), &mut candidates).await?;
        if let Some(heads) = examined.heads {
            compare_shorter(&base, heads, &mut compared).await?;
        }
    }
    let mut restores = compared.restores.clone();
    restores.extend(stream.iter().flat_map(|stream| stream.restores.iter().cloned()));
    restores.sort_by_key(|restored| restored.epoch);
    restores.dedup_by(|a, b| a.epoch == b.epoch);
    let candidates = candidates.finish()?;
    let base = Arc::new(base);
    let witnesses = witnesses(anchor, stream.as_ref(), examined);
    let cannot_know = cannot_know(anchor, stream.as_ref(), examined, &base);
    let (judged, known, folder) = (base.clone(), restores.clone(), record.work());
    let (tail, loss) = spawn_blocking(move || {
        let tail = Tail::build(&judged, &candidates, &known, &folder, refused)?;
        let hashes = hashes_at(&judged, &tail, &witnesses)?;
        let loss =
            loss::loss(&tail, |partition, at| hashes.get(&(partition, at)).copied(), &witnesses, &known, cannot_know);
        Ok::<_, Failure>((tail, loss))
    })
    .await
    .unwrap_or_else(|_| Err(Failure::new("the events could not be judged: the task ended early")))?;
    let newest = [
        Some(base.manifest().epoch),
        stream.as_ref().map(|stream| stream.newest_epoch),
        compared.newest_epoch,
        restores.last().map(|restored| restored.epoch),
    ];
    let epoch = next_epoch(newest.into_iter().flatten().max().unwrap_or(Epoch::FIRST));
    Ok(Gathered { base, tail: Arc::new(tail), loss, stream, epoch, database: compared })
}

impl Gathered {
    /// Whether the database holds all of it already.
    pub(super) fn is_in(&self, heads: &[Head; PARTITIONS]) -> bool {
        let same = |(a, b): (&Head, &Head)| a.position == b.position && a.hash == b.hash;
        self.tail.heads().iter().zip(heads).all(same)
    }

    /// What a person must decide before anything is done; nothing when all is clear.
    pub(super) fn decision(&self, examined: &Examined, replace: bool) -> Option<String> {
        if replace {
            return None;
        }
        // Where the database's own head is what is restored, nothing that stands beside it ever was an event.
        let ends_alike = |partition: Partition| {
            let end = self.tail.partitions[partition.index()].end;
            examined.heads.is_some_and(|heads| {
                let head = heads[partition.index()];
                head.position == end.position && head.hash == end.hash
            })
        };
        let lacking = || {
            let all = Partition::all().zip(&self.tail.partitions);
            all.filter(|(partition, tail)| tail.only_in_database > 0 && !ends_alike(*partition))
        };
        let places = || lacking().map(|(partition, tail)| (partition, tail.only_in_database_to));
        let unnamed = self.unnamed(examined, places());
        if !unnamed.is_empty() {
            return Some(of_the_key(&unnamed));
        }
        if self.database.differ > 0 && self.database.agree == 0 {
            return Some(
                "the database holds other events than the archive: it is another ledger, or was changed from end to end; \
                 give this ledger's archive, or --replace to put the archive's events in its place (what is there is kept)"
                    .to_owned(),
            );
        }
        let unreadable: Vec<_> =
            self.database.unreadable.iter().filter(|(partition, ..)| !ends_alike(*partition)).collect();
        if let Some((partition, position, why)) = unreadable.first() {
            return Some(format!(
                "the database cannot be read in {} of the partitions, the first time in partition {partition} at position {position} \
                 ({why}), and neither the archive nor the stream is known to hold all that stands there: give a newer archive, or \
                 --nats-url, or --replace to go on with what could be read (what is there is kept)",
                unreadable.len()
            ));
        }
        if examined.log_is_sound {
            // Where its own head is not on the chain that is restored, acknowledged commands would leave the ledger.
            let told = self.loss.contradictions.iter().filter(|told| told.told_by == OWN_HEADS);
            let aside: BTreeMap<_, _> = places().chain(told.map(|told| (told.partition, told.position))).collect();
            return (!aside.is_empty()).then(|| self.of_two_histories(&aside));
        }
        let only: u64 = lacking().map(|(_, tail)| tail.only_in_database).sum();
        (only > 0).then(|| {
            format!(
                "the database holds {only} events that neither the archive nor the stream has and that nothing connects with \
                 them any more ({}): give a newer archive, or --nats-url, or --replace to go on without them (what is there \
                 is kept)",
                named(places())
            )
        })
    }

    /// Where the table may hold events that its primary key does not name, and up to which position: here they are read by that
    /// key. `only_there` is what the database has that nothing connects with what is restored.
    fn unnamed(
        &self,
        examined: &Examined,
        only_there: impl Iterator<Item = (Partition, Position)>,
    ) -> BTreeMap<Partition, Position> {
        let promised = self.loss.promised.iter().copied();
        if examined.key_differs {
            return only_there.chain(promised).collect();
        }
        // A partition in which nothing is wrong was read as it lies: what the key does not give of it is there.
        let is_sound =
            |partition: &Partition| examined.damaged.as_ref().is_some_and(|damaged| !damaged.contains(partition));
        promised.filter(|(partition, _)| is_sound(partition) && self.database.unnamed.contains(partition)).collect()
    }

    /// What a person must decide where a sound log holds something else up to these positions than is restored.
    fn of_two_histories(&self, aside: &BTreeMap<Partition, Position>) -> String {
        // What contradicts the archive does so with the stream and without it.
        let (other, keep) = if self.stream.is_some() && self.database.differ == 0 {
            ("stream", "leave --nats-url out to keep the database")
        } else {
            ("archive", "give an archive of the database as it is now (`export`) to keep it")
        };
        format!(
            "the log of the database is sound and contradicts the {other} in {} of the partitions ({}): it went on from before \
             the end of the {other}; decide which of the two happened: {keep}, or give --replace to restore what the {other} \
             tells (what is there is kept)",
            aside.len(),
            named(aside.iter().map(|(partition, position)| (*partition, *position)))
        )
    }

    /// The events of a partition, as they are to be restored.
    pub(super) fn events(&self, partition: Partition) -> Box<dyn Iterator<Item = Result<Event, Failure>> + Send> {
        let archived = self.base.events(partition, self.tail.partitions[partition.index()].base);
        match self.tail.events(partition) {
            Ok(tail) => Box::new(archived.chain(tail)),
            Err(failure) => Box::new(archived.chain(std::iter::once(Err(failure)))),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let sum = |of: fn(&super::tail::PartitionTail) -> u64| -> u64 { self.tail.partitions.iter().map(of).sum() };
        let archived = sum(|tail| tail.base.0);
        let stream = self.stream.as_ref().map(|stream| {
            json!({ "messages": stream.messages, "first_sequence": stream.first_sequence,
                "last_sequence": stream.last_sequence, "restores": stream.restores.len() })
        });
        json!({
            "events": sum(|tail| tail.end.position.0),
            "from_archive": archived,
            "void_in_archive": self.base.events_count() - archived,
            "from_stream": sum(|tail| tail.from_stream),
            "from_database": sum(|tail| tail.from_database),
            "only_in_database": sum(|tail| tail.only_in_database),
            "stream": stream,
            "batches_cut": { "count": self.tail.cut.count, "named": self.tail.cut.batches },
            "refused": { "count": self.tail.refused.count, "named": self.tail.refused.named },
        })
    }
}

/// Keeps every event that the database holds beyond the archive, and compares it with the archive where both have one.
async fn read_database(
    database: &Database,
    base: &Base,
    stream: Option<&stream::Read>,
    heads: Option<&[Head; PARTITIONS]>,
    candidates: &mut Writers,
) -> Result<Compared, Failure> {
    // What cannot be read is damage, and is counted as such elsewhere.
    let restores = match restored::read_all(database).await {
        Err(error) if !error.is_damage() => return Err(error.into()),
        restores => restores.unwrap_or_default(),
    };
    let mut compared = Compared { restores, ..Compared::default() };
    let points = || compared.restores.iter().chain(stream.iter().flat_map(|stream| stream.restores.iter()));
    let mut from = base.heads.map(|head| head.position);
    for restored in points() {
        for (from, (point, head)) in from.iter_mut().zip(restored.heads.iter().zip(&base.heads)) {
            if restored.epoch > head.epoch {
                *from = (*from).min(point.position);
            }
        }
    }
    for partition in Partition::all() {
        let (head, from) = (base.heads[partition.index()], from[partition.index()]);
        // One before, to compare it with the archive's newest.
        let after = Position(from.0.saturating_sub(1));
        let mut readable = Readable::after(database, partition, after);
        let (promised, mut met) = (heads.map_or(Position::ZERO, |heads| heads[partition.index()].position), 0);
        loop {
            let events = readable.next().await?;
            if events.is_empty() {
                break;
            }
            for event in events {
                if event.position == head.position && event.epoch <= head.epoch {
                    if event.hash == head.hash { compared.agree += 1 } else { compared.differ += 1 }
                }
                compared.newest_epoch = compared.newest_epoch.max(Some(event.epoch));
                met += u64::from(event.position <= promised);
                if event.position > head.position || event.epoch > head.epoch {
                    let entry = serde_json::to_vec(&LogEntry(&event))
                        .map_err(|error| Failure::new(format!("an event cannot be written as JSON: {error}")))?;
                    candidates.push(Source::Database, &event, &entry)?;
                }
            }
        }
        compared.unreadable.extend(readable.failed.map(|(position, why)| (partition, position, why)));
        if met < promised.0.saturating_sub(after.0) {
            compared.unnamed.push(partition);
        }
    }
    Ok(compared)
}

/// Compares the database's heads with the archive where the archive goes further.
async fn compare_shorter(base: &Base, heads: [Head; PARTITIONS], compared: &mut Compared) -> Result<(), Failure> {
    let archive = base.clone();
    let same = spawn_blocking(move || {
        let mut same = Vec::new();
        for partition in Partition::all() {
            let (archived, head) = (archive.heads[partition.index()], heads[partition.index()]);
            if Position::ZERO < head.position && head.position < archived.position && head.epoch <= archived.epoch {
                same.push(archive.hash_at(partition, head.position)? == Some(head.hash));
            }
        }
        Ok::<_, Failure>(same)
    })
    .await
    .unwrap_or_else(|_| Err(Failure::new("the archive could not be read: the task ended early")))?;
    compared.agree += same.iter().filter(|same| **same).count();
    compared.differ += same.iter().filter(|same| !**same).count();
    Ok(())
}

fn witnesses(anchor: Option<&Anchor>, stream: Option<&stream::Read>, examined: &Examined) -> Vec<Witness> {
    let mut witnesses: Vec<Witness> = anchor.map(Witness::of_anchor).into_iter().collect();
    if let Some(stream) = stream {
        witnesses.push(Witness { name: "the stream".to_owned(), heads: stream.newest });
    }
    if let Some(heads) = examined.heads {
        witnesses.push(Witness { name: OWN_HEADS.to_owned(), heads: heads.map(Some) });
    }
    witnesses
}

/// What a person must do first where the table may hold events up to these positions that its primary key does not name.
fn of_the_key(unnamed: &BTreeMap<Partition, Position>) -> String {
    format!(
        "the table of the events may hold some that its primary key does not name ({}), and that would not be restored: stop \
         the service, make the index anew (PostgreSQL: reindex table events; SQLite: reindex events) and run this again, or give \
         --replace to go on without them (what is there is kept)",
        named(unnamed.iter().map(|(partition, position)| (*partition, *position)))
    )
}

/// The first of some places, in words.
fn named(places: impl Iterator<Item = (Partition, Position)>) -> String {
    let places = places.take(NAMED_MAX);
    let named: Vec<_> =
        places.map(|(partition, position)| format!("partition {partition} up to position {position}")).collect();
    named.join(", ")
}

/// What is left open, in a sentence.
fn cannot_know(
    anchor: Option<&Anchor>,
    stream: Option<&stream::Read>,
    examined: &Examined,
    base: &Base,
) -> Option<String> {
    if examined.heads.is_some() {
        return None;
    }
    let archived = base.manifest().created_at;
    Some(match (stream, anchor) {
        (Some(_), Some(_)) => {
            "what was committed after the last event that was published and after the anchor was kept \
            cannot be known"
                .to_owned()
        }
        (Some(_), None) => {
            "what was committed and not published yet when the database was lost cannot be known: nothing \
            but the database held it. Where the publisher's lag read 0, there was nothing of that kind"
                .to_owned()
        }
        (None, Some(_)) => "what was committed after the anchor was kept cannot be known".to_owned(),
        (None, None) => format!(
            "neither a stream nor an anchor nor the database's own heads tell how far the log had come: whether anything \
             was recorded after the archive of {archived}, and how much of it is lost, cannot be known"
        ),
    })
}

/// The hashes at the places that witnesses speak of, as far as they are restored.
fn hashes_at(base: &Base, tail: &Tail, witnesses: &[Witness]) -> Result<HashMap<(Partition, Position), Hash>, Failure> {
    let mut hashes = HashMap::new();
    for partition in Partition::all() {
        let end = tail.partitions[partition.index()].end;
        let from = tail.partitions[partition.index()].base;
        let mut wanted: Vec<Position> = witnesses
            .iter()
            .filter_map(|witness| witness.heads[partition.index()])
            .map(|head| head.position)
            .filter(|position| *position <= end.position)
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        for position in wanted.iter().copied().filter(|position| *position <= from) {
            if let Some(hash) = base.hash_at(partition, position)? {
                hashes.insert((partition, position), hash);
            }
        }
        if wanted.last().is_some_and(|last| *last > from) {
            for event in tail.events(partition)? {
                let event = event?;
                if wanted.binary_search(&event.position).is_ok() {
                    hashes.insert((partition, event.position), event.hash);
                }
            }
        }
    }
    Ok(hashes)
}
