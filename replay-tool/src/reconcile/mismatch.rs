//! What the two sides disagree about, and what would settle it.

use std::sync::Arc;

use ledger_core::{Account, Timestamp, TransactionId};
use serde::{Serialize, Serializer, ser::SerializeStruct};
use serde_json::{Value, json};

/// The kinds of mismatch. Their names in JSON are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The ledger has nothing for an order that needs something.
    MissingCreditTransaction,
    /// Both know the order, at the same stage, with another figure.
    AmountMismatch,
    /// Both know the order, at another stage.
    StatusMismatch,
    /// More than one line for one order.
    DuplicateOrder,
    /// A freeze or deduction for an order that the order system does not have.
    LedgerEntryWithoutOrder,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [
        Self::MissingCreditTransaction,
        Self::AmountMismatch,
        Self::StatusMismatch,
        Self::DuplicateOrder,
        Self::LedgerEntryWithoutOrder,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::MissingCreditTransaction => "missing_credit_transaction",
            Self::AmountMismatch => "amount_mismatch",
            Self::StatusMismatch => "status_mismatch",
            Self::DuplicateOrder => "duplicate_order",
            Self::LedgerEntryWithoutOrder => "ledger_entry_without_order",
        }
    }
}

/// One command that a settlement consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Capture { freeze: TransactionId, amount: u64 },
    Release { freeze: TransactionId, amount: u64 },
    Refund { deduction: TransactionId, amount: u64 },
    Debit { amount: u64 },
    Freeze { amount: u64 },
}

impl Step {
    /// What is left of an original is settled once and for all, so the original names the step: done again it is a repeat.
    pub(crate) fn business_id(&self, order_id: &str) -> String {
        match self {
            Self::Capture { freeze, .. } => format!("capture:{freeze}"),
            Self::Release { freeze, .. } => format!("release:{freeze}"),
            Self::Refund { deduction, .. } => format!("refund:{deduction}"),
            Self::Debit { .. } | Self::Freeze { .. } => order_id.to_owned(),
        }
    }

    const fn path(&self) -> &'static str {
        match self {
            Self::Capture { .. } | Self::Debit { .. } => "/v1/debits",
            Self::Release { .. } => "/v1/unfreezes",
            Self::Refund { .. } => "/v1/refunds",
            Self::Freeze { .. } => "/v1/freezes",
        }
    }

    /// The command as the HTTP contract has it.
    fn body(&self, account: &Account, order_id: &str) -> Value {
        let mut body = match self {
            Self::Capture { freeze, amount } | Self::Release { freeze, amount } => {
                json!({ "freeze_id": freeze, "amount": amount })
            }
            Self::Refund { deduction, amount } => json!({ "debit_id": deduction, "amount": amount }),
            Self::Debit { amount } | Self::Freeze { amount } => {
                json!({ "user_id": &**account.user_id(), "credit_type": &**account.credit_type(), "amount": amount })
            }
        };
        body["business_code"] = json!(BY_HAND_CODE);
        body["business_id"] = json!(self.business_id(order_id));
        body["metadata"] = json!({ "order_id": order_id });
        body
    }
}

/// The code of settlements that a person sends: `system.` codes are the ledger's own.
const BY_HAND_CODE: &str = "order.settlement";

/// What would settle a mismatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settlement {
    /// Whether it is right whatever else may be true, so that no person need look at it first.
    pub(crate) automatic: bool,
    pub(crate) steps: Vec<Step>,
    /// What to do, or what to find out first.
    pub(crate) remedy: String,
}

/// What became of a settlement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Not tried.
    Open,
    Settled(Vec<TransactionId>),
    /// The ledger refused it.
    Refused {
        code: &'static str,
        detail: String,
    },
}

/// One thing that the order system and the ledger disagree about.
#[derive(Debug, Clone)]
pub(crate) struct Mismatch {
    pub(crate) kind: Kind,
    pub(crate) order_id: Arc<str>,
    pub(crate) account: Account,
    /// Where in the orders; `None` when it is not there.
    pub(crate) line: Option<u64>,
    pub(crate) order_status: Option<Arc<str>>,
    pub(crate) order_points: Option<u64>,
    pub(crate) credit_status: &'static str,
    /// What the user paid in the end, by the ledger.
    pub(crate) credit_points: u64,
    pub(crate) expected: String,
    pub(crate) found: String,
    pub(crate) transactions: Vec<TransactionId>,
    /// When the ledger did something for the order last.
    pub(crate) newest_at: Option<Timestamp>,
    pub(crate) settlement: Settlement,
    pub(crate) outcome: Outcome,
}

impl Mismatch {
    pub(crate) const fn is_settled(&self) -> bool {
        matches!(self.outcome, Outcome::Settled(_))
    }

    /// What happened, in a word.
    pub(crate) const fn outcome_name(&self) -> &'static str {
        match (&self.outcome, self.settlement.automatic) {
            (Outcome::Settled(_), _) => "settled",
            (Outcome::Refused { .. }, _) => "refused",
            (Outcome::Open, true) => "open",
            (Outcome::Open, false) => "needs_a_person",
        }
    }

    /// The commands as lines for a shell.
    pub(crate) fn commands(&self, service: &str) -> Vec<String> {
        let line = |step: &Step| {
            let body = step.body(&self.account, &self.order_id).to_string().replace('\'', r"'\''");
            format!("curl -sS {service}{} -H 'content-type: application/json' -d '{body}'", step.path())
        };
        self.settlement.steps.iter().map(line).collect()
    }

    /// As JSON, with the commands sent to `service`.
    pub(crate) const fn json<'a>(&'a self, service: &'a str) -> Json<'a> {
        Json { mismatch: self, service }
    }
}

/// A mismatch as JSON.
#[derive(Debug)]
pub(crate) struct Json<'a> {
    mismatch: &'a Mismatch,
    service: &'a str,
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Mismatch { account, order_id, settlement, .. } = self.mismatch;
        let commands = self.mismatch.commands(self.service);
        let steps = settlement.steps.iter().zip(commands).map(|(step, curl)| {
            json!({ "method": "POST", "path": step.path(), "body": step.body(account, order_id), "curl": curl })
        });
        let (settled_by, refusal) = match &self.mismatch.outcome {
            Outcome::Open => (None, None),
            Outcome::Settled(ids) => (Some(ids), None),
            Outcome::Refused { code, detail } => (None, Some(json!({ "code": code, "detail": detail }))),
        };
        let mut object = serializer.serialize_struct("Mismatch", 17)?;
        object.serialize_field("kind", &self.mismatch.kind)?;
        object.serialize_field("order_id", &**order_id)?;
        object.serialize_field("user_id", &**account.user_id())?;
        object.serialize_field("credit_type", &**account.credit_type())?;
        object.serialize_field("line", &self.mismatch.line)?;
        object.serialize_field("order_status", &self.mismatch.order_status.as_deref())?;
        object.serialize_field("order_points", &self.mismatch.order_points)?;
        object.serialize_field("credit_status", self.mismatch.credit_status)?;
        object.serialize_field("credit_points", &self.mismatch.credit_points)?;
        object.serialize_field("expected", &self.mismatch.expected)?;
        object.serialize_field("found", &self.mismatch.found)?;
        object.serialize_field("transactions", &self.mismatch.transactions)?;
        object.serialize_field("remedy", &settlement.remedy)?;
        object.serialize_field("commands", &steps.collect::<Vec<_>>())?;
        object.serialize_field("outcome", self.mismatch.outcome_name())?;
        object.serialize_field("settled_by", &settled_by)?;
        object.serialize_field("refusal", &refusal)?;
        object.end()
    }
}
