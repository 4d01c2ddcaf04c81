//! What was asked, what was decided, and what is not committed yet.

use std::sync::Arc;

use foldhash::HashMap;

use ledger_core::{AccountId, Command, Event, Head, PARTITIONS, Partition, Position, Rejection, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use uuid::Uuid;

use crate::{
    append::Append,
    feed::Begun,
    index::KeyHash,
    ledger::{CommandError, Recorded, Unavailable},
    operations::{Compensated, Compensation},
    refusals::Refused,
    tail::{Span, Tail},
};

/// What a caller asks the writer.
#[derive(Debug)]
pub(crate) enum Ask {
    One(Box<Command>),
    Atomic(Vec<Command>),
    Each(Vec<Command>),
    /// To reverse an operation.
    Compensate(Box<Compensate>),
    /// Where the newest event of an account is.
    Newest(AccountId),
    /// Where the events under a key's hash in an account are.
    Key(KeyHash),
    /// Where the events under a business key's hash in any account are that the indexes may not hold, at most so many.
    Business(u64, usize),
    /// Where the events under an operation's hash are that the indexes may not hold.
    Operation(u64),
}

/// What reverses an operation, and what it was made from.
#[derive(Debug)]
pub(crate) struct Compensate {
    pub(crate) compensation: Compensation,
    /// Each reverses one transaction of the operation.
    pub(crate) reversals: Vec<Command>,
    /// Up to where the operation's events were read: nothing may have been recorded under it since.
    pub(crate) seen: [Position; PARTITIONS],
}

/// What the writer answers, once all that the answer builds on is durable.
#[derive(Debug)]
pub(crate) enum Answer {
    One(Result<Recorded, Rejection>),
    Atomic(Result<Vec<Recorded>, (usize, Rejection)>),
    Each(Vec<Result<Recorded, CommandError>>),
    Newest(Option<Newest>),
    Places(Vec<(Partition, Position)>),
    Compensated(Compensated),
    /// Where an operation's events are, and the heads up to which that is all of them.
    Operation(Vec<(Partition, Position)>, Box<[Position; PARTITIONS]>),
    Unavailable(Unavailable),
}

/// Where an account stands, and the entries of its history that the indexes may not hold yet.
#[derive(Debug, Clone)]
pub(crate) struct Newest {
    pub(crate) position: Position,
    pub(crate) version: u64,
    /// (version, position), ascending.
    pub(crate) anchors: Vec<(u64, Position)>,
}

/// A question and where its answer goes. Nobody may be listening any more; it is answered all the same.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) ask: Ask,
    pub(crate) reply: oneshot::Sender<Answer>,
    /// Its share of the queue's bound, given back with the answer.
    pub(crate) permit: OwnedSemaphorePermit,
}

impl Request {
    pub(crate) fn answer(self, answer: Answer) {
        // The caller may be gone; what was done stays done.
        let _ = self.reply.send(answer);
        drop(self.permit);
    }

    /// How many commands it counts for.
    pub(crate) fn weight(&self) -> usize {
        match &self.ask {
            Ask::Atomic(commands) | Ask::Each(commands) => commands.len(),
            Ask::Compensate(compensate) => compensate.reversals.len().max(1),
            _ => 1,
        }
    }

    /// The commands in it.
    pub(crate) fn commands(&self) -> &[Command] {
        match &self.ask {
            Ask::One(command) => std::slice::from_ref(command),
            Ask::Atomic(commands) | Ask::Each(commands) => commands,
            Ask::Compensate(compensate) => &compensate.reversals,
            Ask::Newest(_) | Ask::Key(_) | Ask::Business(..) | Ask::Operation(_) => &[],
        }
    }

    /// The operations that its callers gave.
    pub(crate) fn operations(&self) -> impl Iterator<Item = Uuid> {
        let compensated = match &self.ask {
            Ask::Compensate(compensate) => Some(compensate.compensation.operation_id),
            _ => None,
        };
        self.commands().iter().filter_map(|command| command.provenance.operation_id).chain(compensated)
    }
}

/// A set of partitions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Partitions(u64);

impl Partitions {
    pub(crate) const fn insert(&mut self, partition: Partition) {
        self.0 |= 1 << partition.number();
    }

    pub(crate) const fn insert_all(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(crate) const fn contains(self, partition: Partition) -> bool {
        self.0 >> partition.number() & 1 == 1
    }

    pub(crate) const ALL: Self = Self(u64::MAX);
}

/// Events that are decided and not committed, on top of the heads that they follow.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) heads: [Head; PARTITIONS],
    pub(crate) recorded_at: [Timestamp; PARTITIONS],
    pub(crate) span: Span,
    pub(crate) events: Vec<Arc<Event>>,
    places: HashMap<(Partition, Position), usize>,
    /// The partitions whose heads any decision was based on.
    pub(crate) judged: Partitions,
    /// The operations that are reversed by it.
    pub(crate) compensations: Vec<Compensation>,
    /// What was refused, to be recorded once the batch is durable.
    pub(crate) refusals: Vec<Refused>,
}

impl Draft {
    /// Nothing yet, on top of these heads.
    pub(crate) fn on(heads: [Head; PARTITIONS], recorded_at: [Timestamp; PARTITIONS]) -> Self {
        Self {
            heads,
            recorded_at,
            span: Span::default(),
            events: Vec::new(),
            places: HashMap::default(),
            judged: Partitions::default(),
            compensations: Vec::new(),
            refusals: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, event: Arc<Event>) {
        let index = event.partition.index();
        self.heads[index] = event.head();
        self.recorded_at[index] = event.recorded_at;
        self.span.add(&event);
        self.places.insert((event.partition, event.position), self.events.len());
        self.events.push(event);
    }

    /// Takes in a draft that was made on top of this one.
    pub(crate) fn absorb(&mut self, newer: Self) {
        self.heads = newer.heads;
        self.recorded_at = newer.recorded_at;
        self.judged.insert_all(newer.judged);
        let offset = self.events.len();
        self.places.extend(newer.places.into_iter().map(|(place, index)| (place, index + offset)));
        self.events.extend(newer.events);
        self.span.absorb(newer.span);
        self.compensations.extend(newer.compensations);
        self.refusals.extend(newer.refusals);
    }

    /// Whether the operation is reversed in here.
    pub(crate) fn compensates(&self, operation: Uuid) -> bool {
        self.compensations.iter().any(|compensation| compensation.operation_id == operation)
    }

    pub(crate) fn event_at(&self, partition: Partition, position: Position) -> Option<&Arc<Event>> {
        self.places.get(&(partition, position)).map(|&index| &self.events[index])
    }
}

/// One commit in the making: a draft, and the answers that wait for it.
#[derive(Debug)]
pub(crate) struct Batch {
    before: [Head; PARTITIONS],
    pub(crate) draft: Draft,
    pub(crate) answers: Vec<(Request, Answer)>,
    /// How many commands it holds.
    pub(crate) weight: usize,
    /// From when its commit begins until its end is known.
    pub(crate) begun: Option<Begun>,
}

impl Batch {
    pub(crate) fn on(draft: &Draft) -> Self {
        Self::on_heads(draft.heads, draft.recorded_at)
    }

    pub(crate) fn on_tail(tail: &Tail) -> Self {
        Self::on_heads(tail.heads, tail.recorded_at)
    }

    fn on_heads(heads: [Head; PARTITIONS], recorded_at: [Timestamp; PARTITIONS]) -> Self {
        Self { before: heads, draft: Draft::on(heads, recorded_at), answers: Vec::new(), weight: 0, begun: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// What the commit writes and compares.
    pub(crate) fn append(&self) -> Append {
        let (events, compensations) = (self.draft.events.clone(), self.draft.compensations.clone());
        let mut append = Append { events, compensations, ..Append::default() };
        append.note_operations();
        for partition in Partition::all() {
            let (before, after) = (self.before[partition.index()], self.draft.heads[partition.index()]);
            if before != after {
                append.advances.push((partition, before, after));
            } else if self.draft.judged.contains(partition) {
                append.judged.push((partition, before));
            }
        }
        append
    }

    /// Gives back the requests, to be decided again.
    pub(crate) fn into_requests(self) -> impl Iterator<Item = Request> {
        self.answers.into_iter().map(|(request, _)| request)
    }
}
