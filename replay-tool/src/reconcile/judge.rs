//! The judgement of one order: what the order system says against what the ledger did.

use super::{
    mismatch::{Kind, Mismatch, Outcome, Settlement, Step},
    order::Stage,
    tally::{Claim, Deducted, Entry},
};

/// What the comparison of one order comes to.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) mismatches: Vec<Mismatch>,
    /// Cancelled before the ledger heard of it: nothing is there, and nothing has to be.
    pub(crate) untouched: bool,
}

/// Compares one order.
pub(crate) fn judge(entry: &Entry) -> Verdict {
    let Some(claim) = &entry.claim else {
        return Verdict { mismatches: vec![without_order(entry)], untouched: false };
    };
    let mut verdict = Verdict::default();
    let lines = std::iter::once(claim).chain(&entry.again);
    if !lines.clone().any(|claim| claim.judged) {
        return verdict;
    }
    verdict.mismatches.extend(entry.again.iter().map(|again| duplicate(entry, claim, again)));
    let Some(mut difference) = compare(entry, claim) else {
        verdict.untouched = !entry.seen;
        return verdict;
    };
    let settlement = &mut difference.settlement;
    if entry.again.iter().any(|again| (again.points, again.stage) != (claim.points, claim.stage)) {
        settlement.automatic = false;
        settlement.remedy = "the lines of this order contradict each other: find out which is right first".to_owned();
    }
    let rest = if settlement.automatic { compare_rest(entry, claim, &settlement.steps) } else { None };
    let differences = std::iter::once(difference).chain(rest);
    verdict.mismatches.extend(differences.map(|Difference { kind, settlement }| {
        mismatch(entry, Some(claim), kind, expected(claim), describe(entry), settlement)
    }));
    verdict
}

struct Difference {
    kind: Kind,
    settlement: Settlement,
}

/// A settlement that is right whatever else may be true.
fn automatic(kind: Kind, steps: Vec<Step>) -> Option<Difference> {
    let remedy = "replay-tool reconcile --settle does it".to_owned();
    Some(Difference { kind, settlement: Settlement { automatic: true, steps, remedy } })
}

/// A settlement that a person has to decide on.
fn by_hand(kind: Kind, steps: Vec<Step>, remedy: &str) -> Option<Difference> {
    Some(Difference { kind, settlement: Settlement { automatic: false, steps, remedy: remedy.to_owned() } })
}

fn compare(entry: &Entry, claim: &Claim) -> Option<Difference> {
    if claim.points == 0 {
        return compare_nothing(entry);
    }
    if entry.seen {
        return match claim.stage {
            Stage::Held => compare_held(entry, claim.points),
            Stage::Taken => compare_taken(entry, claim.points),
            Stage::Cancelled => compare_cancelled(entry, claim.points),
            Stage::Refunded => compare_refunded(entry, claim.points),
            Stage::PartlyRefunded => compare_partly_refunded(entry, claim),
        };
    }
    let missing = Kind::MissingCreditTransaction;
    let points = claim.points;
    match claim.stage {
        // It may have been refused for want of points: then there was never anything to keep.
        Stage::Cancelled => None,
        Stage::Held => by_hand(
            missing,
            vec![Step::Freeze { amount: points }],
            "find out why nothing was frozen; then freeze the points, or cancel the order",
        ),
        Stage::Taken => by_hand(
            missing,
            vec![Step::Debit { amount: points }],
            "find out whether the points were lost or never asked for; then deduct them, or correct the order",
        ),
        Stage::Refunded => {
            by_hand(missing, Vec::new(), "nothing is owed in the end; find out why the ledger never heard of the order")
        }
        Stage::PartlyRefunded => {
            let owed = points.saturating_sub(claim.refunded_points.unwrap_or(points));
            let steps = if owed > 0 { vec![Step::Debit { amount: owed }] } else { Vec::new() };
            by_hand(missing, steps, "find out whether the points were lost or never asked for")
        }
    }
}

/// What a person still has to look at once these steps are done: the next run over the same orders would find it.
fn compare_rest(entry: &Entry, claim: &Claim, steps: &[Step]) -> Option<Difference> {
    let mut rest = compare(&after(entry, steps), claim)?;
    rest.settlement.remedy = format!("once --settle has done its part: {}", rest.settlement.remedy);
    Some(rest)
}

/// The order as it is once these steps are done.
fn after(entry: &Entry, steps: &[Step]) -> Entry {
    let mut entry = entry.clone();
    for step in steps {
        match *step {
            Step::Capture { freeze: id, amount } => {
                for freeze in entry.freezes.iter_mut().filter(|freeze| freeze.id == id) {
                    freeze.remaining = freeze.remaining.saturating_sub(amount);
                }
                // It has no id of its own before it is recorded; its freeze's stands for it.
                entry.deductions.push(Deducted { id, amount, refunded: 0, freeze: Some(id) });
            }
            Step::Release { freeze: id, amount } => {
                for freeze in entry.freezes.iter_mut().filter(|freeze| freeze.id == id) {
                    freeze.remaining = freeze.remaining.saturating_sub(amount);
                    freeze.released += amount;
                }
                entry.settled = true;
            }
            Step::Refund { deduction: id, amount } => {
                for deduction in entry.deductions.iter_mut().filter(|deduction| deduction.id == id) {
                    deduction.refunded += amount;
                }
            }
            // A person decides on these: they are never done on the way.
            Step::Debit { .. } | Step::Freeze { .. } => {}
        }
    }
    entry
}

/// An order that used no points.
fn compare_nothing(entry: &Entry) -> Option<Difference> {
    if entry.held() == 0 && entry.net() == 0 {
        return None;
    }
    by_hand(
        Kind::AmountMismatch,
        give_back(entry),
        "the order used no points: find out whose these were, and give them back",
    )
}

fn compare_held(entry: &Entry, points: u64) -> Option<Difference> {
    let (held, net) = (entry.held(), entry.net());
    if held == points && net == 0 {
        return None;
    }
    if held > 0 && net == 0 {
        let steps = match held.checked_sub(points) {
            Some(excess) => release_part(entry, excess),
            None => vec![Step::Freeze { amount: points - held }],
        };
        return by_hand(Kind::AmountMismatch, steps, "find out which figure is right, and make the other agree");
    }
    if net > 0 {
        let remedy = "the points were deducted: the order is paid and its status late, or they have to be refunded";
        return by_hand(Kind::StatusMismatch, refunds(entry), remedy);
    }
    let remedy = "the points were given back: cancel the order, or freeze them again";
    by_hand(Kind::StatusMismatch, vec![Step::Freeze { amount: points }], remedy)
}

fn compare_taken(entry: &Entry, points: u64) -> Option<Difference> {
    let (held, taken, net) = (entry.held(), entry.taken(), entry.net());
    if held > 0 {
        return if net == points {
            // Paid in full by something else: what is left frozen is kept from its owner.
            automatic(Kind::StatusMismatch, releases(entry))
        } else if entry.refunded() == 0 && net + held == points {
            automatic(Kind::StatusMismatch, captures(entry))
        } else {
            by_hand(
                Kind::StatusMismatch,
                captures(entry),
                "the amounts differ, too: find out which figure is right before the freeze is captured",
            )
        };
    }
    if net == points {
        return None;
    }
    if net == 0 {
        let remedy = "the points went back to the user: cancel the order, or deduct them again";
        return by_hand(Kind::StatusMismatch, vec![Step::Debit { amount: points }], remedy);
    }
    if taken == points {
        let remedy = "a part was refunded: the order is partly refunded and its status late, or the refund was wrong";
        return by_hand(Kind::StatusMismatch, vec![Step::Debit { amount: points - net }], remedy);
    }
    let steps = match net.checked_sub(points) {
        Some(excess) => refund_part(entry, excess),
        None => vec![Step::Debit { amount: points - net }],
    };
    by_hand(Kind::AmountMismatch, steps, "find out which figure is right, and make the other agree")
}

fn compare_cancelled(entry: &Entry, points: u64) -> Option<Difference> {
    if entry.held() > 0 || entry.net() > 0 {
        return restore(entry);
    }
    let whole: u64 = roots(entry).sum();
    if whole == 0 || whole == points || roots(entry).any(|amount| amount == points) {
        return None;
    }
    by_hand(
        Kind::AmountMismatch,
        Vec::new(),
        "all of it went back, so nothing has to be moved; find out why the figures differ",
    )
}

fn compare_refunded(entry: &Entry, points: u64) -> Option<Difference> {
    if entry.held() > 0 || entry.net() > 0 {
        return restore(entry);
    }
    if entry.taken() == 0 {
        // Released by an earlier settlement: the order system's word was acted on.
        if entry.settled {
            return None;
        }
        let remedy = "the points were released and never deducted, so nothing has to be moved: the order was cancelled";
        return by_hand(Kind::StatusMismatch, Vec::new(), remedy);
    }
    if entry.taken() == points || entry.deductions.iter().any(|deduction| deduction.amount == points) {
        return None;
    }
    by_hand(
        Kind::AmountMismatch,
        Vec::new(),
        "all of it went back, so nothing has to be moved; find out why the figures differ",
    )
}

fn compare_partly_refunded(entry: &Entry, claim: &Claim) -> Option<Difference> {
    let (held, taken, refunded, points) = (entry.held(), entry.taken(), entry.refunded(), claim.points);
    if held > 0 {
        return if taken == points {
            automatic(Kind::StatusMismatch, releases(entry))
        } else {
            by_hand(Kind::StatusMismatch, captures(entry), "capture the freeze; then refund what was given back")
        };
    }
    if taken != points {
        let steps = if taken < points { vec![Step::Debit { amount: points - taken }] } else { Vec::new() };
        return by_hand(Kind::AmountMismatch, steps, "find out which figure is right, and make the other agree");
    }
    let owed = claim.refunded_points.map(|wanted| wanted.saturating_sub(refunded)).filter(|owed| *owed > 0);
    let steps = owed.map(|owed| refund_part(entry, owed)).unwrap_or_default();
    if refunded == 0 {
        return by_hand(Kind::StatusMismatch, steps, "refund the part that the order system gave back");
    }
    if refunded == taken {
        return by_hand(Kind::StatusMismatch, Vec::new(), "all of it was refunded: the order's status is late");
    }
    if claim.refunded_points.is_some_and(|wanted| wanted != refunded) {
        return by_hand(Kind::AmountMismatch, steps, "find out how much was to be refunded");
    }
    None
}

/// Everything goes back to the user. If something was credited under the order's id meanwhile, it may have been meant as
/// the refund: then a person has to look, lest it be paid twice.
fn restore(entry: &Entry) -> Option<Difference> {
    if entry.net() > 0 && entry.credited > 0 {
        let remedy = "a credit bears this order's id: if it was the refund, correct it; if not, refund the deduction";
        return by_hand(Kind::StatusMismatch, give_back(entry), remedy);
    }
    automatic(Kind::StatusMismatch, give_back(entry))
}

fn without_order(entry: &Entry) -> Mismatch {
    let steps = give_back(entry);
    let remedy = if steps.is_empty() {
        "all of it went back, so nothing has to be moved; find out where the order went"
    } else {
        "find the order; if there is none, give the points back"
    };
    let settlement = Settlement { automatic: false, steps, remedy: remedy.to_owned() };
    let expected = "an order of that id and user".to_owned();
    mismatch(entry, None, Kind::LedgerEntryWithoutOrder, expected, describe(entry), settlement)
}

fn duplicate(entry: &Entry, first: &Claim, again: &Claim) -> Mismatch {
    let say = |claim: &Claim| format!("line {} ({}, {} points)", claim.line, claim.status, claim.points);
    let found = format!("{} and {}", say(first), say(again));
    let remedy = "mend the order system's export: only the first of the lines was compared".to_owned();
    let settlement = Settlement { automatic: false, steps: Vec::new(), remedy };
    mismatch(entry, Some(again), Kind::DuplicateOrder, "one line for each order".to_owned(), found, settlement)
}

fn mismatch(
    entry: &Entry,
    claim: Option<&Claim>,
    kind: Kind,
    expected: String,
    found: String,
    settlement: Settlement,
) -> Mismatch {
    let freezes = entry.freezes.iter().map(|freeze| freeze.id);
    let transactions = freezes.chain(entry.deductions.iter().map(|deduction| deduction.id)).collect();
    Mismatch {
        kind,
        order_id: entry.order_id.clone(),
        account: entry.account.clone(),
        line: claim.map(|claim| claim.line),
        order_status: claim.map(|claim| claim.status.clone()),
        order_points: claim.map(|claim| claim.points),
        credit_status: credit_status(entry),
        credit_points: entry.net(),
        expected,
        found,
        transactions,
        newest_at: entry.newest_at,
        settlement,
        outcome: Outcome::Open,
    }
}

/// The ledger's side in a word.
fn credit_status(entry: &Entry) -> &'static str {
    let (held, taken, refunded) = (entry.held(), entry.taken(), entry.refunded());
    match (entry.freezes.is_empty() && entry.deductions.is_empty(), held > 0, taken > 0) {
        (true, ..) => "none",
        (_, true, true) => "partly_deducted",
        (_, true, false) => "frozen",
        (_, false, false) => "released",
        _ if refunded == 0 => "deducted",
        _ if refunded < taken => "partly_refunded",
        _ => "refunded",
    }
}

/// What the order system's word means for the ledger.
fn expected(claim: &Claim) -> String {
    let points = claim.points;
    let means = match claim.stage {
        _ if points == 0 => "nothing frozen, nothing deducted".to_owned(),
        Stage::Held => format!("{points} frozen, nothing deducted"),
        Stage::Taken => format!("{points} deducted, nothing frozen"),
        Stage::Cancelled => "nothing frozen, nothing deducted".to_owned(),
        Stage::Refunded => format!("{points} deducted, {points} refunded"),
        Stage::PartlyRefunded => match claim.refunded_points {
            Some(refunded) => format!("{points} deducted, {refunded} refunded"),
            None => format!("{points} deducted, a part of it refunded"),
        },
    };
    // A status is as long as an order system makes it.
    let status: String = claim.status.chars().take(40).collect();
    format!("{status}: {means}")
}

/// What the ledger did.
fn describe(entry: &Entry) -> String {
    let figures = [
        (entry.held(), "frozen"),
        (entry.taken(), "deducted"),
        (entry.refunded(), "refunded"),
        (entry.released(), "released"),
        (entry.credited, "credited"),
    ];
    let said: Vec<_> =
        figures.iter().filter(|(units, _)| *units > 0).map(|(units, what)| format!("{units} {what}")).collect();
    if said.is_empty() { "no transaction".to_owned() } else { said.join(", ") }
}

/// What the order asked for, each time that it did.
fn roots(entry: &Entry) -> impl Iterator<Item = u64> + '_ {
    let direct = entry.deductions.iter().filter(|deduction| deduction.freeze.is_none());
    entry.freezes.iter().map(|freeze| freeze.amount).chain(direct.map(|deduction| deduction.amount))
}

fn releases(entry: &Entry) -> Vec<Step> {
    let open = entry.freezes.iter().filter(|freeze| freeze.remaining > 0);
    open.map(|freeze| Step::Release { freeze: freeze.id, amount: freeze.remaining }).collect()
}

fn captures(entry: &Entry) -> Vec<Step> {
    let open = entry.freezes.iter().filter(|freeze| freeze.remaining > 0);
    open.map(|freeze| Step::Capture { freeze: freeze.id, amount: freeze.remaining }).collect()
}

fn refunds(entry: &Entry) -> Vec<Step> {
    let rests =
        entry.deductions.iter().map(|deduction| (deduction.id, deduction.amount.saturating_sub(deduction.refunded)));
    rests.filter(|(_, rest)| *rest > 0).map(|(deduction, amount)| Step::Refund { deduction, amount }).collect()
}

fn give_back(entry: &Entry) -> Vec<Step> {
    let mut steps = releases(entry);
    steps.extend(refunds(entry));
    steps
}

/// Releases of `excess` units, newest freeze first.
fn release_part(entry: &Entry, excess: u64) -> Vec<Step> {
    part(releases(entry), excess)
}

/// Refunds of `excess` units, newest deduction first.
fn refund_part(entry: &Entry, excess: u64) -> Vec<Step> {
    part(refunds(entry), excess)
}

fn part(steps: Vec<Step>, mut wanted: u64) -> Vec<Step> {
    let mut taken = Vec::new();
    for mut step in steps.into_iter().rev() {
        if wanted == 0 {
            break;
        }
        if let Step::Release { amount, .. } | Step::Refund { amount, .. } = &mut step {
            *amount = (*amount).min(wanted);
            wanted -= *amount;
            taken.push(step);
        }
    }
    taken
}

#[cfg(test)]
mod tests;
