//! Many commands a request.

use rand::rngs::StdRng;

use super::{Accounts, Origin, command, random};
use crate::client::{Request, Source};

/// Atomic batches.
pub(crate) struct Batches {
    accounts: Accounts,
    size: u32,
    random: StdRng,
    origin: Origin,
}

impl Batches {
    pub(crate) fn sources(load: &str, accounts: Accounts, size: u32, connections: usize) -> Vec<Self> {
        (0..connections)
            .map(|source| Self { accounts, size, random: random(load, source), origin: Origin::new(load, source) })
            .collect()
    }
}

impl Batches {
    /// From now on other accounts are visited.
    pub(super) fn visit(&mut self, accounts: Accounts) {
        self.accounts = accounts;
    }
}

impl Source for Batches {
    fn next(&mut self, request: &mut Request<'_>) -> u32 {
        let (accounts, random, origin) = (self.accounts, &mut self.random, &mut self.origin);
        request.post("/v1/batches", |body| {
            body.extend_from_slice(b"{\"atomic\":true,\"commands\":[");
            for index in 0..self.size {
                if index > 0 {
                    body.push(b',');
                }
                let account = accounts.choose(random);
                let id = origin.fresh();
                let kind = if origin.next.is_multiple_of(2) { "credit" } else { "debit" };
                command(body, Some(kind), account, 7, &id);
            }
            body.extend_from_slice(b"]}");
        });
        self.size
    }

    fn answered(&mut self, status: u16, body: &[u8]) {
        assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body[..body.len().min(600)]));
    }
}

/// Opens accounts with plenty, in their order, in batches.
pub(crate) struct Opening {
    pub(crate) next: u32,
    pub(crate) until: u32,
    pub(crate) size: u32,
}

impl Source for Opening {
    fn next(&mut self, request: &mut Request<'_>) -> u32 {
        let from = self.next;
        self.next = self.until.min(from + self.size);
        request.post("/v1/batches", |body| {
            body.extend_from_slice(b"{\"atomic\":false,\"commands\":[");
            for account in from..self.next {
                if account > from {
                    body.push(b',');
                }
                command(body, Some("credit"), account, 1_000_000_000, &format!("open.{account}"));
            }
            body.extend_from_slice(b"]}");
        });
        self.next - from
    }

    fn answered(&mut self, status: u16, body: &[u8]) {
        assert!(status == 200 || status == 207, "{status} {}", String::from_utf8_lossy(&body[..body.len().min(600)]));
    }
}
