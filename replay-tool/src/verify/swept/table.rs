//! Whether the rows of the table are those that the primary key names: who serves, projects and rebuilds reads by the key, and
//! so does whoever looks at a doubtful partition again. What is wrong with a row where it lies, and not by its key, is wrong
//! with one of the two.

use std::array;

use ledger_core::{PARTITIONS, Partition, Position};
use ledger_store::{Database, StoreError, sweep::Sweep};

use super::{check::Checked, for_each, held};
use crate::{
    finding::{Finding, Kind},
    verify::{partition::Part, stored},
};

/// Rows of a partition: how many, and what their positions come to in any order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Positions {
    rows: u64,
    sum: u64,
}

impl Positions {
    const fn add(&mut self, position: Position) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let mixed = position.0.wrapping_mul(ODD);
        self.rows += 1;
        self.sum = self.sum.wrapping_add((mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9));
    }

    /// Those of a log up to `end`: each position once.
    fn up_to(end: Position) -> Self {
        let mut positions = Self::default();
        (1..=end.0).for_each(|position| positions.add(Position(position)));
        positions
    }
}

/// The rows of the table as they are met, whatever becomes of their partitions' replays.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    /// The heads, all of whose events are committed before the table is read.
    to: [Option<Position>; PARTITIONS],
    up_to: [Positions; PARTITIONS],
    /// The newest position after that.
    newest: [Position; PARTITIONS],
    /// Rows that belong nowhere.
    nowhere: u64,
}

impl Rows {
    pub(super) fn new(to: [Option<Position>; PARTITIONS]) -> Self {
        let none = [Position::ZERO; PARTITIONS];
        Self { to, up_to: [Positions::default(); PARTITIONS], newest: none, nowhere: 0 }
    }

    pub(super) fn add(&mut self, rows: &[Checked<'_>]) {
        for row in rows {
            let place = match &row.event {
                Ok(event) => Some((event.partition, event.position)),
                Err(none) => none.0,
            };
            let Some((partition, position)) = place else {
                self.nowhere += 1;
                continue;
            };
            let index = partition.index();
            if self.to[index].is_some_and(|to| position <= to) {
                self.up_to[index].add(position);
            } else {
                self.newest[index] = self.newest[index].max(position);
            }
        }
    }

    /// Adds those that another reader met.
    pub(super) fn absorb(&mut self, other: &Self) {
        for index in 0..PARTITIONS {
            self.up_to[index].rows += other.up_to[index].rows;
            self.up_to[index].sum = self.up_to[index].sum.wrapping_add(other.up_to[index].sum);
            self.newest[index] = self.newest[index].max(other.newest[index]);
        }
        self.nowhere += other.nowhere;
    }

    /// What is wrong with the rows of a partition, whose head is `now` after they were read.
    fn fault(&self, partition: Partition, now: Option<Position>) -> Option<Fault> {
        let index = partition.index();
        let to = self.to[index]?;
        let newest = self.newest[index];
        if now.is_some_and(|now| newest > now) {
            let found = format!("a row at position {newest}, after the head");
            return Some(Fault { partition, position: Some(newest), found });
        }
        let found = self.up_to[index];
        // A head that says too much promises no end of positions, which are not added up then.
        let found = if found.rows == to.0 {
            if found == Positions::up_to(to) {
                return None;
            }
            "some of them twice and others not".to_owned()
        } else {
            format!("{} rows", found.rows)
        };
        Some(Fault { partition, position: None, found })
    }
}

/// What is wrong with the table.
#[derive(Debug)]
struct Fault {
    partition: Partition,
    /// Where that is known.
    position: Option<Position>,
    found: String,
}

/// How the table stands to the primary key.
#[derive(Debug, Default)]
pub(in crate::verify) struct Agreement {
    /// What is damage only if reading by the key finds none.
    faults: Vec<Fault>,
    /// Rows that belong to no partition.
    nowhere: u64,
    /// How the key's index differs from the table.
    differences: Vec<(Partition, String)>,
    /// Whether that was looked at.
    pub(in crate::verify) is_compared: bool,
}

impl Agreement {
    /// The partitions that have to be looked at by the key.
    pub(super) fn doubted(&self) -> impl Iterator<Item = Partition> {
        self.faults.iter().map(|fault| fault.partition)
    }

    /// Adds rows that were doubted where they lie, the first of each partition.
    pub(super) fn doubt(&mut self, rows: &[Option<Position>; PARTITIONS]) {
        for (partition, position) in Partition::all().zip(rows).filter_map(|(of, at)| Some((of, (*at)?))) {
            let found = "another one where the table is read as it lies".to_owned();
            self.faults.insert(0, Fault { partition, position: Some(position), found });
        }
    }

    /// Names what the partitions by themselves do not explain.
    pub(in crate::verify) fn name(self, parts: &mut [Part]) {
        let is_quiet = |part: &Part| part.findings.count == 0 && part.findings.consequences == 0;
        if self.nowhere > 0
            && parts.iter().all(is_quiet)
            && let Some(part) = parts.first_mut()
        {
            let found = format!("{} rows of no partition, or at no position", self.nowhere);
            let expected = "a partition and a position in each row of the table";
            part.findings.push(Finding::of_partition(Kind::KeyMismatch, part.partition, expected, found));
        }
        for (partition, found) in self.differences {
            let Some(part) = parts.iter_mut().find(|part| part.partition == partition) else { continue };
            let expected = "the rows of the table in the index of its primary key";
            part.findings.push(Finding::of_partition(Kind::KeyMismatch, partition, expected, found));
        }
        for Fault { partition, position, found } in self.faults {
            let Some(part) = parts.iter_mut().find(|part| part.partition == partition && is_quiet(part)) else {
                continue;
            };
            let expected = match position {
                Some(_) => "the row of this position that the primary key names",
                None => "each position up to the head once in the table, as by its primary key",
            };
            let finding = Finding::of_partition(Kind::KeyMismatch, partition, expected, found);
            part.findings.push(Finding { position, ..finding });
        }
    }
}

/// Compares the rows that a sweep met with the heads and with the index of the primary key.
///
/// # Errors
///
/// When the database cannot be read.
pub(super) async fn compare(database: &Database, sweep: &Sweep, rows: &Rows) -> Result<Agreement, StoreError> {
    let heads = stored::heads(database).await?;
    let fault = |partition: Partition| rows.fault(partition, heads[partition.index()].head().map(|head| head.position));
    let faults = Partition::all().filter_map(fault).collect();
    let differences = for_each(held::lots(&Partition::all().collect::<Vec<_>>()), |lot| {
        let sweep = sweep.clone();
        async move {
            let lot: Vec<_> = Partition::all().filter(|partition| lot.contains(partition)).collect();
            sweep.key_differences(&lot).await
        }
    });
    let differences = differences.await?.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    // Last: until here nothing may have been put elsewhere.
    if !sweep.is_of_the_same_table().await? {
        return Ok(Agreement::default());
    }
    Ok(Agreement { faults, nowhere: rows.nowhere, differences, is_compared: sweep.adds_places() })
}

/// The heads, as they are when the table is not read yet.
pub(super) fn up_to(heads: &[Option<Position>; PARTITIONS]) -> [Position; PARTITIONS] {
    array::from_fn(|index| heads[index].unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault_of(positions: impl IntoIterator<Item = u64>, now: u64) -> Option<(Option<Position>, String)> {
        let partition = Partition::all().next().expect("64");
        let mut rows = Rows::new([Some(Position(9)); PARTITIONS]);
        for position in positions.into_iter().map(Position) {
            if position <= Position(9) {
                rows.up_to[0].add(position);
            } else {
                rows.newest[0] = rows.newest[0].max(position);
            }
        }
        let mut all = Rows::new([Some(Position(9)); PARTITIONS]);
        all.absorb(&rows);
        all.fault(partition, Some(Position(now))).map(|fault| (fault.position, fault.found))
    }

    #[test]
    fn each_position_stands_once_in_the_table_in_whatever_order() {
        assert_eq!(fault_of((1..=9).rev(), 9), None);
        // What was written meanwhile, and what is no event of the log.
        assert_eq!(fault_of(1..=12, 12), None);
        let after = (Some(Position(12)), "a row at position 12, after the head".to_owned());
        assert_eq!(fault_of(1..=12, 11), Some(after));
        assert_eq!(fault_of(1..=8, 9), Some((None, "8 rows".to_owned())));
        assert_eq!(fault_of((1..=9).chain([4]), 9), Some((None, "10 rows".to_owned())));
        let swapped = (None, "some of them twice and others not".to_owned());
        assert_eq!(fault_of((1..=8).chain([4]), 9), Some(swapped));
    }
}
