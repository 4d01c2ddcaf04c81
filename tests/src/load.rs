//! A load generator that remembers what was acknowledged.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::Service;

/// The accounts that the load goes to: few, so that commands meet.
pub const ACCOUNTS: u64 = 8;

/// Commands that were sent, and what was answered.
#[derive(Debug, Default)]
pub struct Load {
    next: AtomicU64,
    sent: Mutex<Vec<(String, Value, Option<Value>)>>,
    stop: AtomicBool,
}

impl Load {
    /// The command that is sent as the `number`th: a credit each fourth time, else a debit.
    fn command(number: u64) -> (String, Value) {
        let user = format!("load-{}", number % ACCOUNTS);
        let (path, amount) = if number.is_multiple_of(4) { ("/v1/credits", 9) } else { ("/v1/debits", 2) };
        let body = json!({ "user_id": user, "credit_type": "points", "amount": amount,
            "business_code": "load", "business_id": number.to_string() });
        (path.to_owned(), body)
    }

    /// Opens the accounts.
    pub async fn open_accounts(service: &Service) {
        for user in 0..ACCOUNTS {
            service.credit(&format!("load-{user}"), 1_000_000, "open").await;
        }
    }

    /// Sends commands from `clients` at once until told to stop. A command without an answer ends its client, as the
    /// service is gone then; a 503 is remembered as no answer, too.
    ///
    /// # Panics
    ///
    /// When an answer is neither a transaction nor a 503.
    pub async fn run(&self, services: &[&Service], clients: usize) {
        let run = |client: usize| async move {
            let service = services[client % services.len()];
            while !self.stop.load(Ordering::Relaxed) {
                let (path, body) = Self::command(self.next.fetch_add(1, Ordering::Relaxed));
                let answer = service.send(Method::POST, &path, Some(body.to_string())).await;
                let gone = answer.is_err();
                let acknowledged = match answer {
                    Ok(answer) if answer.status == 201 => Some(answer.body),
                    Ok(answer) if answer.status == 503 => {
                        assert!(answer.headers.contains_key("retry-after"), "{:?}", answer.headers);
                        None
                    }
                    Ok(answer) => panic!("{path} {body}: {} {}", answer.status, answer.body),
                    Err(_) => None,
                };
                self.sent.lock().expect("no holder panics").push((path, body, acknowledged));
                if gone {
                    return;
                }
            }
        };
        futures::future::join_all((0..clients).map(run)).await;
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn go_on(&self) {
        self.stop.store(false, Ordering::Relaxed);
    }

    /// How many commands were acknowledged.
    ///
    /// # Panics
    ///
    /// Never: no holder of the lock panics.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.sent.lock().expect("no holder panics").iter().filter(|(.., answer)| answer.is_some()).count()
    }

    /// Sends every command again: each that was acknowledged must be answered as it was, marked as a replay, and each
    /// that was not must be there once after that.
    ///
    /// # Panics
    ///
    /// When one is lost or done twice.
    pub async fn check(&self, service: &Service) {
        let sent = self.sent.lock().expect("no holder panics").clone();
        let mut balances = vec![1_000_000_i64; usize::try_from(ACCOUNTS).expect("few")];
        for chunk in sent.chunks(64) {
            let again = futures::future::join_all(chunk.iter().map(|(path, body, _)| service.post(path, body))).await;
            for ((path, body, first), again) in chunk.iter().zip(again) {
                if let Some(first) = first {
                    assert_eq!(again.status, 200, "acknowledged and lost: {path} {body}");
                    let mut repeat = again.body.clone();
                    repeat["replayed"] = json!(false);
                    assert_eq!(&repeat, first, "another answer");
                } else {
                    assert!([200, 201].contains(&again.status.as_u16()), "{path} {body}: {}", again.body);
                }
                let number: usize = body["business_id"].as_str().and_then(|id| id.parse().ok()).expect("a number");
                let amount = body["amount"].as_i64().expect("a number");
                let change = if path == "/v1/credits" { amount } else { -amount };
                let accounts = balances.len();
                balances[number % accounts] += change;
            }
        }
        for (user, balance) in balances.into_iter().enumerate() {
            let (stands, ..) = service.holdings(&format!("load-{user}")).await;
            assert_eq!(i64::try_from(stands), Ok(balance), "load-{user}: a command was lost or done twice");
        }
    }
}
