//! A ledger that grows: batches over the accounts that there are, while more are opened in proportion.

use std::{cell::RefCell, rc::Rc, time::Instant};

use super::{Accounts, Batches, Opening};
use crate::client::{Request, Source};

/// Commands of one request: as many as the service takes.
const BATCH: u32 = 10_000;

/// How far the ledger is to grow, and how far it has.
#[derive(Debug)]
pub(crate) struct Fill {
    /// What the ledger holds in the end.
    pub(crate) events_at_end: u64,
    pub(crate) accounts_at_end: u32,
    /// What it holds by now.
    pub(crate) events: u64,
    pub(crate) accounts: u32,
    /// When there were how many events, at every answer.
    pub(crate) marks: Vec<(Instant, u64)>,
}

impl Fill {
    /// How many accounts there should be by now.
    pub(crate) fn accounts_due(&self) -> u32 {
        let due = u128::from(self.accounts_at_end) * u128::from(self.events) / u128::from(self.events_at_end.max(1));
        u32::try_from(due).unwrap_or(u32::MAX).min(self.accounts_at_end)
    }
}

/// One of several sources that fill one ledger.
pub(crate) struct Filling {
    fill: Rc<RefCell<Fill>>,
    batches: Batches,
    /// Only one source opens accounts, so that those up to the last one opened are all there.
    opens: bool,
    opening: Option<u32>,
    sent: u32,
}

impl Filling {
    pub(crate) fn sources(load: &str, fill: &Rc<RefCell<Fill>>, connections: usize) -> Vec<Self> {
        let accounts = Accounts::Uniform(fill.borrow().accounts);
        Batches::sources(load, accounts, BATCH, connections)
            .into_iter()
            .enumerate()
            .map(|(source, batches)| Self { fill: fill.clone(), batches, opens: source == 0, opening: None, sent: 0 })
            .collect()
    }

    /// Whether the ledger holds fewer events than these.
    pub(crate) fn is_below(&self, events: u64) -> bool {
        self.fill.borrow().events < events
    }
}

impl Source for Filling {
    fn next(&mut self, request: &mut Request<'_>) -> u32 {
        let (accounts, due) = {
            let fill = self.fill.borrow();
            (fill.accounts, fill.accounts_due())
        };
        // Not a few at a time.
        self.opening = (self.opens && due >= accounts + BATCH).then_some(accounts + BATCH);
        self.sent = match self.opening {
            Some(until) => Opening { next: accounts, until, size: BATCH }.next(request),
            None => {
                self.batches.visit(Accounts::Uniform(accounts));
                self.batches.next(request)
            }
        };
        self.sent
    }

    fn answered(&mut self, status: u16, body: &[u8]) {
        let expected = if self.opening.is_some() { 200 } else { 201 };
        assert_eq!(status, expected, "{}", String::from_utf8_lossy(&body[..body.len().min(600)]));
        let mut fill = self.fill.borrow_mut();
        fill.accounts = self.opening.unwrap_or(fill.accounts);
        fill.events += u64::from(self.sent);
        let mark = (Instant::now(), fill.events);
        fill.marks.push(mark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_due_in_proportion() {
        let mut fill =
            Fill { events_at_end: 20_000, accounts_at_end: 2_000, events: 0, accounts: 100, marks: Vec::new() };
        assert_eq!(fill.accounts_due(), 0);
        fill.events = 10_000;
        assert_eq!(fill.accounts_due(), 1_000);
        fill.events = 30_000;
        assert_eq!(fill.accounts_due(), 2_000);
    }
}
