//! Accounts and freezes of a partition in few bytes: all partitions are replayed at once, and a million
//! accounts and some million deductions are to be in memory at the same time.

use std::{array, sync::Arc};

use foldhash::HashMap;
use ledger_core::{
    Account, AccountId, AccountState, BusinessKey, Epoch, Freeze, Partition, Position, Timestamp, TransactionId,
};

/// Rows of one segment.
pub(super) const SEGMENT: usize = 1 << 10;

/// Rows that are only added: a vector that doubles would be half empty in the end, and twice in memory while it grows.
#[derive(Debug)]
pub(super) struct Segments<T> {
    segments: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Segments<T> {
    fn default() -> Self {
        Self { segments: Vec::new(), len: 0 }
    }
}

impl<T> Segments<T> {
    pub(super) fn push(&mut self, row: T) {
        match self.segments.last_mut() {
            Some(segment) if segment.len() < SEGMENT => segment.push(row),
            before => {
                // Most partitions of a small ledger have few rows.
                let mut segment = Vec::with_capacity(if before.is_some() { SEGMENT } else { 0 });
                segment.push(row);
                self.segments.push(segment);
            }
        }
        self.len += 1;
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.segments.iter().flatten()
    }

    fn get(&self, index: usize) -> &T {
        &self.segments[index / SEGMENT][index % SEGMENT]
    }

    fn get_mut(&mut self, index: usize) -> &mut T {
        &mut self.segments[index / SEGMENT][index % SEGMENT]
    }

    /// The row of this position, among rows that ascend by it.
    fn find(&self, position: u32, position_of: impl Fn(&T) -> u32) -> Option<usize> {
        let segment = self.segments.partition_point(|segment| position_of(&segment[0]) <= position).checked_sub(1)?;
        let index = self.segments[segment].binary_search_by_key(&position, position_of).ok()?;
        Some(segment * SEGMENT + index)
    }
}

/// Texts one after another, each with its length before it.
#[derive(Debug, Default)]
struct Texts(Vec<u8>);

impl Texts {
    /// Adds some texts, and tells where they are; nothing when they are longer than texts are, or too many.
    fn add<const COUNT: usize>(&mut self, texts: [&str; COUNT]) -> Option<u32> {
        let at = u32::try_from(self.0.len()).ok()?;
        for text in texts {
            self.0.extend_from_slice(&u16::try_from(text.len()).ok()?.to_ne_bytes());
            self.0.extend_from_slice(text.as_bytes());
        }
        Some(at)
    }

    fn get<const COUNT: usize>(&self, at: u32) -> [&[u8]; COUNT] {
        let mut rest = &self.0[at as usize..];
        array::from_fn(|_| {
            let (length, after) = rest.split_first_chunk().expect("a text begins with its length");
            let (text, after) = after.split_at(usize::from(u16::from_ne_bytes(*length)));
            rest = after;
            text
        })
    }

    fn texts<const COUNT: usize>(&self, at: u32) -> [&str; COUNT] {
        self.get(at).map(|text| std::str::from_utf8(text).expect("only texts are kept"))
    }
}

/// Texts of which there are few different ones, each kept once.
#[derive(Debug, Default)]
struct Names {
    numbers: HashMap<Box<str>, u16>,
    names: Vec<Box<str>>,
}

impl Names {
    /// The number of a text; nothing when there are too many.
    fn number(&mut self, name: &str) -> Option<u16> {
        if let Some(number) = self.numbers.get(name) {
            return Some(*number);
        }
        let number = u16::try_from(self.names.len()).ok()?;
        self.numbers.insert(name.into(), number);
        self.names.push(name.into());
        Some(number)
    }

    fn name(&self, number: u16) -> &str {
        &self.names[usize::from(number)]
    }
}

/// As long as a line of the processor's cache, and in one.
#[derive(Debug)]
#[repr(align(64))]
struct AccountRow {
    id: AccountId,
    balance: u64,
    frozen: u64,
    version: u64,
    position: Position,
    updated_at: Timestamp,
    user_id: u32,
    credit_type: u16,
    locked: bool,
}

/// An account's number among those of its partition.
pub(super) type AccountNumber = u32;
/// Two bits of it are used for something else.
const ACCOUNTS_MAX: usize = 1 << 30;

/// The accounts of a partition, by id.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    rows: Segments<AccountRow>,
    /// Open addressing: a number + 1, or 0. A power of two long, and at most three quarters full.
    slots: Vec<u32>,
    user_ids: Texts,
    credit_types: Names,
}

impl Accounts {
    pub(super) const fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes() + self.slots.len() * size_of::<u32>() + self.user_ids.0.capacity()
    }

    /// Where the search for an id begins: the id is a hash already.
    fn slot(&self, id: AccountId) -> usize {
        let bits = self.slots.len().trailing_zeros();
        let mixed = id.short().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        usize::try_from(mixed.checked_shr(64 - bits).unwrap_or(0)).unwrap_or(0)
    }

    /// The account that is probably this one. Together with [`Accounts::is`] and [`Accounts::is_called`] it serves to look
    /// for several accounts at once: each look waits for the memory, which can do more than one thing at a time.
    pub(super) fn guess(&self, id: AccountId) -> Option<AccountNumber> {
        self.slots.get(self.slot(id))?.checked_sub(1)
    }

    pub(super) fn is(&self, number: AccountNumber, id: AccountId) -> bool {
        self.rows.get(number as usize).id == id
    }

    pub(super) fn find(&self, id: AccountId) -> Option<AccountNumber> {
        if self.slots.is_empty() {
            return None;
        }
        let mut slot = self.slot(id);
        loop {
            let number = self.slots[slot].checked_sub(1)?;
            if self.rows.get(number as usize).id == id {
                return Some(number);
            }
            slot = (slot + 1) % self.slots.len();
        }
    }

    /// Adds an account that is not there; nothing when there is no room for it.
    pub(super) fn add(
        &mut self,
        (id, user_id, credit_type): (AccountId, &str, &str),
        state: &AccountState,
        position: Position,
        updated_at: Timestamp,
    ) -> Option<AccountNumber> {
        let number =
            AccountNumber::try_from(self.rows.len()).ok().filter(|number| (*number as usize) < ACCOUNTS_MAX)?;
        let (user_id, credit_type) = (self.user_ids.add([user_id])?, self.credit_types.number(credit_type)?);
        let AccountState { balance, frozen, locked, version } = *state;
        self.rows.push(AccountRow { id, balance, frozen, version, position, updated_at, user_id, credit_type, locked });
        if self.rows.len() * 4 > self.slots.len() * 3 {
            self.slots = vec![0; (self.slots.len() * 2).max(16)];
            (0..=number).for_each(|number| self.put(number));
        } else {
            self.put(number);
        }
        Some(number)
    }

    fn put(&mut self, number: AccountNumber) {
        let mut slot = self.slot(self.rows.get(number as usize).id);
        while self.slots[slot] != 0 {
            slot = (slot + 1) % self.slots.len();
        }
        self.slots[slot] = number + 1;
    }

    /// What an account holds, and its newest event.
    pub(super) fn state(&self, number: AccountNumber) -> (AccountState, Position) {
        let row = self.rows.get(number as usize);
        (state_of(row), row.position)
    }

    pub(super) fn is_called(&self, number: AccountNumber, user_id: &str, credit_type: &str) -> bool {
        let row = self.rows.get(number as usize);
        self.user_ids.get(row.user_id) == [user_id.as_bytes()] && self.credit_types.name(row.credit_type) == credit_type
    }

    pub(super) fn set(
        &mut self,
        number: AccountNumber,
        state: &AccountState,
        position: Position,
        updated_at: Timestamp,
    ) {
        let row = self.rows.get_mut(number as usize);
        (row.balance, row.frozen, row.version, row.locked) = (state.balance, state.frozen, state.version, state.locked);
        (row.position, row.updated_at) = (position, updated_at);
    }

    /// Each account's id, what it holds and its newest event.
    pub(super) fn newest(&self) -> impl Iterator<Item = (AccountId, AccountState, Position)> {
        self.rows.iter().map(|row| (row.id, state_of(row), row.position))
    }

    /// Hands out each account in the order of the ids: its id, user and type of credit, what it holds, its newest event and
    /// when that was recorded.
    pub(super) fn in_order(&self, mut each: impl FnMut((AccountId, &str, &str), &AccountState, Position, Timestamp)) {
        let mut rows: Vec<_> = self.rows.iter().collect();
        rows.sort_unstable_by_key(|row| row.id);
        for row in rows {
            let ([user_id], credit_type) = (self.user_ids.texts(row.user_id), self.credit_types.name(row.credit_type));
            each((row.id, user_id, credit_type), &state_of(row), row.position, row.updated_at);
        }
    }

    fn account(&self, number: AccountNumber) -> Account {
        let row = self.rows.get(number as usize);
        let ([user_id], credit_type) = (self.user_ids.texts(row.user_id), self.credit_types.name(row.credit_type));
        Account::stored(row.id, user_id.into(), credit_type.into())
    }
}

fn state_of(row: &AccountRow) -> AccountState {
    AccountState { balance: row.balance, frozen: row.frozen, locked: row.locked, version: row.version }
}

/// What tells the id of a freeze or a deduction from others of its place, and whose it is: 34 and 30 bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    check: u32,
    account: u32,
}

impl Mark {
    pub(super) fn new(id: TransactionId, account: AccountNumber) -> Self {
        let bits = id.check_bits();
        let check = u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
        Self { check, account: account | u32::try_from(bits >> 32).unwrap_or(0) << 30 }
    }

    pub(super) const fn account(self) -> AccountNumber {
        self.account & ((1 << 30) - 1)
    }

    pub(super) fn is_of(self, id: TransactionId) -> bool {
        u64::from(self.account >> 30) << 32 | u64::from(self.check) == id.check_bits()
    }
}

/// `released` is what is neither remaining nor captured.
#[derive(Debug)]
struct FreezeRow {
    amount: u64,
    remaining: u64,
    captured: u64,
    /// In microseconds; -1 for never.
    expires_at: i64,
    created_at: Timestamp,
    position: u32,
    epoch: u32,
    mark: Mark,
    texts: u32,
}

/// A freeze as its event makes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frozen<'t> {
    pub(super) id: TransactionId,
    pub(super) account: AccountNumber,
    pub(super) amount: u64,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) created_at: Timestamp,
    pub(super) business_code: &'t str,
    pub(super) business_id: &'t str,
}

/// The freezes of a partition, by position.
#[derive(Debug, Default)]
pub(super) struct Freezes {
    rows: Segments<FreezeRow>,
    texts: Texts,
}

impl Freezes {
    pub(super) const fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows.bytes() + self.texts.0.capacity()
    }

    /// Adds the freeze at this position; nothing when there is no room for it.
    pub(super) fn add(&mut self, position: u32, freeze: &Frozen<'_>) -> Option<()> {
        let Frozen { id, account, amount, expires_at, created_at, business_code, business_id } = *freeze;
        let texts = self.texts.add([business_code, business_id])?;
        self.rows.push(FreezeRow {
            amount,
            remaining: amount,
            captured: 0,
            expires_at: expires_at.map_or(-1, Timestamp::micros),
            created_at,
            position,
            epoch: id.locate().1.0,
            mark: Mark::new(id, account),
            texts,
        });
        Some(())
    }

    /// Takes a capture or a release from the freeze with this id at this position; none when there is no such one of the
    /// account, or it does not bear it. Tells what is left.
    pub(super) fn settle(
        &mut self,
        position: u32,
        id: TransactionId,
        account: AccountNumber,
        captured: u64,
        released: u64,
    ) -> Option<u64> {
        let index = self.rows.find(position, |row| row.position)?;
        let row = self.rows.get_mut(index);
        if !row.mark.is_of(id) || row.epoch != id.locate().1.0 || row.mark.account() != account {
            return None;
        }
        row.remaining = row.remaining.checked_sub(captured.checked_add(released)?)?;
        row.captured += captured;
        Some(row.remaining)
    }

    /// Each freeze in the order of the positions.
    pub(super) fn iter<'f>(
        &'f self,
        partition: Partition,
        accounts: &'f Accounts,
    ) -> impl Iterator<Item = Freeze> + 'f {
        self.rows.iter().map(move |row| {
            let [code, id] = self.texts.texts(row.texts).map(Arc::from);
            let position = Position(row.position.into());
            let check = u64::from(row.mark.account >> 30) << 32 | u64::from(row.mark.check);
            Freeze {
                freeze_id: TransactionId::of_check_bits(partition, Epoch(row.epoch), position, check),
                account: accounts.account(row.mark.account()),
                amount: row.amount,
                remaining: row.remaining,
                captured: row.captured,
                released: row.amount - row.remaining - row.captured,
                expires_at: Timestamp::from_micros(row.expires_at),
                key: BusinessKey::stored(code, id),
                created_at: row.created_at,
                position,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(user: &str) -> (AccountId, Partition) {
        let account = Account::new(user, "points").expect("valid");
        (account.id(), account.partition())
    }

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros).expect("a time")
    }

    #[test]
    fn accounts_are_found_by_their_ids_however_many_there_are() {
        let mut accounts = Accounts::default();
        assert_eq!((accounts.find(id("user-0").0), accounts.guess(id("user-0").0)), (None, None));
        let state =
            |number: u64| AccountState { balance: number, frozen: number / 2, locked: number % 2 == 1, version: 1 };
        for number in 0..5_000 {
            let user = format!("user-{number}");
            let added = accounts.add((id(&user).0, &user, "points"), &state(number), Position(number + 1), at(7));
            assert_eq!(added.map(u64::from), Some(number));
        }
        let changed = AccountState { balance: 9, frozen: 8, locked: false, version: 2 };
        accounts.set(accounts.find(id("user-33").0).expect("there"), &changed, Position(6_000), at(8));
        for number in 0..5_000_u64 {
            let user = format!("user-{number}");
            let found = accounts.find(id(&user).0).expect("there");
            assert_eq!(u64::from(found), number);
            assert!(accounts.guess(id(&user).0).is_some());
            assert!(accounts.is_called(found, &user, "points"));
            assert!(!accounts.is_called(found, &user, "coins") && !accounts.is_called(found, "points", &user));
            let expected = if number == 33 { (changed, 6_000) } else { (state(number), number + 1) };
            assert_eq!(accounts.state(found), (expected.0, Position(expected.1)));
        }
        assert_eq!(accounts.find(id("user-5000").0), None);
        let mut before = None;
        let mut seen = 0;
        accounts.in_order(|(id, user_id, credit_type), _, _, _| {
            assert!(before < Some(id) && AccountId::derive(user_id, credit_type) == id);
            before = Some(id);
            seen += 1;
        });
        assert_eq!(seen, 5_000);
    }

    #[test]
    fn a_freeze_is_given_back_as_its_events_left_it() {
        let (mut accounts, mut freezes) = (Accounts::default(), Freezes::default());
        let (account_id, partition) = id("ann");
        let account =
            accounts.add((account_id, "ann", "points"), &AccountState::default(), Position(1), at(1)).expect("room");
        for (position, expires_at) in [(2, None), (3, Some(at(99)))] {
            let id = TransactionId::of_check_bits(partition, Epoch(4), Position(position.into()), 1 << 33 | 5);
            let (amount, created_at) = (100, at(2));
            let (business_code, business_id) = ("order", "7");
            let freeze = Frozen { id, account, amount, expires_at, created_at, business_code, business_id };
            freezes.add(position, &freeze).expect("room");
            assert_eq!(freezes.settle(position, id, account, 30, 5), Some(65));
            assert_eq!(freezes.settle(position, id, account, 0, 15), Some(50));
            assert_eq!(freezes.settle(position, id, account, 50, 1), None, "more than is left");
            assert_eq!(freezes.settle(position, id, account + 1, 1, 0), None, "of another account");
            let other = TransactionId::of_check_bits(partition, Epoch(5), Position(position.into()), 1 << 33 | 5);
            assert_eq!(freezes.settle(position, other, account, 1, 0), None, "of another epoch");
            let given = freezes.iter(partition, &accounts).last().expect("a freeze");
            let expected = Freeze {
                freeze_id: id,
                account: Account::new("ann", "points").expect("valid"),
                amount,
                remaining: 50,
                captured: 30,
                released: 20,
                expires_at,
                key: BusinessKey::new("order", "7").expect("valid"),
                created_at,
                position: Position(position.into()),
            };
            assert_eq!(given, expected);
        }
    }
}
