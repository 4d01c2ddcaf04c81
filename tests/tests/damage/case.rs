//! What is done to a ledger, and what must be found.

use ledger_core::{Event, Partition, TransactionId};
use serde_json::Value;

pub(crate) type Lie = Box<dyn Fn(&mut Event, &[Event]) + Sync>;

/// What was done.
pub(crate) enum Deed {
    /// By SQL.
    Sql(Vec<String>),
    /// To the events from a position on, with hashes that follow.
    Lie(u64, Lie),
}

/// The kind of a finding, its partition, and its position if it has one.
pub(crate) type Found = (&'static str, Partition, Option<u64>);

/// What was done, and what must be found: that and nothing else, but for consequences in the read models.
pub(crate) struct Case {
    pub(crate) what: &'static str,
    pub(crate) deed: Deed,
    pub(crate) found: Vec<Found>,
    /// The damage shows only against heads that were kept elsewhere.
    pub(crate) needs_anchor: bool,
}

pub(crate) fn sql(what: &'static str, statements: &[&str], found: &[Found]) -> Case {
    let statements = statements.iter().map(|statement| (*statement).to_owned()).collect();
    Case { what, deed: Deed::Sql(statements), found: found.to_vec(), needs_anchor: false }
}

/// A lie about one event.
pub(crate) fn lie(
    what: &'static str,
    at: u64,
    edit: impl Fn(&mut Event, &[Event]) + Sync + 'static,
    found: &[Found],
) -> Case {
    let only = move |event: &mut Event, all: &[Event]| {
        if event.position.0 == at {
            edit(event, all);
        }
    };
    Case { what, deed: Deed::Lie(at, Box::new(only)), found: found.to_vec(), needs_anchor: false }
}

pub(crate) fn only_against_an_anchor(case: Case) -> Case {
    Case { needs_anchor: true, ..case }
}

/// Gives an event the id that its content must have.
pub(crate) fn with_its_own_id(event: &mut Event) {
    with_id(event, TransactionId::derive(&event.account, event.epoch, event.position, &event.key));
}

/// Gives an event an id. Its operation is it alone, still.
pub(crate) fn with_id(event: &mut Event, id: TransactionId) {
    event.transaction_id = id;
    event.operation_id = id.uuid();
}

/// Whether the findings are those, and nothing else but consequences: rows of read models that follow from a damaged log,
/// of which a rebuild alone is not advised.
pub(crate) fn named(verified: &Value, expected: &[Found]) -> bool {
    let findings = verified["findings"].as_array().cloned().unwrap_or_default();
    let mut left: Vec<Found> = expected.to_vec();
    let is_ordered = findings.windows(2).all(|pair| {
        let place = |finding: &Value| (finding["partition"].as_u64(), finding["position"].as_u64());
        place(&pair[0]) <= place(&pair[1])
    });
    let unexpected = findings.iter().filter(|finding| {
        let is = |(kind, partition, position): &Found| {
            finding["kind"] == *kind
                && finding["partition"] == partition.number()
                && finding["position"].as_u64() == *position
        };
        if let Some(index) = left.iter().position(is) {
            left.remove(index);
            return false;
        }
        let kind = finding["kind"].as_str().unwrap_or_default();
        let follows = (kind.starts_with("balance_") || kind.starts_with("freeze_"))
            && finding["remedy"].as_str().is_some_and(|remedy| remedy.starts_with("first mend the log"));
        !follows
    });
    is_ordered && unexpected.count() == 0 && left.is_empty()
}
