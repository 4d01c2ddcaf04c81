//! The report of a recovery, for a person and for a program.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value, json};

use super::steps::{Record, State, now};
use crate::{
    context::Failure,
    report::{Report, thousands, write_whole},
};

/// The document of a recovery that came to its end.
pub(super) fn document(record: &Record, outcome: bool) -> Value {
    let mut seconds: BTreeMap<&str, f64> = BTreeMap::new();
    let mut order: Vec<&str> = Vec::new();
    for step in &record.steps {
        if !order.contains(&&*step.step) {
            order.push(&step.step);
        }
        *seconds.entry(&step.step).or_default() += step.seconds.unwrap_or(0.0);
    }
    let timings: Vec<_> = order.iter().map(|step| json!({ "step": step, "seconds": seconds[step] })).collect();
    let mut document = Map::new();
    document.insert("recovered".to_owned(), json!(outcome));
    document.insert("recovery_id".to_owned(), json!(record.recovery_id));
    document.insert("database".to_owned(), json!(record.database));
    document.insert("began_at".to_owned(), json!(record.began_at));
    document.insert("finished_at".to_owned(), json!(now()));
    document.insert("attempts".to_owned(), json!(record.attempts));
    if let Value::Object(facts) = json!(record.facts) {
        document.extend(facts);
    }
    document.insert("backup".to_owned(), record.backup.clone().unwrap_or(Value::Null));
    document.insert("timings".to_owned(), json!(timings));
    Value::Object(document)
}

/// Writes both forms.
pub(super) fn write(record: &mut Record, document: &Value) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(document).map_err(|error| Failure::new(error.to_string()))?;
    page(document).write(&record.folder().join("report.html"))?;
    write_whole(&record.folder().join("report.json"), &text)?;
    record.state = State::Done;
    record.keep()
}

/// What the recovery came to, in a sentence.
pub(super) fn sentence(document: &Value) -> String {
    let lost = number(&document["lost"]["positions"]);
    let contradicted = rows(&document["lost"]["contradictions"]).len() as u64;
    let action = match document["action"].as_str() {
        Some("restored") => "The log was restored",
        Some("rebuilt") => "The read models were made anew",
        _ => "Nothing had to be mended",
    };
    let loss = if lost > 0 {
        format!("{} events are lost; the partitions and positions are named", thousands(lost))
    } else if contradicted > 0 {
        format!(
            "at {} positions other events are told of than stand there now; the partitions and positions are named",
            thousands(contradicted)
        )
    } else if document["lost"]["cannot_know"].is_string() {
        "no loss is known, but not everything can be known".to_owned()
    } else if document["lost"]["left_behind"] == true {
        "nothing is lost but what an earlier restore left behind, which its report names".to_owned()
    } else {
        "nothing is lost".to_owned()
    };
    let verified = if document["verified"]["consistent"] == true {
        "the ledger is consistent"
    } else {
        "the ledger is not consistent: see what was found"
    };
    format!("{action}; {loss}; {verified}.")
}

fn page(document: &Value) -> Report {
    let mut report = Report::new("Recovery of a ledger");
    report.verdict(document["recovered"] == true, &sentence(document));
    let text = |value: &Value| match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let fact = |name: &str, value: &Value| (name.to_owned(), text(value));
    let found = &document["found"];
    let left_out: Vec<_> = rows(&document["left_out"]).iter().filter_map(Value::as_str).collect();
    let left_out = if left_out.is_empty() { Value::Null } else { json!(left_out.join(", ")) };
    report.facts(
        "What happened",
        [
            fact("Database", &document["database"]),
            fact("Began", &document["began_at"]),
            fact("Finished", &document["finished_at"]),
            fact("Found", &found["state"]),
            fact("Severity", &found["severity"]),
            fact("Why", &found["why"]),
            fact("Done", &document["action"]),
            fact("Archive", &document["archive"]["archive_id"]),
            fact("Archive taken", &document["archive"]["created_at"]),
            fact("Epoch now", &document["epoch"]),
            fact("What was there is kept in", &document["kept"]),
            fact("Tables that could not be taken along", &left_out),
            fact("Backup before anything was touched", &document["backup"]["folder"]),
        ],
    );
    report.facts(
        "Digest of balances and freezes",
        [
            fact("Before, as the damaged log gives it", &document["digest"]["before"]),
            fact("In the archive", &document["digest"]["archive"]),
            fact("After", &document["digest"]["after"]),
        ],
    );
    events_and_losses(&mut report, document, &text);
    mended(&mut report, document, &text);
    let timings = rows(&document["timings"]);
    report.bars(
        "Time of each step",
        "s",
        timings.iter().map(|step| (text(&step["step"]), step["seconds"].as_f64().unwrap_or(0.0))),
    );
    for next in rows(&document["next"]) {
        report.text("To be done by a person", &text(next));
    }
    report
}

fn events_and_losses(report: &mut Report, document: &Value, text: &dyn Fn(&Value) -> String) {
    let (events, lost) = (&document["events"], &document["lost"]);
    let count = |name: &str, value: &Value| (name.to_owned(), thousands(number(value)));
    let rate = document["success_rate"].as_f64().map_or("–".to_owned(), |rate| format!("{:.4} %", rate * 100.0));
    report.facts(
        "Events",
        [
            count("In the ledger now", &events["events"]),
            count("From the archive", &events["from_archive"]),
            count("From the stream", &events["from_stream"]),
            count("From the database itself", &events["from_database"]),
            count("Known to be lost", &lost["positions"]),
            ("Recovered, of all that is known".to_owned(), rate),
        ],
    );
    let sources = [("archive", "from_archive"), ("stream", "from_stream"), ("database", "from_database")];
    report.bars(
        "Where the events came from",
        "events",
        sources.map(|(name, field)| (name.to_owned(), float(&events[field]))),
    );
    if number(&events["from_database"]) > 0 {
        report.text(
            "Events of the damaged database",
            "Some events were found only in the database that was damaged. They continue the hash chain without a gap, but \
             nothing outside that database vouches for them.",
        );
    }
    let missing = rows(&lost["partitions"]);
    if !missing.is_empty() {
        report.table(
            "What is lost",
            &["Partition", "From position", "To position", "Events", "Told by"],
            missing
                .iter()
                .map(|row| ["partition", "from", "to", "count", "told_by"].map(|field| text(&row[field])).to_vec()),
        );
        report.bars(
            "Lost by partition",
            "events",
            missing.iter().map(|row| (text(&row["partition"]), float(&row["count"]))),
        );
    }
    if let Some(open) = lost["cannot_know"].as_str() {
        report.text("What cannot be known", open);
    }
    table(
        report,
        "Told otherwise by a witness",
        &lost["contradictions"],
        &["partition", "position", "told_by", "expected", "found"],
    );
    table(report, "Batches that were not whole", &events["batches_cut"]["named"], &["batch_id", "size", "held"]);
    table(
        report,
        "Found and not taken",
        &events["refused"]["named"],
        &["source", "sequence", "partition", "epoch", "position", "why"],
    );
}

fn mended(report: &mut Report, document: &Value, text: &dyn Fn(&Value) -> String) {
    let mended = rows(&document["mended"]);
    if !mended.is_empty() {
        report.table("What was mended", &["What"], mended.iter().map(|line| vec![text(line)]));
    }
    let finding = ["kind", "partition", "position", "user_id", "credit_type", "expected", "found", "remedy"];
    table(report, "What was found before", &document["found"]["findings"]["named"], &finding);
    table(report, "What is found now", &document["verified"]["findings"]["named"], &finding);
    let locks = &document["locks"];
    table(
        report,
        "Accounts that were unlocked",
        &locks["unlocked_accounts"],
        &["user_id", "credit_type", "locked_at", "business_code"],
    );
    table(
        report,
        "Accounts that the ledger locked, with open work: a person must look",
        &locks["open_work_accounts"],
        &["user_id", "credit_type", "locked_at", "business_code", "frozen"],
    );
    let reconciled = &document["reconciliation"];
    if reconciled.is_object() {
        report.facts(
            "Orders",
            ["orders", "mismatches_count", "settleable", "remaining"]
                .map(|field| (field.replace('_', " "), text(&reconciled[field]))),
        );
        table(report, "Orders that disagree", &reconciled["mismatches"], &["kind", "order_id", "expected", "found"]);
    }
}

/// A table of objects, when there are some.
fn table(report: &mut Report, heading: &str, list: &Value, fields: &[&str]) {
    let list = rows(list);
    if list.is_empty() {
        return;
    }
    let header: Vec<String> = fields.iter().map(|field| field.replace('_', " ")).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let cell = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    report.table(heading, &header, list.iter().map(|row| fields.iter().map(|field| cell(&row[*field])).collect()));
}

fn rows(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn float(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

/// Where a person finds the report.
pub(super) fn place(folder: &Path) -> String {
    folder.join("report.html").display().to_string()
}
