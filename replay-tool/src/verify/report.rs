//! The report of a verification: one page for whoever has to know afterwards.

use super::{Verified, show::whose};
use crate::{finding::Finding, report::Report};

const HEADER: [&str; 7] = ["Kind", "Partition", "Position", "Whose", "Expected", "Found", "What mends it"];

/// The report of a verification of the ledger at `place`.
pub(super) fn page(verified: &Verified, place: &str) -> Report {
    let findings = &verified.findings;
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut facts = vec![
        fact("Ledger", place.to_owned()),
        fact("Events", verified.events.to_string()),
        fact("Accounts", verified.accounts.to_string()),
        fact("Freezes", verified.freezes.to_string()),
        fact(
            "Digest of balances and freezes",
            verified.whole_digest().map_or("-".to_owned(), |digest| digest.to_string()),
        ),
        fact("Findings", findings.count.to_string()),
        fact("Contradictions that follow from them", findings.consequences.to_string()),
        fact("Notices", findings.notices_count.to_string()),
        fact("Seconds", format!("{:.1}", verified.took.as_secs_f64())),
    ];
    facts.extend(verified.not_checked.iter().map(|left_out| fact("Not checked", (*left_out).to_owned())));
    let sentence = if !verified.is_consistent() {
        format!("Inconsistent: {} findings.", findings.count)
    } else if verified.not_checked.is_empty() {
        "Consistent: the log, the indexes and the read models agree.".to_owned()
    } else {
        "Consistent, as far as it was checked.".to_owned()
    };
    let mut report = Report::new("Verification of the ledger");
    report.verdict(verified.is_consistent(), &sentence);
    report.facts("What was looked at", facts);
    if findings.count > 0 {
        #[expect(clippy::cast_precision_loss, reason = "a chart shows no more digits")]
        let bars = findings.kinds.iter().map(|(kind, count)| (kind.name().to_owned(), *count as f64));
        report.bars("Findings by kind", "findings", bars);
        report.table("Findings", &HEADER, findings.kept.iter().map(row));
    }
    if findings.notices_count > 0 {
        report.table("Notices: not inconsistent, but worth knowing", &HEADER, findings.notices.iter().map(row));
    }
    if verified.partitions.len() > 1 {
        #[expect(clippy::cast_precision_loss, reason = "a chart shows no more digits")]
        let bars = verified.partitions.iter().map(|(partition, events)| (partition.to_string(), *events as f64));
        report.bars("Events by partition", "events", bars);
    }
    report
}

fn row(finding: &Finding) -> Vec<String> {
    let mut found = finding.found.clone();
    for also in &finding.also {
        found.push_str("; also ");
        found.push_str(also);
    }
    vec![
        finding.kind.name().to_owned(),
        finding.partition.to_string(),
        finding.position.map_or_else(String::new, |position| position.to_string()),
        whose(finding),
        finding.expected.clone(),
        found,
        finding.remedy.to_owned(),
    ]
}
