//! The replay of one partition among all: it says whether everything agrees, and names nothing that does not.

use std::collections::BTreeMap;

use foldhash::HashMap;
use ledger_core::{
    AccountId, AccountState, Amount, BareEvent, Epoch, EventType, Freeze, Hash, Head, Partition, Position, Timestamp,
    balance, digest::PartitionDigest, operation,
};
use ledger_store::{
    index_rows::{HISTORY_STRIDE, KeyRow, KeySum, key_run},
    sweep::Chunk,
};

use super::{
    beside::{FreezesDigest, IndexSums, Waiting},
    check::{Checked, Checker, link},
    deductions::Deductions,
    tables::{AccountNumber, Accounts, Freezes, Frozen, Segments},
};
use crate::verify::{
    batches::Sums,
    compensations,
    indexes::Sum,
    log::{Depth, key_digest_of},
};

/// Rows that lie before an earlier one, and wait for it: what a sweep meets where room was used again.
const EARLY_ROWS_MAX: usize = 4_096;
/// 48 bits of the digest of a key: in a partition of a million events two are equal by chance once in six hundred runs, and
/// then the partition is looked at again.
const KEY_BYTES: usize = 6;

/// What is known of the account of a row before its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Foreseen {
    Nothing,
    Account(AccountNumber),
    /// And that it is called as the row says.
    Called(AccountNumber),
}

/// Why a partition is looked at again.
#[derive(Debug)]
pub(super) enum Doubt {
    /// Something of it does not agree, or there is no room for it here.
    Other,
    /// The row at this position is none, or was there before: if it is sound by its key, the key and the table disagree.
    Row(Position),
}

type Agrees = Result<(), Doubt>;

/// What is known of a partition up to a position.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) partition: Partition,
    depth: Depth,
    /// The last position that is looked at.
    pub(super) end: Position,
    position: Position,
    hash: Hash,
    /// The first position of each epoch but the first.
    pub(super) epochs: Vec<(Position, Epoch)>,
    epoch: Epoch,
    recorded_at: Option<Timestamp>,
    pub(super) waiting: Waiting,
    /// Of the balances, where they were compared last.
    digest: Option<(Position, Hash)>,
    accounts: Accounts,
    deductions: Deductions,
    freezes: Freezes,
    keys: Segments<[u8; KEY_BYTES]>,
    pub(super) batches: Sums,
    pub(super) compensations: compensations::Sums,
    newest_about: HashMap<u32, u32>,
    history: Sum,
    runs: Vec<KeySum>,
    early: BTreeMap<Position, Vec<u8>>,
    buffer: Vec<u8>,
}

impl Replay {
    pub(super) fn new(partition: Partition, depth: Depth, end: Position, waiting: Waiting) -> Result<Self, Doubt> {
        // Positions are kept in 32 bits.
        if end.0 >= u64::from(u32::MAX) {
            return Err(Doubt::Other);
        }
        let mut replay = Self {
            partition,
            depth,
            end,
            position: Position::ZERO,
            hash: Hash::ZERO,
            epochs: Vec::new(),
            epoch: Epoch::FIRST,
            recorded_at: None,
            waiting,
            digest: None,
            accounts: Accounts::default(),
            deductions: Deductions::default(),
            freezes: Freezes::default(),
            keys: Segments::default(),
            batches: Sums::default(),
            compensations: compensations::Sums::default(),
            newest_about: HashMap::default(),
            history: Sum::default(),
            runs: Vec::new(),
            early: BTreeMap::new(),
            buffer: Vec::new(),
        };
        replay.reach(None)?;
        Ok(replay)
    }

    /// What it has in memory, about.
    pub(super) fn bytes(&self) -> usize {
        const OF_A_MAP: usize = 24;
        self.accounts.bytes()
            + self.deductions.bytes()
            + self.freezes.bytes()
            + self.keys.bytes()
            + self.newest_about.len() * OF_A_MAP
            + self.waiting.unsealed.len() * size_of::<u64>()
    }

    pub(super) const fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Takes a row of the partition, in whichever order they come.
    pub(super) fn take(
        &mut self,
        row: &Checked<'_>,
        event: &BareEvent<'_>,
        foreseen: Foreseen,
        chunk: &Chunk,
        checker: &mut Checker,
    ) -> Agrees {
        if event.position > self.end {
            return Ok(());
        }
        if event.position != self.position.next() {
            // A row that was there already, or no event at all.
            if event.position <= self.position {
                return Err(Doubt::Row(event.position));
            }
            if self.early.len() == EARLY_ROWS_MAX {
                return Err(Doubt::Other);
            }
            return match self.early.insert(event.position, row.raw.to_vec()) {
                None => Ok(()),
                Some(_) => Err(Doubt::Row(event.position)),
            };
        }
        self.fold(row, event, foreseen)?;
        while let Some(raw) = self.early.remove(&self.position.next()) {
            let row = checker.check_one(&raw, chunk.event(&raw));
            let event = row.event.as_ref().map_err(|_| Doubt::Row(self.position.next()))?;
            self.fold(&row, event, Foreseen::Nothing)?;
        }
        Ok(())
    }

    /// Takes the next event.
    fn fold(&mut self, row: &Checked<'_>, event: &BareEvent<'_>, foreseen: Foreseen) -> Agrees {
        let is_full = self.depth == Depth::Full;
        if is_full {
            self.check_order(row, event)?;
        }
        let account = self.fold_account(event, foreseen)?;
        self.fold_originals(event, account)?;
        self.position = event.position;
        self.hash = event.hash;
        if is_full {
            self.note(row.key, event);
            self.reach(Some(event))?;
        }
        Ok(())
    }

    fn check_order(&mut self, row: &Checked<'_>, event: &BareEvent<'_>) -> Agrees {
        let follows = match row.follows {
            // The same bytes were hashed already.
            Some(hash) if hash == self.hash => true,
            _ => link(&mut self.buffer, &self.hash, event) == event.hash,
        };
        let is_later = self.recorded_at.is_none_or(|before| before <= event.recorded_at);
        if !row.is_sound || !follows || !is_later || event.epoch < self.epoch {
            return Err(Doubt::Row(event.position));
        }
        if event.epoch > self.epoch {
            self.epochs.push((event.position, event.epoch));
            self.epoch = event.epoch;
        }
        self.recorded_at = Some(event.recorded_at);
        Ok(())
    }

    fn fold_account(&mut self, event: &BareEvent<'_>, foreseen: Foreseen) -> Result<AccountNumber, Doubt> {
        let BareEvent { account_id, user_id, credit_type, after, position, recorded_at, .. } = event;
        let known = match foreseen {
            Foreseen::Account(number) | Foreseen::Called(number) => Some(number),
            Foreseen::Nothing => self.accounts.find(*account_id),
        };
        let Some(number) = known else {
            balance::follow(None, event).map_err(|_| Doubt::Other)?;
            if self.depth == Depth::Full && AccountId::derive(user_id, credit_type) != *account_id {
                return Err(Doubt::Other);
            }
            return self
                .accounts
                .add((*account_id, user_id, credit_type), after, *position, *recorded_at)
                .ok_or(Doubt::Other);
        };
        let (state, newest) = self.accounts.state(number);
        balance::follow(Some((&state, newest)), event).map_err(|_| Doubt::Other)?;
        let is_called =
            || matches!(foreseen, Foreseen::Called(_)) || self.accounts.is_called(number, user_id, credit_type);
        if self.depth == Depth::Full && !is_called() {
            return Err(Doubt::Other);
        }
        self.accounts.set(number, after, *position, *recorded_at);
        Ok(number)
    }

    fn fold_originals(&mut self, event: &BareEvent<'_>, account: AccountNumber) -> Agrees {
        let units = event.amount.map_or(0, Amount::units);
        let position = u32::try_from(event.position.0).map_err(|_| Doubt::Other)?;
        let is_full = self.depth == Depth::Full;
        if let Some(id) = event.related_id {
            // That it is an earlier one of this partition, the shape of the event says.
            let (_, epoch, original) = id.locate();
            let at = u32::try_from(original.0).map_err(|_| Doubt::Other)?;
            let left = match event.event_type {
                EventType::Deducted => self.freezes.settle(at, id, account, units, event.released),
                EventType::Unfrozen => self.freezes.settle(at, id, account, 0, units),
                EventType::Refunded if !is_full => event.remaining,
                EventType::Refunded if self.epoch_at(original) != epoch => None,
                EventType::Refunded => self.deductions.refund(at, id, account, units),
                _ => None,
            };
            if left.is_none() || left != event.remaining {
                return Err(Doubt::Other);
            }
        }
        match event.event_type {
            EventType::Frozen => {
                let freeze = Frozen {
                    id: event.transaction_id,
                    account,
                    amount: units,
                    expires_at: event.expires_at,
                    created_at: event.recorded_at,
                    business_code: event.business_code,
                    business_id: event.business_id,
                };
                self.freezes.add(position, &freeze).ok_or(Doubt::Other)?;
            }
            EventType::Deducted if is_full => self.deductions.add(position, event.transaction_id, account, units),
            _ => {}
        }
        Ok(())
    }

    fn epoch_at(&self, position: Position) -> Epoch {
        let after = self.epochs.partition_point(|(first, _)| *first <= position);
        after.checked_sub(1).map_or(Epoch::FIRST, |index| self.epochs[index].1)
    }

    /// Notes what is compared later: keys, batches, indexes.
    fn note(&mut self, key: u64, event: &BareEvent<'_>) {
        let digest = key_digest_of(key, event.account_id).to_be_bytes();
        self.keys.push(std::array::from_fn(|index| digest[index]));
        if let Some(mark) = event.batch
            && event.position <= self.waiting.head
        {
            self.batches.add(mark);
        }
        if event.position <= self.waiting.head {
            self.compensations.add_event(event.business_code, event.operation_id, event.batch);
        }
        if self.waiting.indexes.as_ref().is_none_or(|(checkpoint, _)| event.position > *checkpoint) {
            return;
        }
        let run = key_run(event.position) as usize;
        if self.runs.len() <= run {
            self.runs.resize(run + 1, KeySum::default());
        }
        let operation = event.operation_id;
        let operation = (operation != event.transaction_id.uuid()).then(|| operation::hash(operation));
        key_rows(key, operation, event).for_each(|row| self.runs[run].add(&row));
        if let Some(id) = event.related_id
            && let Ok((original, newest)) =
                u32::try_from(id.locate().2.0).and_then(|at| Ok((at, u32::try_from(event.position.0)?)))
        {
            self.newest_about.insert(original, newest);
        }
        if event.after.version.is_multiple_of(HISTORY_STRIDE) {
            let mut sums = IndexSums { history: self.history, ..IndexSums::default() };
            sums.add_history(event.account_id, event.after.version, event.position);
            self.history = sums.history;
        }
    }

    /// Compares what is due where the replay stands: after `event`, or at the beginning.
    fn reach(&mut self, event: Option<&BareEvent<'_>>) -> Agrees {
        let at = self.position;
        if self.waiting.places.are_due(at) {
            let head = event.map_or(Head::EMPTY, |event| Head { epoch: event.epoch, position: at, hash: event.hash });
            if !self.waiting.places.agree_at(at, &head, event.is_some()) {
                return Err(Doubt::Other);
            }
        }
        if let Some((_, digest)) = self.waiting.balances.take_if(|(checkpoint, _)| *checkpoint == at)
            && digest != self.digest_of_balances()
        {
            return Err(Doubt::Other);
        }
        if let Some((_, digest)) = self.waiting.freezes.take_if(|(checkpoint, _)| *checkpoint == at)
            && digest != self.digest_of_freezes()
        {
            return Err(Doubt::Other);
        }
        let is_at_checkpoint =
            |waiting: &Waiting| waiting.indexes.as_ref().is_some_and(|(checkpoint, _)| *checkpoint == at);
        if is_at_checkpoint(&self.waiting)
            && self.waiting.indexes.as_ref().map(|(_, sums)| sums) != Some(&self.index_sums())
        {
            return Err(Doubt::Other);
        }
        if is_at_checkpoint(&self.waiting) {
            self.waiting.unsealed = Vec::new();
        }
        Ok(())
    }

    fn index_sums(&self) -> IndexSums {
        let mut sums = IndexSums { history: self.history, ..IndexSums::default() };
        for (id, state, newest) in self.accounts.newest() {
            sums.add_account(id, newest);
            if self.waiting.unsealed.binary_search(&id.short()).is_err() {
                sums.add_state(id, &state);
            }
        }
        for (original, newest) in &self.newest_about {
            sums.add_related(Position((*original).into()), Position((*newest).into()));
        }
        sums
    }

    fn digest_of_balances(&mut self) -> Hash {
        if let Some((_, digest)) = self.digest.filter(|(position, _)| *position == self.position) {
            return digest;
        }
        let mut digest = PartitionDigest::default();
        self.accounts.in_order(|account, state: &AccountState, position, updated_at| {
            digest.add_balance_of(account, state, position, updated_at);
        });
        let digest = digest.finish().0;
        self.digest = Some((self.position, digest));
        digest
    }

    fn digest_of_freezes(&self) -> (Hash, Hash) {
        let mut digest = FreezesDigest::default();
        self.freezes().for_each(|freeze| digest.add(&freeze));
        digest.finish()
    }

    pub(super) fn freezes(&self) -> impl Iterator<Item = Freeze> {
        self.freezes.iter(self.partition, &self.accounts)
    }

    /// What it came to, once all rows were taken. `head` is the newest event's, where rows come without their hashes.
    pub(super) fn finish(&mut self, head: Option<&Head>) -> Result<Outcome, Doubt> {
        if self.position != self.end || !self.early.is_empty() {
            return Err(Doubt::Other);
        }
        if let Some(head) = head {
            let is_event = self.end > Position::ZERO;
            if !self.waiting.places.agree_at(self.end, head, is_event) {
                return Err(Doubt::Other);
            }
        }
        let waiting = &self.waiting;
        let is_passed = waiting.indexes.as_ref().is_none_or(|(checkpoint, _)| *checkpoint <= self.end);
        if !waiting.places.are_done() || waiting.balances.is_some() || waiting.freezes.is_some() || !is_passed {
            return Err(Doubt::Other);
        }
        if self.has_repeated_keys() {
            return Err(Doubt::Other);
        }
        let mut digest = PartitionDigest::default();
        self.freezes().for_each(|freeze| digest.add_freeze(&freeze));
        Ok(Outcome {
            accounts: self.accounts.len() as u64,
            freezes: self.freezes.len() as u64,
            digest: (self.digest_of_balances(), digest.finish().1),
            runs: std::mem::take(&mut self.runs),
        })
    }

    fn has_repeated_keys(&mut self) -> bool {
        let keys = std::mem::take(&mut self.keys);
        let widened = |key: &[u8; KEY_BYTES]| key.iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
        let mut keys: Vec<u64> = keys.iter().map(widened).collect();
        keys.sort_unstable();
        keys.windows(2).any(|pair| pair[0] == pair[1])
    }
}

/// What a partition came to in which everything agrees but for what is compared with [`Outcome::runs`] yet.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) accounts: u64,
    pub(super) freezes: u64,
    pub(super) digest: (Hash, Hash),
    /// What the runs of the key index must come to.
    pub(super) runs: Vec<KeySum>,
}

/// The rows of an event in the key index, like [`ledger_store::index_rows::key_rows_of`].
fn key_rows(key: u64, operation: Option<u64>, event: &BareEvent<'_>) -> impl Iterator<Item = KeyRow> {
    let position = event.position.0.cast_signed();
    let own = KeyRow { business: key, account: event.account_id.short(), position };
    std::iter::once(own).chain(operation.map(move |business| KeyRow { business, account: 0, position }))
}

#[cfg(test)]
impl Replay {
    /// One that knows an account, and nothing else.
    pub(super) fn of_an_account(partition: Partition) -> Self {
        let waiting = Waiting {
            places: crate::verify::places::Places::new(partition, None),
            head: Position::ZERO,
            balances: None,
            freezes: None,
            indexes: None,
            unsealed: Vec::new(),
        };
        let mut replay = Self::new(partition, Depth::Full, Position(9), waiting).expect("nothing to doubt");
        let account = (AccountId::derive("ann", "points"), "ann", "points");
        let at = Timestamp::from_micros(7).expect("a time");
        replay.accounts.add(account, &AccountState::default(), Position(1), at).expect("room");
        replay
    }
}
