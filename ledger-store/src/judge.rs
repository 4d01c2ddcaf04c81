//! Decides requests on top of what is known, into a batch.

use std::sync::Arc;

use foldhash::HashSet;

use ledger_core::{
    Account, Action, BatchMark, Command, Event, OriginalKind, Partition, Position, Rejection, Situation, Slot,
    Timestamp, TransactionId, decide, operation, repeats,
};
use uuid::Uuid;

use crate::{
    StoreError,
    batch::{Answer, Ask, Batch, Compensate, Draft, Newest, Partitions, Request},
    ledger::{CommandError, Recorded, Unavailable},
    lookup::{Fetched, Known, Layers},
    operations::{Compensated, Compensation},
    refusals::Refused,
    tail::Tail,
};

/// What every decision of a round shares.
pub(crate) struct Round<'a> {
    pub(crate) tail: &'a Tail,
    /// The batch that is being committed meanwhile.
    pub(crate) in_flight: Option<&'a Draft>,
    pub(crate) fetched: &'a Fetched,
    /// The clock's time; a partition whose newest event is younger keeps that one's.
    pub(crate) now: Timestamp,
}

impl Round<'_> {
    fn known<'b>(&'b self, trial: Option<&'b Draft>, building: &'b Draft) -> Known<'b> {
        let layers = Layers { drafts: [trial, Some(building), self.in_flight], tail: self.tail };
        Known { layers, fetched: self.fetched }
    }

    /// Decides a request and puts it and its answer into the batch.
    pub(crate) fn judge(&self, batch: &mut Batch, request: Request) {
        let answer = self.answer(&mut batch.draft, &request.ask);
        let answer = answer.unwrap_or_else(|error| Answer::Unavailable(met_damage(&error)));
        batch.weight += request.weight();
        batch.answers.push((request, answer));
    }

    fn answer(&self, draft: &mut Draft, ask: &Ask) -> Result<Answer, StoreError> {
        Ok(match ask {
            Ask::One(command) => Answer::One(self.judge_one(draft, None, command, None)?),
            Ask::Each(commands) => {
                Answer::Each(commands.iter().map(|command| self.judge_alone(draft, command)).collect())
            }
            Ask::Atomic(commands) => Answer::Atomic(self.judge_atomic(draft, commands)?),
            Ask::Compensate(compensate) => Answer::Compensated(self.judge_compensate(draft, compensate)?),
            Ask::Newest(account) => {
                draft.judged.insert(account.partition());
                let layers = self.known(None, draft).layers;
                Answer::Newest(self.known(None, draft).account(*account)?.map(|standing| Newest {
                    position: standing.position,
                    version: standing.state.version,
                    anchors: layers.anchors(*account),
                }))
            }
            Ask::Key(hash) => {
                draft.judged.insert(hash.partition);
                Answer::Places(self.known(None, draft).key_places(*hash)?)
            }
            Ask::Business(business, limit) => {
                draft.judged.insert_all(Partitions::ALL);
                Answer::Places(self.known(None, draft).layers.business_places(*business).take(*limit).collect())
            }
            Ask::Operation(hash) => {
                draft.judged.insert_all(Partitions::ALL);
                let places = self.known(None, draft).layers.operation_places(*hash).collect();
                Answer::Operation(places, Box::new(draft.heads.map(|head| head.position)))
            }
        })
    }

    /// One of several commands that have nothing to do with each other: damage that it meets fails it alone.
    fn judge_alone(&self, draft: &mut Draft, command: &Command) -> Result<Recorded, CommandError> {
        let outcome = self.judge_one(draft, None, command, None).map_err(|error| met_damage(&error))?;
        Ok(outcome?)
    }

    /// All of the commands, or none.
    fn judge_atomic(
        &self,
        building: &mut Draft,
        commands: &[Command],
    ) -> Result<Result<Vec<Recorded>, (usize, Rejection)>, StoreError> {
        let mut trial = Draft::on(building.heads, building.recorded_at);
        // The mark says how many events the batch makes, so what is a repeat is found out first.
        let mut mark = self.fresh_commands(building, commands)?;
        let mut recorded = Vec::with_capacity(commands.len());
        for (index, command) in commands.iter().enumerate() {
            match self.judge_one(&mut trial, Some(building), command, mark.as_mut())? {
                Ok(done) => recorded.push(done),
                Err(rejection) => {
                    building.judged.insert_all(trial.judged);
                    building.refusals.append(&mut trial.refusals);
                    let others = commands.iter().enumerate().filter(|(other, _)| *other != index);
                    building.refusals.extend(others.map(|(_, other)| Refused::with_batch(other, index, self.now)));
                    return Ok(Err((index, rejection)));
                }
            }
        }
        building.absorb(trial);
        Ok(Ok(recorded))
    }

    /// Everything that reverses an operation, or nothing.
    fn judge_compensate(&self, building: &mut Draft, compensate: &Compensate) -> Result<Compensated, StoreError> {
        // Whatever is answered: an event of the operation might have been recorded in any partition.
        building.judged.insert_all(Partitions::ALL);
        let known = self.known(None, building);
        let operation = compensate.compensation.operation_id;
        if known.is_compensated(operation) {
            return Ok(Compensated::Before);
        }
        // What was recorded after the caller read is in these layers, unless they reach back less far than that.
        let reaches = Partition::all()
            .all(|partition| self.tail.indexed[partition.index()].position <= compensate.seen[partition.index()]);
        let hash = operation::hash(operation);
        let newer = |(partition, position): (Partition, Position)| position > compensate.seen[partition.index()];
        if !reaches || known.layers.operation_places(hash).any(newer) {
            return Ok(Compensated::ReadAgain);
        }
        let mut open = Vec::with_capacity(compensate.reversals.len());
        for (index, reversal) in compensate.reversals.iter().enumerate() {
            let is_settled = known.original(reversal)?.is_some_and(|original| original.remaining == 0);
            if !is_settled {
                open.push((index, reversal));
            }
        }
        let size = u32::try_from(open.len()).expect("an operation's events are counted before they are reversed");
        let mut mark = (size > 1).then_some(BatchMark { id: Uuid::nil(), size, index: 0 });
        let mut trial = Draft::on(building.heads, building.recorded_at);
        let mut recorded = Vec::with_capacity(open.len());
        let mut refused = Vec::new();
        for (index, reversal) in open {
            match self.judge_one(&mut trial, Some(building), reversal, mark.as_mut())? {
                Ok(done) => recorded.push(done.event),
                // The others are judged all the same: whoever asked wants to hear of each that is in the way.
                Err(rejection) => refused.push((index, rejection)),
            }
        }
        if !refused.is_empty() {
            return Ok(Compensated::Refused(refused));
        }
        trial.compensations.push(Compensation { reversals: size, ..compensate.compensation.clone() });
        building.absorb(trial);
        Ok(Compensated::Now(recorded))
    }

    /// The mark of a batch that makes more than one event. Its id is known with its first event.
    fn fresh_commands(&self, building: &Draft, commands: &[Command]) -> Result<Option<BatchMark>, StoreError> {
        let known = self.known(None, building);
        let mut seen: HashSet<_> = HashSet::default();
        for command in commands {
            if let Some(account) = owner(known, command)?
                && known.bound(&account, &command.key)?.is_none()
            {
                seen.insert((account.id(), command.key.clone()));
            }
        }
        let size = u32::try_from(seen.len()).expect("a batch has at most some ten thousand commands");
        Ok((size > 1).then_some(BatchMark { id: Uuid::nil(), size, index: 0 }))
    }

    /// One command, into `draft`, which may lie on top of another one.
    fn judge_one(
        &self,
        draft: &mut Draft,
        below: Option<&Draft>,
        command: &Command,
        mark: Option<&mut BatchMark>,
    ) -> Result<Result<Recorded, Rejection>, StoreError> {
        let known = match below {
            Some(below) => self.known(Some(draft), below),
            None => self.known(None, draft),
        };
        // Whatever is answered, it was judged by the heads of these partitions.
        let mut judged = Partitions::default();
        if let Some(original) = command.action.original() {
            judged.insert(original.locate().0);
        }
        let owner = owner(known, command)?;
        let outcome = match &owner {
            None => Err(not_found(&command.action)),
            Some(account) => {
                judged.insert(account.partition());
                self.judge_known(known, draft, account, command, mark)?
            }
        };
        draft.judged.insert_all(judged);
        if let Err(rejection) = &outcome {
            draft.refusals.push(Refused::of(command, owner.as_ref(), rejection, self.now));
        }
        Ok(outcome.map(|(event, replayed)| {
            if !replayed {
                draft.add(event.clone());
            }
            Recorded { event, replayed }
        }))
    }

    fn judge_known(
        &self,
        known: Known<'_>,
        draft: &Draft,
        account: &Account,
        command: &Command,
        mark: Option<&mut BatchMark>,
    ) -> Result<Result<(Arc<Event>, bool), Rejection>, StoreError> {
        if let Some(first) = known.bound(account, &command.key)? {
            return Ok(repeats(first, command).map(|()| (first.clone(), true)));
        }
        if let Some(operation_id) = command.provenance.operation_id
            && known.is_compensated(operation_id)
        {
            return Ok(Err(Rejection::OperationCompensated { operation_id }));
        }
        let original = known.original(command)?;
        if let Some(original) = original
            && original.kind == wanted_kind(&command.action)
            && let Some(field) = command.action.named().and_then(|named| named.disagreement(account))
        {
            return Ok(Err(Rejection::AccountMismatch { field }));
        }
        let standing = known.account(account.id())?;
        if standing.and_then(|standing| standing.account).is_some_and(|known| known != account) {
            return Err(StoreError::Inconsistent(format!(
                "account {}: the log holds another account under this id: run replay-tool verify",
                account.id()
            )));
        }
        if let (Some(standing), Some(original)) = (standing, original)
            && original.kind == OriginalKind::Freeze
            && original.remaining > standing.state.frozen
        {
            return Err(StoreError::Inconsistent(format!(
                "freeze {}: {} remain of it, but the account holds only {}: run replay-tool verify",
                original.transaction_id, original.remaining, standing.state.frozen
            )));
        }
        // The texts that are in memory already, or each event would keep its own copy of its account's name there.
        let account = standing.and_then(|standing| standing.account).unwrap_or(account);
        let partition = account.partition();
        let now = self.now.max(draft.recorded_at[partition.index()]);
        let situation = Situation { account: standing.as_ref().map(|standing| &standing.state), original };
        let effect = match decide(&situation, command, now) {
            Ok(effect) => effect,
            Err(rejection) => return Ok(Err(rejection)),
        };
        let slot = Slot {
            partition,
            head: draft.heads[partition.index()],
            previous_position: standing.map(|standing| standing.position).unwrap_or_default(),
        };
        let batch = mark.map(|mark| {
            if mark.index == 0 {
                let id = TransactionId::derive(account, slot.head.epoch, slot.head.position.next(), &command.key);
                mark.id = id.uuid();
            }
            let this = *mark;
            mark.index += 1;
            this
        });
        Ok(Ok((Arc::new(Event::seal(account, command, &effect, &slot, batch, now)), false)))
    }
}

/// What is answered where damage was met: only what touches it is refused, and nothing is decided on it.
fn met_damage(error: &StoreError) -> Unavailable {
    tracing::error!(%error, "a request met a damaged part of the database");
    Unavailable::Damaged
}

/// The account that a command is about: the one it names, or its original's.
fn owner(known: Known<'_>, command: &Command) -> Result<Option<Account>, StoreError> {
    if let Some(account) = command.action.account() {
        return Ok(Some(account.clone()));
    }
    let Some(original) = known.original(command)? else { return Ok(None) };
    // An original's account has at least the event that made the original, which was read where it is not in memory.
    let account = known.account(original.account_id)?.and_then(|standing| standing.account);
    account.cloned().map(Some).ok_or_else(|| {
        StoreError::Inconsistent(format!(
            "transaction {}: the account that it is about is not in the log: run replay-tool verify",
            original.transaction_id
        ))
    })
}

/// The refusal of a command whose original is not there.
fn not_found(action: &Action) -> Rejection {
    match *action {
        Action::Capture { freeze, .. } | Action::Unfreeze { freeze, .. } => {
            Rejection::FreezeNotFound { freeze_id: freeze }
        }
        Action::Refund { debit, .. } => Rejection::DebitNotFound { debit_id: debit },
        _ => Rejection::AccountNotFound,
    }
}

const fn wanted_kind(action: &Action) -> OriginalKind {
    match action {
        Action::Refund { .. } => OriginalKind::Deduction,
        _ => OriginalKind::Freeze,
    }
}
