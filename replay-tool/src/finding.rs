//! What verification finds.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use ledger_core::{Account, Event, Freeze, Partition, Position};
use serde::{Serialize, Serializer};

/// Findings of one partition that are kept; more are only counted.
const KEPT_OF_PARTITION_MAX: usize = 2_000;
/// Findings of a run that are kept and shown.
const KEPT_MAX: usize = 10_000;

/// The kinds of finding. Their names in JSON are stable; their order is the order in which findings at one position are
/// shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// Positions that must be there are not.
    Gap,
    /// A row that no event can be: a column holds what the ledger never wrote.
    DamagedEvent,
    /// The event's hash does not follow from the event and the one before it: the event was changed.
    HashMismatch,
    /// The epoch falls, or time runs backwards.
    OrderMismatch,
    /// An epoch that no restore began.
    EpochMismatch,
    /// The id of the transaction or of the account does not follow from the event.
    IdMismatch,
    /// The account's versions have a gap, or its chain of previous positions is broken.
    VersionMismatch,
    /// The state that the event carries is not what the amounts make, or no state can bear them.
    StateMismatch,
    /// A capture, release or refund of something that is not there.
    RelationMissing,
    /// A capture, release or refund of another account's freeze or deduction.
    RelationForeign,
    /// A capture, release or refund of more than was left.
    RelationExceeded,
    /// A capture, release or refund that says another rest than there is.
    RelationMismatch,
    /// A business key that an earlier event of the account bound already.
    DuplicateKey,
    /// An atomic batch that is not whole.
    BatchIncomplete,
    /// The row that says where the partition ends is not there.
    HeadMissing,
    /// The partition's head names another event than the newest, or cannot be read.
    HeadMismatch,
    /// An event past the partition's head.
    BeyondHead,
    /// The table and the index of its primary key disagree: who reads by the key reads something else than what is there.
    KeyMismatch,
    /// The log ends before a head that was kept elsewhere.
    TruncatedTail,
    /// A head that was kept elsewhere names another event than the log has there: the log was written anew.
    AnchorMismatch,
    /// A restore was recorded that the log does not show.
    RestoreMismatch,
    /// A row of the balances differs from the replay.
    BalanceMismatch,
    BalanceMissing,
    BalanceUnexpected,
    /// A row of the freezes differs from the replay.
    FreezeMismatch,
    FreezeMissing,
    FreezeUnexpected,
    /// A row of an index behind the log names another place than the log does.
    IndexMismatch,
    IndexMissing,
    IndexUnexpected,
    /// The events that reversed an operation and the row that closes it say different things.
    CompensationMismatch,
    CompensationMissing,
    CompensationUnexpected,
    /// A checkpoint names no event of the log, is ahead of it, or cannot be read.
    CheckpointMismatch,
    CheckpointMissing,
    /// Not an inconsistency: a freeze is past its expiry and still open.
    FreezeExpired,
    /// Not an inconsistency: events that an anchor knows and that a recorded restore left behind.
    LostInRestore,
}

const RECOVER: &str = "replay-tool recover --from ARCHIVE --report DIR: events cannot be made again, only restored";
const REBUILD: &str = "replay-tool rebuild";
const REBUILD_LATER: &str = "first mend the log of this partition (replay-tool recover), then replay-tool rebuild: a rebuild \
                             refuses a damaged log";
/// What mends the indexes behind the log.
pub(crate) const INDEXES: &str =
    "replay-tool export, then replay-tool import into an empty database: it makes the indexes anew";

const COMPENSATIONS: &str = "replay-tool rebuild --compensations";
const KEY: &str = "stop the service, make the index anew (PostgreSQL: reindex table events; SQLite: reindex events), and verify \
                   again; what is found then, or if it cannot be made, replay-tool recover mends";

/// What mends the publisher's checkpoint: it says from where the stream has to be read, and nothing else.
pub(crate) const PUBLISH_ANEW: &str = "if the stream CREDIT is sound, stop the service, delete the rows of \
                                       publisher_checkpoints and the stream, and start: all is published again";

impl Kind {
    /// The name in JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::DamagedEvent => "damaged_event",
            Self::HashMismatch => "hash_mismatch",
            Self::OrderMismatch => "order_mismatch",
            Self::EpochMismatch => "epoch_mismatch",
            Self::IdMismatch => "id_mismatch",
            Self::VersionMismatch => "version_mismatch",
            Self::StateMismatch => "state_mismatch",
            Self::RelationMissing => "relation_missing",
            Self::RelationForeign => "relation_foreign",
            Self::RelationExceeded => "relation_exceeded",
            Self::RelationMismatch => "relation_mismatch",
            Self::DuplicateKey => "duplicate_key",
            Self::BatchIncomplete => "batch_incomplete",
            Self::HeadMissing => "head_missing",
            Self::HeadMismatch => "head_mismatch",
            Self::BeyondHead => "beyond_head",
            Self::KeyMismatch => "primary_key_mismatch",
            Self::TruncatedTail => "truncated_tail",
            Self::AnchorMismatch => "anchor_mismatch",
            Self::RestoreMismatch => "restore_mismatch",
            Self::BalanceMismatch => "balance_mismatch",
            Self::BalanceMissing => "balance_missing",
            Self::BalanceUnexpected => "balance_unexpected",
            Self::FreezeMismatch => "freeze_mismatch",
            Self::FreezeMissing => "freeze_missing",
            Self::FreezeUnexpected => "freeze_unexpected",
            Self::IndexMismatch => "index_mismatch",
            Self::IndexMissing => "index_missing",
            Self::IndexUnexpected => "index_unexpected",
            Self::CompensationMismatch => "compensation_mismatch",
            Self::CompensationMissing => "compensation_missing",
            Self::CompensationUnexpected => "compensation_unexpected",
            Self::CheckpointMismatch => "checkpoint_mismatch",
            Self::CheckpointMissing => "checkpoint_missing",
            Self::FreezeExpired => "freeze_expired",
            Self::LostInRestore => "lost_in_restore",
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::BalanceMismatch
            | Self::BalanceMissing
            | Self::BalanceUnexpected
            | Self::FreezeMismatch
            | Self::FreezeMissing
            | Self::FreezeUnexpected
            | Self::CheckpointMismatch
            | Self::CheckpointMissing => REBUILD,
            Self::IndexMismatch | Self::IndexMissing | Self::IndexUnexpected => INDEXES,
            Self::CompensationMismatch | Self::CompensationMissing | Self::CompensationUnexpected => COMPENSATIONS,
            Self::KeyMismatch => KEY,
            Self::FreezeExpired => "release it: POST /v1/unfreezes with this transaction_id as freeze_id",
            Self::LostInRestore => "nothing: the loss was recorded when the ledger was restored",
            _ => RECOVER,
        }
    }

    /// Whether the finding is about rows that a replay makes anew.
    const fn is_of_read_model(self) -> bool {
        matches!(
            self,
            Self::BalanceMismatch
                | Self::BalanceMissing
                | Self::BalanceUnexpected
                | Self::FreezeMismatch
                | Self::FreezeMissing
                | Self::FreezeUnexpected
                | Self::CheckpointMismatch
                | Self::CheckpointMissing
        )
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One thing that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    pub(crate) partition: Partition,
    pub(crate) position: Option<Position>,
    pub(crate) transaction_id: Option<String>,
    pub(crate) user_id: Option<String>,
    pub(crate) credit_type: Option<String>,
    pub(crate) expected: String,
    pub(crate) found: String,
    /// What else is wrong at the same place, most likely for the same reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) also: Vec<String>,
    pub(crate) remedy: &'static str,
}

impl Finding {
    /// At a place of the log.
    pub(crate) fn at(
        kind: Kind,
        partition: Partition,
        position: Position,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self { position: Some(position), ..Self::of_partition(kind, partition, expected, found) }
    }

    /// About a partition, not one of its places.
    pub(crate) fn of_partition(
        kind: Kind,
        partition: Partition,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            partition,
            position: None,
            transaction_id: None,
            user_id: None,
            credit_type: None,
            expected: expected.into(),
            found: found.into(),
            also: Vec::new(),
            remedy: kind.remedy(),
        }
    }

    /// About an event.
    pub(crate) fn of(kind: Kind, event: &Event, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            transaction_id: Some(event.transaction_id.to_string()),
            ..Self::at(kind, event.partition, event.position, expected, found).owned_by(&event.account)
        }
    }

    /// About a freeze.
    pub(crate) fn of_freeze(
        kind: Kind,
        partition: Partition,
        freeze: &Freeze,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self {
            transaction_id: Some(freeze.freeze_id.to_string()),
            ..Self::at(kind, partition, freeze.position, expected, found).owned_by(&freeze.account)
        }
    }

    pub(crate) fn owned_by(mut self, account: &Account) -> Self {
        self.user_id = Some(account.user_id().to_string());
        self.credit_type = Some(account.credit_type().to_string());
        self
    }

    /// With another remedy than the kind's usual one.
    pub(crate) fn mended_by(mut self, remedy: &'static str) -> Self {
        self.remedy = remedy;
        self
    }

    /// Where it stands among others: by partition, position and kind, and the same in every run.
    fn before_or_after(&self, other: &Self) -> Ordering {
        let order = |finding: &Self| (finding.partition, finding.position, finding.kind);
        order(self)
            .cmp(&order(other))
            .then_with(|| self.expected.cmp(&other.expected))
            .then_with(|| self.found.cmp(&other.found))
    }
}

/// The findings of a run or of a part of it, within a bound of memory.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) kept: Vec<Finding>,
    pub(crate) count: u64,
    /// How many there are of each kind, those that are not kept among them.
    pub(crate) kinds: BTreeMap<Kind, u64>,
    /// What a person may want to know and what is no inconsistency.
    pub(crate) notices: Vec<Finding>,
    pub(crate) notices_count: u64,
    /// The partitions of whose events or heads something is wrong.
    pub(crate) damaged: BTreeSet<Partition>,
    /// Whether some are about an index behind the log, its checkpoint among them: only a restore makes these anew.
    of_indexes: bool,
    /// Contradictions that follow from a finding, and are none of their own.
    pub(crate) consequences: u64,
}

impl Findings {
    pub(crate) fn push(&mut self, finding: Finding) {
        self.count += 1;
        *self.kinds.entry(finding.kind).or_default() += 1;
        self.of_indexes |= finding.remedy == INDEXES;
        if finding.kind < Kind::BalanceMismatch {
            self.damaged.insert(finding.partition);
        }
        if self.kept.len() < KEPT_OF_PARTITION_MAX {
            self.kept.push(finding);
        }
    }

    pub(crate) fn notice(&mut self, notice: Finding) {
        self.notices_count += 1;
        if self.notices.len() < KEPT_OF_PARTITION_MAX {
            self.notices.push(notice);
        }
    }

    /// Adds those of another part of the run.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.kept.extend(other.kept);
        self.notices.extend(other.notices);
        self.count += other.count;
        self.notices_count += other.notices_count;
        self.consequences += other.consequences;
        self.damaged.extend(other.damaged);
        self.of_indexes |= other.of_indexes;
        for (kind, count) in other.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
    }

    /// Puts the findings in order, and keeps no more than are shown.
    pub(crate) fn settle(&mut self) {
        self.kept.sort_by(Finding::before_or_after);
        self.kept.truncate(KEPT_MAX);
        self.notices.sort_by(Finding::before_or_after);
        self.notices.truncate(KEPT_MAX);
    }

    /// A rebuild refuses a partition whose log is damaged: then that comes first.
    pub(crate) fn of_damaged_log(&mut self) {
        for finding in &mut self.kept {
            if finding.kind.is_of_read_model() && finding.remedy == REBUILD {
                finding.remedy = REBUILD_LATER;
            }
        }
    }

    /// Whether any is about the rows that close operations.
    pub(crate) fn are_of_compensations(&self) -> bool {
        use Kind::{CompensationMismatch, CompensationMissing, CompensationUnexpected};
        [CompensationMismatch, CompensationMissing, CompensationUnexpected]
            .iter()
            .any(|kind| self.kinds.contains_key(kind))
    }

    /// Whether any is about an index behind the log or its checkpoint.
    pub(crate) const fn are_of_indexes(&self) -> bool {
        self.of_indexes
    }

    /// Whether anything found is damage of the log itself.
    pub(crate) fn log_is_damaged(&self) -> bool {
        self.kinds.keys().any(|kind| *kind <= Kind::KeyMismatch)
    }
}

impl Extend<Finding> for Findings {
    fn extend<T: IntoIterator<Item = Finding>>(&mut self, findings: T) {
        findings.into_iter().for_each(|finding| self.push(finding));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(kind: Kind, partition: u8, position: u64) -> Finding {
        Finding::at(kind, Partition::new(partition).expect("below 64"), Position(position), "a", "b")
    }

    #[test]
    fn findings_are_shown_by_partition_position_and_kind() {
        let sorted =
            [at(Kind::Gap, 0, 9), at(Kind::HashMismatch, 1, 2), at(Kind::BalanceMissing, 1, 2), at(Kind::Gap, 1, 3)];
        let mut findings = Findings::default();
        for index in [2, 0, 3, 1] {
            let mut part = Findings::default();
            part.push(sorted[index].clone());
            findings.absorb(part);
        }
        findings.settle();
        assert_eq!(findings.kept, sorted);
        assert_eq!((findings.count, findings.kinds[&Kind::Gap]), (4, 2));
    }

    #[test]
    fn no_rebuild_is_advised_where_the_log_is_damaged() {
        let mut findings = Findings::default();
        findings.push(at(Kind::BalanceMissing, 1, 2));
        assert!(!findings.log_is_damaged());
        findings.push(at(Kind::Gap, 1, 2));
        assert!(findings.log_is_damaged());
        findings.of_damaged_log();
        assert_eq!(findings.kept[0].remedy, REBUILD_LATER);
    }

    #[test]
    fn what_is_not_kept_is_counted() {
        let mut findings = Findings::default();
        (0..5_000).for_each(|position| findings.push(at(Kind::Gap, 0, position)));
        assert_eq!((findings.count, findings.kept.len()), (5_000, KEPT_OF_PARTITION_MAX));
    }
}
