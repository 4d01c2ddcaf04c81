//! What is known of a recovery, for its outcome and for the report. It stands in the record, so that a run that goes on after a
//! kill knows it, too.

use ledger_core::Epoch;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{examine::State, loss::Loss};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Facts {
    /// The archive that was given, for the report.
    pub(super) archive: Value,
    pub(super) found: Option<Found>,
    /// Where the events came from, for the report.
    pub(super) events: Value,
    pub(super) lost: Option<Loss>,
    /// Events that are there of all that are known to have been: 0 ..= 1.
    pub(super) success_rate: Option<f64>,
    pub(super) digest: Digests,
    pub(super) action: Option<Action>,
    /// The new epoch of a log that was restored.
    pub(super) epoch: Option<u32>,
    /// Where the ledger that was there is kept: a schema, or a file.
    pub(super) kept: Option<String>,
    /// Tables of what the log does not tell whose rows could not be taken along.
    pub(super) left_out: Vec<String>,
    /// What was mended, in sentences.
    pub(super) mended: Vec<String>,
    /// What a person has to do now, in sentences.
    pub(super) next: Vec<String>,
    /// What `verify` said at the end, for the report.
    pub(super) verified: Value,
    /// Which accounts were unlocked and which were not, for the report; null when none was looked at.
    pub(super) locks: Value,
    /// How the orders compare, for the report; null when none were given.
    pub(super) reconciliation: Value,
}

/// What a person does after a log was restored.
const START_ANEW: &str = "start every service of this ledger anew: it goes on under a new epoch";
const ASK_THE_STREAM: &str = "first, if there is a stream CREDIT on NATS, what is lost may be in it: before any service is started \
    recover once more, into an empty database, with --nats-url and another --report";
/// What a person does where rows could not be taken along.
const LACKING: &str = "these tables of the ledger that was there could not be read, and are empty now";
const KEYS: &str = "api_keys";
const MAKE_KEYS: &str =
    "; make API keys anew (api keys create) before a service can be reached: without any it is open";

impl Facts {
    /// The log was put in place; `kept` is where the ledger is that was there, `left_out` what could not be taken along from it,
    /// and `why` it was not left there.
    pub(super) fn restored(
        &mut self,
        epoch: Epoch,
        (kept, left_out): (Option<String>, Vec<String>),
        why: String,
        stream_was_asked: bool,
    ) {
        // Once the ledger goes on it is too late for the stream. What only the damaged database had would not come back so.
        let may_be_there = !stream_was_asked
            && self.events["from_database"] == 0
            && self.lost.as_ref().is_some_and(|loss| loss.positions > 0);
        self.action = Some(Action::Restored);
        self.epoch = Some(epoch.0);
        self.kept = kept;
        self.mended = vec![why];
        let lacking = (!left_out.is_empty()).then(|| {
            let keys = if left_out.iter().any(|table| table == KEYS) { MAKE_KEYS } else { "" };
            format!("{LACKING}: {}; see what is kept{keys}", left_out.join(", "))
        });
        self.left_out = left_out;
        let ask = may_be_there.then(|| ASK_THE_STREAM.to_owned());
        self.next = ask.into_iter().chain(lacking).chain([START_ANEW.to_owned()]).collect();
    }
}

/// What the database was like before anything was done to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Found {
    pub(super) state: State,
    pub(super) severity: String,
    pub(super) why: String,
    pub(super) digest: Option<String>,
    /// For the report.
    pub(super) findings: Value,
}

/// Digests of balances and freezes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Digests {
    /// Of the log as it was found, where it could be replayed.
    pub(super) before: Option<String>,
    pub(super) archive: Option<String>,
    pub(super) after: Option<String>,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Action {
    #[serde(rename = "none")]
    Nothing,
    /// The read models were made anew.
    Rebuilt,
    /// The log was put in place, and the read models were made from it.
    Restored,
}
