//! What is sent: commands as shops send them.

use std::{collections::VecDeque, io::Write};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, Zipf};

use crate::client::{Request, Source};

/// How accounts are chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Accounts {
    /// One for all.
    Hot,
    /// Each of so many as often as the others.
    Uniform(u32),
    /// Some far more often than others: the n-th as often as 1/n.
    Zipf(u32),
}

impl Accounts {
    fn choose(self, random: &mut StdRng) -> u32 {
        match self {
            Self::Hot => 0,
            Self::Uniform(count) => random.random_range(0..count),
            Self::Zipf(count) => {
                let zipf = Zipf::new(f64::from(count), 1.0).expect("there are accounts");
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank is from 1 to count")]
                let rank = zipf.sample(random) as u32 - 1;
                // Ranks next to each other are not neighbours in any order.
                (u64::from(rank) * 2_654_435_761 % u64::from(count)).try_into().expect("below count")
            }
        }
    }
}

/// The name of the load: business ids of two loads never meet.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    name: String,
    next: u64,
}

impl Origin {
    pub(crate) fn new(load: &str, source: usize) -> Self {
        Self { name: format!("{load}.{source}"), next: 0 }
    }

    /// Writes a business id that was not there before.
    fn fresh(&mut self) -> String {
        self.next += 1;
        format!("{}.{}", self.name, self.next)
    }
}

fn command(body: &mut Vec<u8>, kind: Option<&str>, account: u32, amount: u64, business_id: &str) {
    body.extend_from_slice(b"{");
    if let Some(kind) = kind {
        write!(body, "\"type\":\"{kind}\",").expect("a buffer takes all");
    }
    write!(
        body,
        "\"user_id\":\"user-{account:07}\",\"credit_type\":\"points\",\"amount\":{amount},\
         \"business_code\":\"shop.order\",\"business_id\":\"{business_id}\",\"description\":\"order of 2026-11\"}}"
    )
    .expect("a buffer takes all");
}

/// Single credits and debits, one after the other.
pub(crate) struct Singles {
    accounts: Accounts,
    random: StdRng,
    origin: Origin,
}

impl Singles {
    pub(crate) fn sources(load: &str, accounts: Accounts, connections: usize) -> Vec<Self> {
        (0..connections)
            .map(|source| Self {
                accounts,
                random: StdRng::seed_from_u64(source as u64),
                origin: Origin::new(load, source),
            })
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
            .map(|source| Self {
                accounts,
                size,
                random: StdRng::seed_from_u64(source as u64),
                origin: Origin::new(load, source),
            })
            .collect()
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

/// A shop's day: of 100 commands 30 credits, 30 freezes, 25 captures, 10 releases, 5 refunds; 2 of 100 are sent again.
pub(crate) struct Shop {
    accounts: Accounts,
    random: StdRng,
    origin: Origin,
    freezes: VecDeque<String>,
    debits: VecDeque<String>,
    /// What the answer will make: a freeze, a debit, or nothing that is used again.
    makes: Makes,
    last: Vec<u8>,
    path: &'static str,
    again: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Makes {
    Freeze,
    Debit,
    Nothing,
}

impl Shop {
    pub(crate) fn sources(load: &str, accounts: Accounts, connections: usize) -> Vec<Self> {
        (0..connections)
            .map(|source| Self {
                accounts,
                random: StdRng::seed_from_u64(source as u64),
                origin: Origin::new(load, source),
                freezes: VecDeque::new(),
                debits: VecDeque::new(),
                makes: Makes::Nothing,
                last: Vec::new(),
                path: "",
                again: false,
            })
            .collect()
    }

    fn write(&mut self) {
        let body = &mut self.last;
        body.clear();
        let id = self.origin.fresh();
        let account = self.accounts.choose(&mut self.random);
        let of = |body: &mut Vec<u8>, field: &str, original: &str| {
            write!(
                body,
                "{{\"{field}\":\"{original}\",\"business_code\":\"shop.order\",\"business_id\":\"{id}\",\
                 \"description\":\"order of 2026-11\"}}"
            )
            .expect("a buffer takes all");
        };
        (self.path, self.makes) = match self.random.random_range(0..100) {
            30..60 => {
                command(body, None, account, 5, &id);
                ("/v1/freezes", Makes::Freeze)
            }
            60..85 if let Some(freeze) = self.freezes.pop_front() => {
                of(body, "freeze_id", &freeze);
                ("/v1/debits", Makes::Debit)
            }
            85..95 if let Some(freeze) = self.freezes.pop_front() => {
                of(body, "freeze_id", &freeze);
                ("/v1/unfreezes", Makes::Nothing)
            }
            95..100 if let Some(debit) = self.debits.pop_front() => {
                of(body, "debit_id", &debit);
                ("/v1/refunds", Makes::Nothing)
            }
            _ => {
                command(body, None, account, 5, &id);
                ("/v1/credits", Makes::Nothing)
            }
        };
    }
}

impl Source for Shop {
    fn next(&mut self, request: &mut Request<'_>) -> u32 {
        self.again = self.origin.next > 0 && self.random.random_range(0..100) < 2;
        if !self.again {
            self.write();
        }
        request.post(self.path, |body| body.extend_from_slice(&self.last));
        1
    }

    fn answered(&mut self, status: u16, body: &[u8]) {
        let expected = if self.again { 200 } else { 201 };
        assert_eq!(status, expected, "{}: {}", self.path, String::from_utf8_lossy(body));
        if self.again || self.makes == Makes::Nothing {
            return;
        }
        let id = transaction_id(body).expect("an answer names its transaction").to_owned();
        let made = if self.makes == Makes::Freeze { &mut self.freezes } else { &mut self.debits };
        made.push_back(id);
        // Of the debits only one in five is refunded.
        if made.len() > 1_000 {
            made.pop_front();
        }
    }
}

fn transaction_id(body: &[u8]) -> Option<&str> {
    const NAME: &str = "\"transaction_id\":\"";
    let text = std::str::from_utf8(body).ok()?;
    let start = text.find(NAME)? + NAME.len();
    text.get(start..start + 36)
}

/// Reads of balances.
pub(crate) struct Reads {
    accounts: Accounts,
    random: StdRng,
}

impl Reads {
    pub(crate) fn sources(accounts: Accounts, connections: usize) -> Vec<Self> {
        (0..connections).map(|source| Self { accounts, random: StdRng::seed_from_u64(source as u64) }).collect()
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
pub(crate) struct Echoes(pub(crate) Singles);

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
