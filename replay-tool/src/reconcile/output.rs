//! What reconciliation says: the full list in files, figures and the first of it in JSON, text and a page.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    Reconciliation,
    mismatch::{Kind, Mismatch},
};
use crate::{
    context::{Failure, say},
    report::{Report, thousands},
};

/// Mismatches that the text shows.
const SHOWN_MAX: usize = 20;
/// Mismatches that the page shows.
const ROWS_MAX: usize = 1_000;

const COLUMNS: [&str; 16] = [
    "kind",
    "order_id",
    "user_id",
    "credit_type",
    "line",
    "order_status",
    "order_points",
    "credit_status",
    "credit_points",
    "expected",
    "found",
    "transactions",
    "outcome",
    "remedy",
    "refusal",
    "commands",
];

/// The full list, written as it is found, and put into place when it is whole.
pub(crate) struct Lists {
    folder: PathBuf,
    csv: csv::Writer<BufWriter<File>>,
    ndjson: BufWriter<File>,
    service: String,
}

impl Lists {
    pub(crate) fn start(folder: &Path, service: &str) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| failed(folder, &error);
        std::fs::create_dir_all(folder).map_err(failed)?;
        let file = |name: &str| File::create(folder.join(partial(name))).map(BufWriter::new).map_err(failed);
        let mut csv = csv::Writer::from_writer(file(CSV)?);
        csv.write_record(COLUMNS).map_err(|error| failed(error.into()))?;
        Ok(Self { folder: folder.to_owned(), csv, ndjson: file(NDJSON)?, service: service.to_owned() })
    }

    pub(crate) fn add(&mut self, mismatch: &Mismatch) -> Result<(), Failure> {
        self.write(mismatch).map_err(|error| failed(&self.folder, &error))
    }

    fn write(&mut self, mismatch: &Mismatch) -> std::io::Result<()> {
        serde_json::to_writer(&mut self.ndjson, &mismatch.json(&self.service))?;
        self.ndjson.write_all(b"\n")?;
        let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
        let ids: Vec<_> = mismatch.transactions.iter().map(ToString::to_string).collect();
        let cells = [
            mismatch.kind.name().to_owned(),
            mismatch.order_id.to_string(),
            mismatch.account.user_id().to_string(),
            mismatch.account.credit_type().to_string(),
            number(mismatch.line),
            mismatch.order_status.as_deref().unwrap_or_default().to_owned(),
            number(mismatch.order_points),
            mismatch.credit_status.to_owned(),
            mismatch.credit_points.to_string(),
            mismatch.expected.clone(),
            mismatch.found.clone(),
            ids.join(" "),
            mismatch.outcome_name().to_owned(),
            mismatch.settlement.remedy.clone(),
            refusal(mismatch),
            mismatch.commands(&self.service).join("\n"),
        ];
        self.csv.write_record(cells)?;
        Ok(())
    }

    /// Puts both lists into place.
    pub(crate) fn finish(self) -> Result<[PathBuf; 2], Failure> {
        let Self { folder, csv, ndjson, .. } = self;
        let finish = || -> std::io::Result<[PathBuf; 2]> {
            let csv = csv.into_inner().map_err(csv::IntoInnerError::into_error)?;
            for file in [csv, ndjson] {
                file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
            }
            let paths = [CSV, NDJSON].map(|name| folder.join(name));
            for (name, path) in [CSV, NDJSON].iter().zip(&paths) {
                std::fs::rename(folder.join(partial(name)), path)?;
            }
            Ok(paths)
        };
        finish().map_err(|error| failed(&folder, &error))
    }
}

const CSV: &str = "mismatches.csv";
const NDJSON: &str = "mismatches.ndjson";

fn partial(name: &str) -> String {
    format!("{name}.partial")
}

fn failed(folder: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!(
        "the mismatches cannot be written to {}: {error}; name a folder that may be written to with --out",
        folder.display()
    ))
}

fn refusal(mismatch: &Mismatch) -> String {
    match &mismatch.outcome {
        super::mismatch::Outcome::Refused { code, detail } => format!("{code}: {detail}"),
        _ => String::new(),
    }
}

impl Reconciliation {
    /// The one document that `--json` prints.
    pub(crate) fn json(&self) -> Value {
        let counts = Kind::ALL.map(|kind| (kind.name().to_owned(), json!(self.count(kind))));
        json!({
            "consistent": self.is_consistent(),
            "orders": self.orders,
            "orders_compared": self.orders - self.outside,
            "orders_outside_range": self.outside,
            "orders_untouched": self.untouched,
            "events": self.events,
            "mismatches_count": self.mismatches,
            "counts": counts.into_iter().collect::<serde_json::Map<_, _>>(),
            "settled": self.settled,
            "refused": self.refused,
            "settleable": self.settleable,
            "remaining": self.remaining(),
            "mismatches": self.kept.iter().map(|mismatch| json!(mismatch.json(&self.service))).collect::<Vec<_>>(),
            "lists": self.lists.iter().flatten().map(|path| path.display().to_string()).collect::<Vec<_>>(),
            "seconds": self.took.as_secs_f64(),
        })
    }

    /// The same for people.
    pub(crate) fn print(&self) {
        for mismatch in self.kept.iter().take(SHOWN_MAX) {
            let line = mismatch.line.map(|line| format!(", line {line}")).unwrap_or_default();
            let account = &mismatch.account;
            say!(
                "{:<27} {} of {}/{}{line}",
                mismatch.kind.name(),
                mismatch.order_id,
                account.user_id(),
                account.credit_type()
            );
            say!("    expected {}", mismatch.expected);
            say!("    found    {}", mismatch.found);
            match (&mismatch.outcome, mismatch.is_settled()) {
                (_, true) => say!("    settled"),
                (super::mismatch::Outcome::Refused { .. }, _) => say!("    refused  {}", refusal(mismatch)),
                _ => {
                    say!("    remedy   {}", mismatch.settlement.remedy);
                    for command in mismatch.commands(&self.service) {
                        say!("    command  {command}");
                    }
                }
            }
        }
        let more = self.mismatches - self.kept.len().min(SHOWN_MAX) as u64;
        if more > 0 {
            say!("… and {} more; --out DIR writes all of them", thousands(more));
        }
        for (name, value) in self.facts() {
            say!("{name:<27} {value}");
        }
        for path in self.lists.iter().flatten() {
            say!("written                     {}", path.display());
        }
        say!("{}", self.sentence());
    }

    /// A page of its own.
    pub(crate) fn report(&self) -> Report {
        let mut report = Report::new("Orders and ledger");
        report.verdict(self.is_consistent(), &self.sentence());
        self.add_to(&mut report);
        report
    }

    /// Its part of a larger page.
    pub(crate) fn add_to(&self, report: &mut Report) {
        report.facts("Reconciliation of orders", self.facts());
        if self.mismatches == 0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a bar is no wider for one mismatch in 2^52")]
        let bars = Kind::ALL.map(|kind| (kind.name().to_owned(), self.count(kind) as f64));
        report.bars("Mismatches by kind", "orders", bars);
        let rows = self.kept.iter().take(ROWS_MAX).map(|mismatch| {
            let account = &mismatch.account;
            vec![
                mismatch.kind.name().to_owned(),
                mismatch.order_id.to_string(),
                format!("{}/{}", account.user_id(), account.credit_type()),
                mismatch.expected.clone(),
                mismatch.found.clone(),
                mismatch.outcome_name().replace('_', " "),
                if mismatch.is_settled() {
                    String::new()
                } else {
                    let mut remedy = vec![mismatch.settlement.remedy.clone(), refusal(mismatch)];
                    remedy.extend(mismatch.commands(&self.service));
                    remedy.retain(|part| !part.is_empty());
                    remedy.join(" — ")
                },
            ]
        });
        report.table("Mismatches", &["kind", "order", "account", "expected", "found", "outcome", "what to do"], rows);
        let more = self.mismatches.saturating_sub(ROWS_MAX as u64);
        if more > 0 {
            let sentence = format!("{} more mismatches are in the lists that --out DIR writes.", thousands(more));
            report.text("Further mismatches", &sentence);
        }
    }

    fn facts(&self) -> Vec<(String, String)> {
        let mut facts = vec![
            ("orders".to_owned(), thousands(self.orders)),
            ("events of the ledger".to_owned(), thousands(self.events)),
        ];
        if self.outside > 0 {
            facts.push(("orders outside the range".to_owned(), thousands(self.outside)));
        }
        if self.untouched > 0 {
            facts.push(("orders without effect".to_owned(), thousands(self.untouched)));
        }
        facts.extend(Kind::ALL.map(|kind| (kind.name().to_owned(), thousands(self.count(kind)))));
        facts.push(("mismatches".to_owned(), thousands(self.mismatches)));
        facts.push(("settled".to_owned(), thousands(self.settled)));
        if self.refused > 0 {
            facts.push(("settlements refused".to_owned(), thousands(self.refused)));
        }
        facts.push(("remaining".to_owned(), thousands(self.remaining())));
        facts.push(("seconds".to_owned(), format!("{:.1}", self.took.as_secs_f64())));
        facts
    }

    fn sentence(&self) -> String {
        let remaining = self.remaining();
        if remaining == 0 && self.settled == 0 {
            return "Orders and ledger agree.".to_owned();
        }
        if remaining == 0 {
            return format!("Orders and ledger agree: {} mismatches were settled.", thousands(self.settled));
        }
        let mut sentence = format!("Orders and ledger disagree: {} mismatches remain", thousands(remaining));
        if self.settleable > 0 {
            sentence += &format!("; --settle settles {} of them", thousands(self.settleable));
        }
        sentence + "."
    }
}
