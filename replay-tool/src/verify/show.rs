//! What verification came to, for people and for programs.

use serde_json::{Map, Value, json};

use super::Verified;
use crate::{
    context::{Outcome, say},
    finding::Finding,
};

pub(super) fn show(verified: &Verified, as_json: bool) -> Outcome {
    if as_json {
        say!("{}", document(verified));
    } else {
        print(verified);
    }
    Outcome::of(verified.is_consistent())
}

/// The contract's JSON, and what else a program may want to know.
pub(super) fn document(verified: &Verified) -> Value {
    let findings = &verified.findings;
    let kinds: Map<_, _> = findings.kinds.iter().map(|(kind, count)| (kind.name().to_owned(), json!(count))).collect();
    json!({
        "consistent": verified.is_consistent(),
        "digest": verified.whole_digest(),
        "events": verified.events,
        "accounts": verified.accounts,
        "findings": findings.kept,
        "freezes": verified.freezes,
        "findings_count": findings.count,
        "findings_by_kind": kinds,
        "consequences": findings.consequences,
        "notices": findings.notices,
        "notices_count": findings.notices_count,
        "not_checked": verified.not_checked,
        "seconds": verified.took.as_secs_f64(),
    })
}

fn print(verified: &Verified) {
    let findings = &verified.findings;
    findings.kept.iter().for_each(print_finding);
    let more = findings.count - findings.kept.len() as u64;
    if more > 0 {
        say!("… and {more} more findings");
    }
    if findings.consequences > 0 {
        say!("{} contradictions more follow from these", findings.consequences);
    }
    if !findings.notices.is_empty() {
        say!("Not inconsistent, but worth knowing:");
        findings.notices.iter().for_each(print_finding);
        let more = findings.notices_count - findings.notices.len() as u64;
        if more > 0 {
            say!("… and {more} more notices");
        }
    }
    for left_out in &verified.not_checked {
        say!("not checked: {left_out}");
    }
    let digest =
        verified.whole_digest().map_or_else(|| "not of a part of the log".to_owned(), |digest| digest.to_string());
    say!("events    {}", verified.events);
    say!("accounts  {}", verified.accounts);
    say!("freezes   {}", verified.freezes);
    say!("digest    {digest}");
    say!("seconds   {:.1}", verified.took.as_secs_f64());
    if verified.is_consistent() {
        say!("consistent");
    } else {
        let kinds = findings.kinds.iter().map(|(kind, count)| format!("{count} {}", kind.name()));
        say!("INCONSISTENT: {} findings ({})", findings.count, kinds.collect::<Vec<_>>().join(", "));
    }
}

fn print_finding(finding: &Finding) {
    say!(
        "{:<20} partition {:>2} position {:>8}  {}",
        finding.kind.name(),
        finding.partition,
        finding.position.map_or_else(|| "-".to_owned(), |position| position.to_string()),
        whose(finding),
    );
    say!("    expected {}", finding.expected);
    say!("    found    {}", finding.found);
    for also in &finding.also {
        say!("    also     {also}");
    }
    say!("    remedy   {}", finding.remedy);
}

/// The account and the transaction that a finding is about.
pub(super) fn whose(finding: &Finding) -> String {
    let account = match (&finding.user_id, &finding.credit_type) {
        (Some(user_id), Some(credit_type)) => format!("{user_id}/{credit_type}"),
        _ => String::new(),
    };
    match &finding.transaction_id {
        Some(id) => format!("{account} transaction {id}").trim_start().to_owned(),
        None => account,
    }
}
