//! Operations that were reversed: each row that closes one is told of by the events that reversed it, and the other way round. Where
//! the row is missing, commands of that operation would be accepted again.
//!
//! An operation's row and its events lie in different partitions, so in the first place only sums are kept, as of atomic batches.

use ledger_core::{BatchMark, Partition, operation};
use ledger_store::{
    Database, StoreError,
    index_rows::KeyRow,
    operations::{Compensation, Contradiction},
};
use uuid::Uuid;

use super::indexes::Sum;
use crate::finding::{Finding, Findings, Kind};

/// What compensations come to: those that the events of a partition tell of, or their rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sums(Sum);

impl Sums {
    /// Adds an event: the first of a compensation stands for it.
    #[inline]
    pub(super) fn add_event(&mut self, code: &str, operation: Uuid, batch: Option<BatchMark>) {
        if code == operation::COMPENSATION_CODE && batch.is_none_or(|mark| mark.index == 0) {
            let partition = operation::partition(operation).number();
            self.add(partition.into(), operation, batch.map_or(1, |mark| mark.size).into());
        }
    }

    /// Adds a compensation that reversed something.
    pub(super) fn add(&mut self, partition: i64, operation: Uuid, reversals: i64) {
        let (high, low) = operation.as_u64_pair();
        self.0.add(&KeyRow { business: high, account: low, position: partition << 32 | reversals });
    }

    /// A row that is none.
    pub(super) fn add_damaged(&mut self) {
        self.add(-1, Uuid::nil(), 0);
    }

    pub(super) fn absorb(&mut self, other: Self) {
        self.0.absorb(other.0);
    }
}

/// Names the compensations of which the log and the rows say different things, by reading both again.
pub(super) async fn find(
    database: &Database,
    told: &Sums,
    rows: &Sums,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    if told == rows {
        return Ok(());
    }
    if findings.log_is_damaged() {
        // The events that would tell of them may be those that are damaged.
        findings.consequences += 1;
        return Ok(());
    }
    let in_words = |compensation: &Compensation| {
        format!("operation {} closed by {} reversals", compensation.operation_id, compensation.reversals)
    };
    for Contradiction { told, row } in database.contradicted_compensations().await? {
        let found = match &row {
            None => "no row".to_owned(),
            Some(Ok(row)) => format!("{} in compensations", in_words(row)),
            Some(Err(row)) => format!("a row of compensations that cannot be read: {}", row.why),
        };
        findings.extend(match (told, row) {
            (Some((told, event)), row) => {
                let kind = if row.is_some() { Kind::CompensationMismatch } else { Kind::CompensationMissing };
                Some(Finding::of(kind, &event, format!("{} in compensations", in_words(&told)), found))
            }
            (None, Some(Err(row))) => {
                let partition = row.partition().or_else(|| Partition::new(0));
                let expected = "an operation, a time and a count of reversals in compensations";
                partition.map(|at| Finding::of_partition(Kind::CompensationMismatch, at, expected, found))
            }
            (None, Some(Ok(row))) => {
                let partition = operation::partition(row.operation_id);
                let expected = "no row: no event reverses anything of the operation";
                Some(Finding::of_partition(Kind::CompensationUnexpected, partition, expected, found))
            }
            (None, None) => None,
        });
    }
    Ok(())
}
