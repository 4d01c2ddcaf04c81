//! A mix of commands that refer to each other.

use std::{collections::VecDeque, io::Write};

use rand::{RngExt, rngs::StdRng};

use super::{Accounts, Origin, command, random};
use crate::client::{Request, Source};

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
                random: random(load, source),
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
