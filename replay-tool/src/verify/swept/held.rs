//! What the tables beside the log hold, read for several partitions at once and added up as it comes.

use std::ops::RangeInclusive;

use ledger_core::{
    Account, AccountId, AccountState, BusinessKey, Freeze, PARTITIONS, Partition, Position, TransactionId,
    digest::PartitionDigest,
};
use ledger_store::{
    Database, StoreError,
    bulk::Table,
    copied::{
        As::{Boolean, Bytes, Id, Number, Small, Text, Time},
        Row,
    },
};

use super::beside::{FreezesDigest, IndexSums};
use crate::verify::stored::{Stand, stand_of};

/// Partitions that are read at once: fewer statements, and each still a short one.
pub(super) const TOGETHER: usize = 4;

const TABLES: [Table; 7] = [
    Table {
        name: "projection_checkpoints",
        columns: &[
            ("partition", Small),
            ("projection", Text),
            ("epoch", Number),
            ("position", Number),
            ("hash", Bytes),
        ],
        order: "partition, projection",
    },
    Table {
        name: "balances",
        columns: &[
            ("partition", Small),
            ("account_id", Id),
            ("position", Number),
            ("version", Number),
            ("balance", Number),
            ("frozen", Number),
            ("available", Number),
            ("updated_at", Time),
            ("status", Text),
            ("user_id", Text),
            ("credit_type", Text),
        ],
        order: "partition, account_id",
    },
    Table {
        name: "freezes",
        columns: &[
            ("partition", Small),
            ("position", Number),
            ("amount", Number),
            ("remaining", Number),
            ("captured", Number),
            ("released", Number),
            ("expires_at", Time),
            ("created_at", Time),
            ("freeze_id", Id),
            ("account_id", Id),
            ("status", Text),
            ("user_id", Text),
            ("credit_type", Text),
            ("business_code", Text),
            ("business_id", Text),
        ],
        order: "partition, position",
    },
    Table { name: "index_checkpoints", columns: &[("partition", Small), ("position", Number)], order: "partition" },
    Table {
        name: "account_positions",
        columns: &[
            ("partition", Small),
            ("account_id", Id),
            ("position", Number),
            ("balance", Number),
            ("frozen", Number),
            ("version", Number),
            ("locked", Boolean),
            ("seal", Number),
        ],
        order: "partition, account_id",
    },
    Table {
        name: "related_positions",
        columns: &[("partition", Small), ("original_position", Number), ("position", Number)],
        order: "partition, original_position",
    },
    Table {
        name: "history_positions",
        columns: &[("partition", Small), ("account_id", Id), ("version", Number), ("position", Number)],
        order: "partition, account_id, version",
    },
];

/// What the tables hold of a partition. None of it is believed: it is compared with the log.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) balances_at: Stand,
    pub(super) freezes_at: Stand,
    pub(super) balances: PartitionDigest,
    pub(super) freezes: FreezesDigest,
    /// Up to where the indexes hold the log, by the checkpoint that was read with them.
    pub(super) indexes_at: Option<Position>,
    pub(super) indexes: IndexSums,
    /// The accounts whose rows say nothing but a position, by 64 bits of their ids: those that a restore wrote.
    pub(super) unsealed: Vec<u64>,
    /// The newest position that the indexes name.
    pub(super) newest_indexed: Position,
    /// Some row is no row that agrees with anything.
    pub(super) is_damaged: bool,
}

/// Of each partition, once it is read.
pub(super) type AllHeld = [Option<Box<Held>>; PARTITIONS];

/// The partitions that are read together with each of these, each lot once.
pub(super) fn lots(partitions: &[Partition]) -> Vec<RangeInclusive<Partition>> {
    let all: Vec<_> = Partition::all().collect();
    let lots = all.chunks(TOGETHER).filter(|lot| lot.iter().any(|partition| partitions.contains(partition)));
    lots.filter_map(|lot| Some(*lot.first()?..=*lot.last()?)).collect()
}

/// Reads what the tables hold of these partitions.
///
/// # Errors
///
/// When the database cannot be read.
pub(super) async fn read(
    database: &Database,
    partitions: RangeInclusive<Partition>,
) -> Result<Vec<(Partition, Box<Held>)>, StoreError> {
    let wanted = Partition::all().filter(|partition| partitions.contains(partition));
    let held: Vec<_> = wanted.map(|partition| (partition, Box::new(Held::nothing()))).collect();
    database
        .bulk(&TABLES, partitions, held, |held, table, mut row| {
            let columns = row.columns();
            let Ok(number) = row.small("partition") else { return };
            let Some((partition, held)) = held.iter_mut().find(|(p, _)| i64::from(p.number()) == number) else {
                return;
            };
            if columns != Some(TABLES[table].columns.len()) || held.add(*partition, table, row).is_none() {
                held.is_damaged = true;
            }
        })
        .await
}

impl Held {
    fn nothing() -> Self {
        Self {
            balances_at: Stand::Missing,
            freezes_at: Stand::Missing,
            balances: PartitionDigest::default(),
            freezes: FreezesDigest::default(),
            indexes_at: None,
            indexes: IndexSums::default(),
            unsealed: Vec::new(),
            newest_indexed: Position::ZERO,
            is_damaged: false,
        }
    }

    /// Adds a row of one of [`TABLES`] after its partition; none when it agrees with nothing that a log makes.
    fn add(&mut self, partition: Partition, table: usize, row: Row<'_>) -> Option<()> {
        match table {
            0 => self.add_checkpoint(row),
            1 => self.add_balance(partition, row),
            2 => self.add_freeze(partition, row),
            3 => self.add_indexes_checkpoint(row),
            4 => self.add_account(row),
            5 => self.add_related(row),
            _ => self.add_history(row),
        }
    }

    fn add_checkpoint(&mut self, mut row: Row<'_>) -> Option<()> {
        let projection = row.text("projection").ok()?;
        let (epoch, position) = (row.number("epoch").ok()?, row.number("position").ok()?);
        let stand = stand_of(Some((epoch, position, row.bytes("hash").ok()?.to_vec())));
        match projection {
            "balances" => self.balances_at = stand,
            "freezes" => self.freezes_at = stand,
            _ => {}
        }
        Some(())
    }

    /// That the id follows from the names is left to the replay, which must come to the same digest and has looked at it.
    fn add_balance(&mut self, partition: Partition, mut row: Row<'_>) -> Option<()> {
        let id = account(&mut row, partition)?;
        let (position, version) = (unsigned(&mut row, "position")?, unsigned(&mut row, "version")?);
        let (balance, frozen) = (unsigned(&mut row, "balance")?, unsigned(&mut row, "frozen")?);
        let available = row.number("available").ok()?;
        let updated_at = row.time("updated_at").ok()?;
        let locked = match row.text("status").ok()? {
            "locked" => true,
            "active" => false,
            _ => return None,
        };
        let (user_id, credit_type) = (row.text("user_id").ok()?, row.text("credit_type").ok()?);
        if available != balance.cast_signed() - frozen.cast_signed() {
            return None;
        }
        let state = AccountState { balance, frozen, locked, version };
        self.balances.add_balance_of((id, user_id, credit_type), &state, Position(position), updated_at);
        Some(())
    }

    fn add_freeze(&mut self, partition: Partition, mut row: Row<'_>) -> Option<()> {
        let position = unsigned(&mut row, "position")?;
        let (amount, remaining) = (unsigned(&mut row, "amount")?, unsigned(&mut row, "remaining")?);
        let (captured, released) = (unsigned(&mut row, "captured")?, unsigned(&mut row, "released")?);
        let (expires_at, created_at) = (row.optional_time("expires_at").ok()?, row.time("created_at").ok()?);
        let freeze_id = TransactionId::from_uuid(row.uuid("freeze_id").ok()?)?;
        let id = account(&mut row, partition)?;
        let status = row.text("status").ok()?;
        let (user_id, credit_type) = (row.text("user_id").ok()?, row.text("credit_type").ok()?);
        let (code, business_id) = (row.text("business_code").ok()?, row.text("business_id").ok()?);
        let freeze = Freeze {
            freeze_id,
            account: Account::stored(id, user_id.into(), credit_type.into()),
            amount,
            remaining,
            captured,
            released,
            expires_at,
            key: BusinessKey::stored(code.into(), business_id.into()),
            created_at,
            position: Position(position),
        };
        (freeze.status() == status).then(|| self.freezes.add(&freeze))
    }

    fn add_indexes_checkpoint(&mut self, mut row: Row<'_>) -> Option<()> {
        self.indexes_at = Some(Position(unsigned(&mut row, "position")?));
        Some(())
    }

    fn add_account(&mut self, mut row: Row<'_>) -> Option<()> {
        let id = AccountId::stored(row.uuid("account_id").ok()?)?;
        let position = self.indexed(&mut row)?;
        self.indexes.add_account(id, position);
        let (balance, frozen) = (unsigned(&mut row, "balance")?, unsigned(&mut row, "frozen")?);
        let version = unsigned(&mut row, "version")?;
        let state = AccountState { balance, frozen, locked: row.boolean("locked").ok()?, version };
        if state == AccountState::default() && row.number("seal").ok()? == 0 {
            self.unsealed.push(id.short());
        } else {
            // Whether the seal is whole is not asked: a row that says what the log does is right either way.
            self.indexes.add_state(id, &state);
        }
        Some(())
    }

    fn add_related(&mut self, mut row: Row<'_>) -> Option<()> {
        let original = Position(unsigned(&mut row, "original_position")?);
        let position = self.indexed(&mut row)?;
        self.indexes.add_related(original, position);
        Some(())
    }

    fn add_history(&mut self, mut row: Row<'_>) -> Option<()> {
        let id = AccountId::stored(row.uuid("account_id").ok()?)?;
        let version = unsigned(&mut row, "version")?;
        let position = self.indexed(&mut row)?;
        self.indexes.add_history(id, version, position);
        Some(())
    }

    /// The position that an index's row names.
    fn indexed(&mut self, row: &mut Row<'_>) -> Option<Position> {
        let position = Position(unsigned(row, "position")?);
        self.newest_indexed = self.newest_indexed.max(position);
        Some(position)
    }
}

fn unsigned(row: &mut Row<'_>, column: &'static str) -> Option<u64> {
    row.number(column).ok().and_then(|number| u64::try_from(number).ok())
}

fn account(row: &mut Row<'_>, partition: Partition) -> Option<AccountId> {
    AccountId::stored(row.uuid("account_id").ok()?).filter(|id| id.partition() == partition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_that_is_wanted_is_in_one_lot() {
        let all: Vec<_> = Partition::all().collect();
        assert_eq!(lots(&all).len(), PARTITIONS / TOGETHER);
        let some = [all[0], all[3], all[63]];
        let (first, last) = (all[0]..=all[TOGETHER - 1], all[PARTITIONS - TOGETHER]..=all[63]);
        assert_eq!(lots(&some), [first, last]);
        assert_eq!(lots(&[]), []);
    }
}
