//! One command or read a request.

use rand::rngs::StdRng;

use super::{Accounts, Origin, command, random};
use crate::client::{Request, Source};

/// Single credits and debits, one after the other.
pub(crate) struct Singles {
    accounts: Accounts,
    random: StdRng,
    origin: Origin,
}

impl Singles {
    pub(crate) fn sources(load: &str, accounts: Accounts, connections: usize) -> Vec<Self> {
        (0..connections)
            .map(|source| Self { accounts, random: random(load, source), origin: Origin::new(load, source) })
            .collect()
    }
}

impl Source for Singles {
    fn next(&mut self, request: &mut Request<'_>) -> u32 {
        let account = self.accounts.choose(&mut self.random);
        let id = self.origin.fresh();
        // As many credits as debits keep every account far from its limits.
        let path = if self.origin.next.is_multiple_of(2) { "/v1/credits" } else { "/v1/debits" };
        request.post(path, |body| command(body, None, account, 7, &id));
        1
    }

    fn answered(&mut self, status: u16, body: &[u8]) {
        assert_eq!(status, 201, "{}", String::from_utf8_lossy(body));
    }
}

/// Reads of balances.
pub(crate) struct Reads {
    accounts: Accounts,
    random: StdRng,
}

impl Reads {
    pub(crate) fn sources(load: &str, accounts: Accounts, connections: usize) -> Vec<Self> {
        (0..connections).map(|source| Self { accounts, random: random(load, source) }).collect()
    }
}

impl Source for Reads {
    fn next(&mut self, request: &mut Request<'_>) -> u32 {
        let account = self.accounts.choose(&mut self.random);
        request.get(&format!("/v1/accounts/user-{account:07}/points"));
        1
    }

    fn answered(&mut self, status: u16, body: &[u8]) {
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(body));
    }
}

/// A command of some 200 bytes to the server that only repeats it.
pub(crate) struct Echoes(Singles);

impl Echoes {
    pub(crate) fn sources(load: &str, accounts: Accounts, connections: usize) -> Vec<Self> {
        Singles::sources(load, accounts, connections).into_iter().map(Self).collect()
    }
}

impl Source for Echoes {
    fn next(&mut self, request: &mut Request<'_>) -> u32 {
        let account = self.0.accounts.choose(&mut self.0.random);
        let id = self.0.origin.fresh();
        request.post("/echo", |body| command(body, None, account, 7, &id));
        1
    }

    fn answered(&mut self, status: u16, body: &[u8]) {
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(body));
    }
}
