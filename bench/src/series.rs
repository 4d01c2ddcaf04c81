//! What is measured, by name: each a line of the report.

use std::fmt;

use serde::{Serialize, Serializer};

/// One thing that is measured, in the order in which it is shown: a peer beside its scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Series {
    Echo,
    Reads,
    Singles,
    SinglesOneFunction,
    SinglesRowLocked,
    SinglesInsert,
    Hot,
    HotOneFunction,
    HotRowLocked,
    Mix,
    /// Of so many commands, by whom.
    Bulk(u32, Who),
    /// By half of the connections.
    ReadsAlone,
    WritesAlone,
    ReadsBeside,
    WritesBeside,
    /// At so many percent of what the closed loop reached.
    Offered(u32),
    /// The echo at as many a second.
    EchoOffered(u32),
    /// At so many percent of what it reached itself.
    OneFunctionOffered(u32),
    /// While the ledger grows to so many events.
    Filling(u64),
    /// When it holds so many events.
    Grown(u64, Grown),
    /// After a restart, when no account is in memory.
    Cold(u64),
    /// COPY into a table of so many rows.
    GrownPeer(u64),
    /// Of a ledger of so many events.
    Replayed(u64, Replayed),
}

/// Who stores the rows of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Ledger,
    Peer,
}

/// What is measured of a ledger that has grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Grown {
    Singles,
    Batches(u32),
}

/// What is done with a whole log: by one process that only copies, and by the replay-tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Replayed {
    CopyOut,
    Verify,
    Fold,
    Rebuild,
    RebuildBalances,
    Export,
    CopyIn,
    Import,
}

impl Replayed {
    const fn name(self) -> &'static str {
        match self {
            Self::CopyOut => "  COPY TO STDOUT by psql",
            Self::Verify => "verify",
            Self::Fold => "verify --digest-only",
            Self::Rebuild => "rebuild",
            Self::RebuildBalances => "rebuild --read-model balances",
            Self::Export => "export",
            Self::CopyIn => "  COPY FROM STDIN by psql",
            Self::Import => "import",
        }
    }
}

impl Series {
    pub(crate) const fn batches(size: u32) -> Self {
        Self::Bulk(size, Who::Ledger)
    }

    /// The rows of those batches, loaded by the peer.
    pub(crate) const fn batches_peer(size: u32) -> Self {
        Self::Bulk(size, Who::Peer)
    }

    /// Whether something else than the ledger is measured.
    pub(crate) const fn is_peer(self) -> bool {
        matches!(
            self,
            Self::Echo
                | Self::EchoOffered(_)
                | Self::OneFunctionOffered(_)
                | Self::SinglesOneFunction
                | Self::SinglesRowLocked
                | Self::SinglesInsert
                | Self::HotOneFunction
                | Self::HotRowLocked
                | Self::Bulk(_, Who::Peer)
                | Self::GrownPeer(_)
                | Self::Replayed(_, Replayed::CopyOut | Replayed::CopyIn)
        )
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::Echo => "echo: HTTP and JSON only".to_owned(),
            Self::Reads => "reads of balances".to_owned(),
            Self::Singles => "single commands".to_owned(),
            Self::SinglesOneFunction => "  pgbench, one function".to_owned(),
            Self::SinglesRowLocked => "  pgbench, row locked".to_owned(),
            Self::SinglesInsert => "  pgbench, one insert, nothing decided".to_owned(),
            Self::Hot => "one hot account".to_owned(),
            Self::HotOneFunction => "  pgbench, one function, one account".to_owned(),
            Self::HotRowLocked => "  pgbench, row locked, one account".to_owned(),
            Self::Mix => "a shop's mix, Zipf".to_owned(),
            Self::Bulk(size, Who::Ledger) => format!("batches of {}", thousands(u64::from(size))),
            Self::Bulk(size, Who::Peer) => {
                format!("  bulk load of the rows of batches of {}", thousands(u64::from(size)))
            }
            Self::ReadsAlone => "reads, half of the connections".to_owned(),
            Self::WritesAlone => "single commands, half of the connections".to_owned(),
            Self::ReadsBeside => "reads beside commands".to_owned(),
            Self::WritesBeside => "commands beside reads".to_owned(),
            Self::Offered(percent) => format!("single commands offered at {percent} %"),
            Self::EchoOffered(percent) => format!("  echo offered as many as at {percent} %"),
            Self::OneFunctionOffered(percent) => format!("  pgbench, one function, at {percent} % of its own rate"),
            Self::Filling(events) => format!("filling up to {} events", thousands(events)),
            Self::Grown(events, Grown::Singles) => format!("single commands at {} events", thousands(events)),
            Self::Grown(events, Grown::Batches(size)) => {
                format!("batches of {} at {} events", thousands(u64::from(size)), thousands(events))
            }
            Self::Cold(events) => format!("single commands at {} events, cold", thousands(events)),
            Self::GrownPeer(rows) => format!("  bulk load at {} rows", thousands(rows)),
            Self::Replayed(events, replayed) => format!("{} of {} events", replayed.name(), thousands(events)),
        };
        f.pad(&name)
    }
}

impl Serialize for Series {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.to_string().trim_start())
    }
}

/// A whole number in groups of three digits.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        let grouped = [0, 999, 1_000, 20_000_000].map(thousands);
        assert_eq!(grouped, ["0", "999", "1,000", "20,000,000"]);
    }

    #[test]
    fn a_ledger_that_grew_is_shown_in_the_order_of_its_growth() {
        let early = Series::Grown(1_000_000, Grown::Batches(1_000));
        assert!(early < Series::Grown(5_000_000, Grown::Singles));
        assert!(Series::Grown(1_000_000, Grown::Singles) < early);
    }

    #[test]
    fn a_peer_stands_beside_what_it_is_compared_with() {
        assert!(Series::batches(100) < Series::batches_peer(100));
        assert!(Series::batches_peer(100) < Series::batches(1_000));
    }
}
