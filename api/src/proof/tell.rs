//! Who is told of what a proof found.

use ledger_core::{Account, Event};
use ledger_store::StoreError;
use projector::inconsistencies::{self, Finding};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{alerts::Alert, service::Service};

/// Alerts of one proof about rows that differ; the list of inconsistencies has the others, too.
const ALERTS_MAX: usize = 100;

/// How many alerts a proof raised.
#[derive(Debug, Default)]
pub(super) struct Told(usize);

/// Writes down that the log or a checkpoint is damaged, and tells of it once.
pub(super) async fn damage(service: &Service, finding: &Finding, told: &mut Told) -> Result<Uuid, StoreError> {
    let known = inconsistencies::record(&service.database, finding).await?;
    if known.outcome.is_some() {
        return Ok(known.id);
    }
    told.0 += 1;
    metrics::counter!("ledger_inconsistencies_total", "read_model" => finding.projection).increment(1);
    let is_log = finding.projection == inconsistencies::LOG;
    let (kind, what, remedy) = if is_log {
        let remedy = "run replay-tool verify, which names what is damaged, and replay-tool recover";
        ("log_damaged", "the log", remedy)
    } else {
        ("drift", "a read model's checkpoint", "run replay-tool rebuild")
    };
    service.alerts.raise(Alert {
        kind,
        account: None,
        figures: figures(finding, known.id),
        message: format!("{what} of partition {} is damaged at position {}", finding.partition, finding.position),
        remedy: remedy.to_owned(),
    });
    inconsistencies::set_outcome(&service.database, finding.partition, known.id, "reported", false).await?;
    Ok(known.id)
}

/// Tells of a row that is not what the log makes of it, and what was done about it.
pub(super) fn drift(service: &Service, finding: &Finding, id: Uuid, done: Option<&str>, told: &mut Told) {
    told.0 += 1;
    if told.0 > ALERTS_MAX {
        return;
    }
    let mut figures = figures(finding, id);
    figures.insert("outcome".to_owned(), json!(done));
    let names = finding.account.as_ref().map(names);
    let whose = names.as_ref().map_or("no account".to_owned(), |(user, credit)| format!("{user}/{credit}"));
    let remedy = match done {
        Some("mended") => "the row was mended: find out who wrote it".to_owned(),
        Some("locked") => {
            format!("run replay-tool rebuild --account {whose}, then POST /v1/inconsistencies/{id}/resolve")
        }
        _ if told.0 == ALERTS_MAX => "many rows differ: run replay-tool rebuild".to_owned(),
        _ => "run replay-tool verify, then replay-tool rebuild".to_owned(),
    };
    service.alerts.raise(Alert {
        kind: "drift",
        account: names,
        figures,
        message: format!(
            "a row of {} is not what the log makes of it: {} of {whose}",
            finding.projection, finding.kind
        ),
        remedy,
    });
}

/// Calls a person to an account that was locked.
pub(super) fn locked(service: &Service, account: &Account, id: Uuid, size: u64, event: &Event) {
    let (user_id, credit_type) = names(account);
    service.alerts.raise(Alert {
        kind: "account_locked",
        figures: Map::from_iter([
            ("inconsistency_id".to_owned(), json!(id)),
            ("transaction_id".to_owned(), json!(event.transaction_id)),
            ("size".to_owned(), json!(size)),
        ]),
        message: format!("{user_id}/{credit_type} is locked: what is served of it is off by {size} units"),
        remedy: format!(
            "find out who wrote the row, run replay-tool rebuild --account {user_id}/{credit_type}, then \
             POST /v1/inconsistencies/{id}/resolve with \"unlock\": true"
        ),
        account: Some((user_id, credit_type)),
    });
}

fn names(account: &Account) -> (String, String) {
    (account.user_id().to_string(), account.credit_type().to_string())
}

fn figures(finding: &Finding, id: Uuid) -> Map<String, Value> {
    Map::from_iter([
        ("inconsistency_id".to_owned(), json!(id)),
        ("kind".to_owned(), json!(finding.kind)),
        ("read_model".to_owned(), json!(finding.projection)),
        ("partition".to_owned(), json!(finding.partition)),
        ("position".to_owned(), json!(finding.position)),
        ("size".to_owned(), json!(finding.size)),
        ("expected".to_owned(), json!(finding.expected)),
        ("found".to_owned(), json!(finding.found)),
    ])
}
