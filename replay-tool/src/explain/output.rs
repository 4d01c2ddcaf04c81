//! What is said of an account, as JSON and for people.

use ledger_core::{Balance, json::Transaction};
use serde_json::{Value, json};

use super::{
    Arguments,
    fold::{Explained, Refundable},
    served::Served,
};
use crate::{
    context::say,
    report::{Report, thousands},
};

impl Explained {
    pub(super) fn is_consistent(&self) -> bool {
        self.parts.unreadable.is_empty()
            && self.parts.contradictions.is_empty()
            && self.parts.served.as_ref().is_none_or(|served| served.differences.is_empty())
    }

    /// Where the next page begins, if there is one.
    fn next_before(&self) -> Option<u64> {
        self.parts.events.front().map(|event| event.after.version).filter(|version| *version > 1)
    }

    fn refundable_units(&self) -> u64 {
        self.parts.refundable.values().map(|deduction| deduction.left).fold(0, u64::saturating_add)
    }

    /// The one document that `--json` prints.
    pub(super) fn json(&self, arguments: &Arguments) -> Value {
        let Balance { account, state, position, updated_at } = &self.balance;
        let freezes = self.parts.freezes.values().rev().map(|freeze| {
            json!({
                "freeze_id": freeze.freeze_id, "amount": freeze.amount, "remaining": freeze.remaining,
                "captured": freeze.captured, "released": freeze.released, "expires_at": freeze.expires_at,
                "business_code": &**freeze.key.code(), "business_id": &**freeze.key.id(), "created_at": freeze.created_at,
            })
        });
        let refunds = self.parts.refundable.values().rev().take(arguments.limit).map(|deduction| {
            json!({
                "debit_id": deduction.id, "amount": deduction.amount, "refundable": deduction.left,
                "business_code": &**deduction.key.code(), "business_id": &**deduction.key.id(), "recorded_at": deduction.recorded_at,
            })
        });
        let moved = self
            .parts
            .moved
            .iter()
            .map(|(name, (count, units))| ((*name).to_owned(), json!({ "events": count, "amount": units })));
        let contradictions = self.parts.contradictions.iter().map(|contradiction| {
            json!({
                "position": contradiction.position, "field": contradiction.field,
                "expected": contradiction.expected, "found": contradiction.found,
            })
        });
        json!({
            "consistent": self.is_consistent(),
            "user_id": &**account.user_id(), "credit_type": &**account.credit_type(), "account_id": account.id(),
            "partition": account.partition(), "position": position, "at": arguments.at, "updated_at": updated_at,
            "balance": state.balance, "frozen": state.frozen, "available": state.available(),
            "version": state.version, "status": self.balance.status(),
            "moved": moved.collect::<serde_json::Map<_, _>>(),
            "events": self.parts.events.iter().rev().map(|event| json!(Transaction::from(event))).collect::<Vec<_>>(),
            "next_before": self.next_before(),
            "open_freezes": freezes.collect::<Vec<_>>(),
            "refunds_possible": refunds.collect::<Vec<_>>(),
            "refunds_possible_count": self.parts.refundable.len(),
            "refundable": self.refundable_units(),
            "read_model": self.parts.served.as_ref().map(Served::verdict),
            "read_model_differences": self.parts.served.as_ref().map(|served| &served.differences),
            "contradictions": contradictions.collect::<Vec<_>>(),
            "unreadable": self.parts.unreadable,
        })
    }

    /// The same for people.
    pub(super) fn print(&self, arguments: &Arguments) {
        let Balance { account, state, updated_at, .. } = &self.balance;
        say!("account    {}/{}, {}", account.user_id(), account.credit_type(), self.balance.status());
        say!("version    {}, of {updated_at}", state.version);
        say!("balance    {}", state.balance);
        say!("frozen     {}", state.frozen);
        say!("available  {}", state.available());
        for (name, (count, units)) in &self.parts.moved {
            say!("{name:<10} {units} by {count} events");
        }
        say!(
            "\n{:>8} {:<27} {:<9} {:>12} {:>12} {:>12}  business key",
            "version",
            "recorded at",
            "type",
            "amount",
            "balance",
            "frozen"
        );
        for event in &self.parts.events {
            let amount = event.amount.map_or_else(String::new, |amount| amount.units().to_string());
            say!(
                "{:>8} {:<27} {:<9} {amount:>12} {:>12} {:>12}  {} {}",
                event.after.version,
                event.recorded_at,
                event.event_type.name(),
                event.after.balance,
                event.after.frozen,
                event.key.code(),
                event.key.id()
            );
        }
        if let Some(before) = self.next_before() {
            say!("earlier events: --before {before}");
        }
        if !self.parts.freezes.is_empty() {
            say!("\nopen freezes");
        }
        for freeze in self.parts.freezes.values() {
            let expires = freeze.expires_at.map(|at| format!(", expires {at}")).unwrap_or_default();
            say!(
                "    {} of {}  {} {}  since {}{expires}  {}",
                freeze.remaining,
                freeze.amount,
                freeze.key.code(),
                freeze.key.id(),
                freeze.created_at,
                freeze.freeze_id
            );
        }
        if !self.parts.refundable.is_empty() {
            say!(
                "\nrefunds that are still possible: {} of {} deductions",
                self.refundable_units(),
                self.parts.refundable.len()
            );
        }
        for deduction in self.parts.refundable.values().rev().take(arguments.limit) {
            let Refundable { id, amount, left, key, recorded_at } = deduction;
            say!("    {left} of {amount}  {} {}  {recorded_at}  {id}", key.code(), key.id());
        }
        for contradiction in &self.parts.contradictions {
            say!("\ncontradiction at {contradiction}: run replay-tool verify");
        }
        for why in &self.parts.unreadable {
            say!("\n{why}: whose event that was is not known: run replay-tool verify");
        }
        if let Some(served) = &self.parts.served {
            say!("\nread model {}", served.verdict());
            for difference in &served.differences {
                say!("    {difference}: run replay-tool rebuild");
            }
        }
    }

    /// The same as a page.
    pub(super) fn report(&self, arguments: &Arguments) -> Report {
        let Balance { account, state, updated_at, .. } = &self.balance;
        let name = format!("{}/{}", account.user_id(), account.credit_type());
        let mut report = Report::new(format!("The account {name}"));
        let verdict = match (self.is_consistent(), &self.parts.served) {
            (true, None) => "The balance follows from the events.".to_owned(),
            (true, Some(served)) => {
                format!("The balance follows from the events; the read model {}.", served.verdict())
            }
            (false, _) => "Something contradicts the events: see below, and run replay-tool verify.".to_owned(),
        };
        report.verdict(self.is_consistent(), &verdict);
        let mut facts = vec![
            ("balance".to_owned(), thousands(state.balance)),
            ("frozen".to_owned(), thousands(state.frozen)),
            ("available".to_owned(), thousands(state.available())),
            ("version".to_owned(), format!("{}, of {updated_at}", state.version)),
            ("status".to_owned(), self.balance.status().to_owned()),
        ];
        let moved = self.parts.moved.iter();
        facts.extend(moved.map(|(name, (count, units))| {
            ((*name).to_owned(), format!("{} by {} events", thousands(*units), thousands(*count)))
        }));
        report.facts("Where it stands", facts);
        report.line("The balance over its whole life", "version of the account", "balance", &self.parts.curve.points());
        self.report_faults(&mut report);
        let freezes = self.parts.freezes.values().map(|freeze| {
            vec![
                format!("{} {}", freeze.key.code(), freeze.key.id()),
                freeze.remaining.to_string(),
                freeze.amount.to_string(),
                freeze.created_at.to_string(),
                freeze.expires_at.map(|at| at.to_string()).unwrap_or_default(),
                freeze.freeze_id.to_string(),
            ]
        });
        report.table("Open freezes", &["order", "remaining", "of", "since", "expires", "freeze"], freezes);
        let refundable = self.parts.refundable.values().rev().map(|deduction| {
            let Refundable { id, amount, left, key, recorded_at } = deduction;
            let order = format!("{} {}", key.code(), key.id());
            vec![order, left.to_string(), amount.to_string(), recorded_at.to_string(), id.to_string()]
        });
        let refundable = refundable.take(arguments.limit);
        report.table("Refunds that are still possible", &["order", "rest", "of", "since", "deduction"], refundable);
        let events = self.parts.events.iter().rev().map(|event| {
            vec![
                event.after.version.to_string(),
                event.recorded_at.to_string(),
                event.event_type.name().to_owned(),
                event.amount.map(|amount| amount.units().to_string()).unwrap_or_default(),
                event.after.balance.to_string(),
                event.after.frozen.to_string(),
                format!("{} {}", event.key.code(), event.key.id()),
                event.actor.to_string(),
                event.description.as_deref().unwrap_or_default().to_owned(),
            ]
        });
        let header =
            ["version", "recorded at", "type", "amount", "balance", "frozen", "business key", "actor", "description"];
        report.table("Events, newest first", &header, events);
        report
    }

    fn report_faults(&self, report: &mut Report) {
        let contradictions = self.parts.contradictions.iter().map(ToString::to_string);
        let served = self.parts.served.iter().flat_map(|served| served.differences.iter().cloned());
        let faults: Vec<_> = contradictions.chain(self.parts.unreadable.iter().cloned()).chain(served).collect();
        if !faults.is_empty() {
            report.table("What is wrong", &["fault"], faults.into_iter().map(|fault| vec![fault]));
        }
    }
}
