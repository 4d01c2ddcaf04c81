//! What the order system says: one line, one order.

use std::{collections::HashMap, sync::Arc};

use ledger_core::{Account, BusinessKey, MAX_AMOUNT, Timestamp};

use crate::argument::parse_time;

/// How far an order has come, as far as its points are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not paid yet: the points are frozen.
    Held,
    /// Paid: the points are deducted.
    Taken,
    /// Never to be paid: nothing is frozen, nothing is deducted.
    Cancelled,
    /// Paid, and all of it given back.
    Refunded,
    /// Paid, and a part of it given back.
    PartlyRefunded,
}

/// The stages' names, and the statuses that order systems have for them.
const STATUSES: [(Stage, &str, &[&str]); 5] = [
    (
        Stage::Held,
        "frozen",
        &[
            "pending",
            "created",
            "new",
            "open",
            "placed",
            "submitted",
            "confirmed",
            "unpaid",
            "pending_payment",
            "payment_pending",
            "awaiting_payment",
            "waiting_payment",
            "on_hold",
            "held",
            "reserved",
            "authorized",
            "authorised",
            "frozen",
        ],
    ),
    (
        Stage::Taken,
        "deducted",
        &[
            "paid",
            "captured",
            "processing",
            "fulfilled",
            "packed",
            "shipped",
            "in_transit",
            "delivered",
            "received",
            "complete",
            "completed",
            "done",
            "finished",
            "success",
            "succeeded",
            "deducted",
        ],
    ),
    (
        Stage::Cancelled,
        "cancelled",
        &[
            "cancelled",
            "canceled",
            "voided",
            "void",
            "expired",
            "timeout",
            "timed_out",
            "failed",
            "payment_failed",
            "rejected",
            "declined",
            "abandoned",
        ],
    ),
    (Stage::Refunded, "refunded", &["refunded", "fully_refunded", "returned", "charged_back", "chargeback"]),
    (Stage::PartlyRefunded, "partly_refunded", &["partly_refunded", "partially_refunded", "partial_refund"]),
];

/// Which stage each status means.
#[derive(Debug, Clone)]
pub(crate) struct Statuses(HashMap<String, Stage>);

impl Statuses {
    /// The usual ones, and those that `own` says otherwise.
    pub(crate) fn with(own: &[(String, Stage)]) -> Self {
        let usual = STATUSES.iter().flat_map(|(stage, _, names)| names.iter().map(|name| ((*name).to_owned(), *stage)));
        let own = own.iter().map(|(name, stage)| (normal(name), *stage));
        Self(usual.chain(own).collect())
    }

    fn stage(&self, status: &str) -> Option<Stage> {
        self.0.get(&normal(status)).copied()
    }
}

/// `On-Hold` and `on hold` are `on_hold`.
fn normal(status: &str) -> String {
    status.trim().to_lowercase().replace([' ', '-'], "_")
}

/// A `--status NAME=STAGE`.
pub(crate) fn parse_status(text: &str) -> Result<(String, Stage), String> {
    let stages = || STATUSES.map(|(_, name, _)| name).join(", ");
    let (name, stage) =
        text.split_once('=').ok_or_else(|| "write STATUS=STAGE, such as closed=cancelled".to_owned())?;
    let found = STATUSES.iter().find(|(_, known, _)| *known == stage.trim());
    let (stage, ..) = found.ok_or_else(|| format!("there is no stage {stage}; the stages are {}", stages()))?;
    if name.trim().is_empty() {
        return Err("the status before the = is empty".to_owned());
    }
    Ok((name.to_owned(), *stage))
}

/// One line of the orders, as text.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    pub(crate) order_id: Option<String>,
    pub(crate) user_id: Option<String>,
    pub(crate) points: Option<String>,
    pub(crate) status: Option<String>,
    pub(crate) credit_type: Option<String>,
    pub(crate) created_at: Option<String>,
    pub(crate) refunded_points: Option<String>,
}

/// An order as it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) line: u64,
    pub(crate) order_id: Arc<str>,
    pub(crate) account: Account,
    pub(crate) points: u64,
    pub(crate) stage: Stage,
    pub(crate) status: Arc<str>,
    pub(crate) refunded_points: Option<u64>,
    /// Whether it was created within the time that is looked at. Another one is known, so that its ledger entries are not
    /// taken for entries without an order, but it is not judged.
    pub(crate) judged: bool,
}

/// How lines are read.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// The credit type of orders that name none.
    pub(crate) credit_type: String,
    pub(crate) statuses: Statuses,
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
}

impl Reading {
    /// The order on a line, or what is wrong with the line.
    pub(crate) fn order(&self, line: u64, fields: Fields) -> Result<Order, String> {
        let Fields { order_id, user_id, points, status, credit_type, created_at, refunded_points } = fields;
        let order_id = required("order_id", order_id)?;
        let order_id =
            BusinessKey::reserved("order", &order_id).map_err(|invalid| format!("order_id {}", invalid.reason))?;
        let user_id = required("user_id", user_id)?;
        let credit_type = given(credit_type).unwrap_or_else(|| self.credit_type.clone());
        let account = Account::new(&user_id, &credit_type).map_err(|invalid| invalid.to_string())?;
        let points = units("points", &required("points", points)?)?;
        let refunded_points = given(refunded_points).map(|text| units("refunded_points", &text)).transpose()?;
        let status = required("status", status)?;
        let stage = self.statuses.stage(&status).ok_or_else(|| {
            format!("status {status:?} is not known; say what it means with --status '{}=STAGE'", normal(&status))
        })?;
        let created_at = given(created_at)
            .map(|text| parse_time(&text).map_err(|reason| format!("created_at {reason}")))
            .transpose()?;
        let judged = created_at.is_none_or(|at| within(at, self.from, self.to));
        let order_id = order_id.id().clone();
        Ok(Order { line, order_id, account, points, stage, status: status.into(), refunded_points, judged })
    }
}

/// Whether an instant lies in a half-open range of time.
pub(crate) fn within(at: Timestamp, from: Option<Timestamp>, to: Option<Timestamp>) -> bool {
    from.is_none_or(|from| from <= at) && to.is_none_or(|to| at < to)
}

fn given(text: Option<String>) -> Option<String> {
    text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn required(field: &str, text: Option<String>) -> Result<String, String> {
    given(text).ok_or_else(|| format!("{field} is missing"))
}

fn units(field: &str, text: &str) -> Result<u64, String> {
    // `+5` is a number to the parser, and no figure that an order system writes.
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    number
        .filter(|number| *number <= MAX_AMOUNT)
        .ok_or_else(|| format!("{field} must be a whole number from 0 to {MAX_AMOUNT}, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading() -> Reading {
        Reading { credit_type: "points".into(), statuses: Statuses::with(&[]), from: None, to: None }
    }

    fn fields(status: &str, points: &str) -> Fields {
        let text = |text: &str| Some(text.to_owned());
        Fields {
            order_id: text("O1"),
            user_id: text("u1"),
            points: text(points),
            status: text(status),
            ..Fields::default()
        }
    }

    #[test]
    fn statuses_are_read_however_they_are_spelled() {
        for (status, stage) in [
            ("pending", Stage::Held),
            ("On-Hold", Stage::Held),
            (" PAID ", Stage::Taken),
            ("Completed", Stage::Taken),
            ("canceled", Stage::Cancelled),
            ("partially refunded", Stage::PartlyRefunded),
            ("REFUNDED", Stage::Refunded),
        ] {
            assert_eq!(reading().order(2, fields(status, "5")).map(|order| order.stage), Ok(stage), "{status}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_remedy() {
        for (status, points, says) in [
            ("closed", "5", "--status 'closed=STAGE'"),
            ("paid", "5.0", "points must be a whole number"),
            ("paid", "-5", "points must be a whole number"),
            ("paid", "+5", "points must be a whole number"),
            ("paid", "9007199254740992", "points must be a whole number"),
            ("paid", "", "points is missing"),
            ("", "5", "status is missing"),
        ] {
            let refused = reading().order(2, fields(status, points)).expect_err(status);
            assert!(refused.contains(says), "{status} {points}: {refused}");
        }
        let long = Fields { order_id: Some("x".repeat(129)), ..fields("paid", "5") };
        assert!(reading().order(2, long).expect_err("too long").contains("order_id must have 1 to 128 characters"));
    }

    #[test]
    fn an_own_word_for_a_stage_goes_before_the_usual_one() {
        let own = [parse_status("closed=cancelled").expect("read"), parse_status("processing=frozen").expect("read")];
        let reading = Reading { statuses: Statuses::with(&own), ..reading() };
        assert_eq!(reading.order(1, fields("Closed", "5")).map(|order| order.stage), Ok(Stage::Cancelled));
        assert_eq!(reading.order(1, fields("processing", "5")).map(|order| order.stage), Ok(Stage::Held));
        assert!(parse_status("closed=gone").expect_err("no stage").contains("frozen, deducted, cancelled"));
    }

    #[test]
    fn an_order_outside_the_range_is_known_but_not_judged() {
        let from = parse_time("2026-11-20").ok();
        let reading = Reading { from, ..reading() };
        let created = |at: &str| Fields { created_at: Some(at.to_owned()), ..fields("paid", "5") };
        assert_eq!(reading.order(1, created("2026-11-19 23:59:59")).map(|order| order.judged), Ok(false));
        assert_eq!(reading.order(1, created("2026-11-20")).map(|order| order.judged), Ok(true));
        assert_eq!(reading.order(1, fields("paid", "5")).map(|order| order.judged), Ok(true));
    }
}
