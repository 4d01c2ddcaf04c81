//! Every command is done once and every letter is written once, while everything is killed.

use std::collections::{HashMap, HashSet};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tests::{Nats, Service, on_both_databases, store::NewDatabase, verify_consistent};
use uuid::Uuid;

use super::{account, jetstream, length, messages, publish, stored, until, until_empty};

on_both_databases!(each_command_is_done_once_and_each_letter_written_once_whatever_is_killed);

/// Few, so that commands meet.
const USERS: usize = 20;
const OPENED_WITH: u64 = 1_000_000_000;
/// Messages that are sent at once.
const CHUNK: usize = 100;

/// One that is to be sent.
struct Sent {
    kind: &'static str,
    payload: Vec<u8>,
}

fn sent(kind: &'static str, command: &Value) -> Sent {
    Sent { kind, payload: command.to_string().into_bytes() }
}

fn user(number: usize) -> String {
    format!("user-{}", number % USERS)
}

/// What is never done, whatever came before it.
fn hopeless(number: usize) -> Sent {
    match number % 6 {
        0 => Sent { kind: "credit", payload: format!("not JSON at all, number {number}").into_bytes() },
        1 => Sent { kind: "debit", payload: [b"\xff\xfe ".as_slice(), number.to_string().as_bytes()].concat() },
        2 => Sent { kind: "refund", payload: format!("{number}{}", "x".repeat(70_000)).into_bytes() },
        3 => sent("debit", &account(&user(number), 9_000_000_000_000_000, &format!("hopeless-{number}"))),
        4 => sent("freeze", &account(&format!("nobody-{number}"), 5, &format!("hopeless-{number}"))),
        _ => {
            let mut other = account(&user(number), 777 + number as u64, "opened");
            other["description"] = json!(format!("{number}"));
            sent("credit", &other)
        }
    }
}

/// The processes, and what kills them.
struct Chaos {
    nats: Nats,
    services: Vec<Service>,
    start: Box<dyn Fn() -> Service + Send + Sync>,
    random: StdRng,
    kills: usize,
}

impl Chaos {
    /// Kills one of them and starts it again, now and then.
    fn maybe(&mut self, one_in: u32) {
        if self.random.random_ratio(1, one_in) {
            self.strike();
        }
    }

    fn strike(&mut self) {
        self.kills += 1;
        if self.kills.is_multiple_of(2) {
            self.nats.kill9();
            self.nats.run();
        } else {
            let victim = self.random.random_range(0..self.services.len());
            self.services[victim].kill9();
            self.services[victim] = (self.start)();
        }
    }
}

/// Sends everything, some of it twice, and kills meanwhile; returns when the queue is empty.
async fn send_all(context: &async_nats::jetstream::Context, chaos: &mut Chaos, all: &[Sent]) {
    let one_in = u32::try_from(all.len() / CHUNK / 2).expect("few").clamp(2, 25);
    for chunk in all.chunks(CHUNK) {
        let publications = chunk.iter().map(|sent| async move {
            publish(context, sent.kind, &Uuid::new_v4().to_string(), sent.payload.clone()).await;
        });
        let sending = futures::future::join_all(publications);
        let strike = async { chaos.maybe(one_in) };
        tokio::join!(sending, strike);
    }
    // While the rest is done, too.
    for part in [3_u64, 6] {
        let rest = (all.len() as u64) / part;
        until("some of the queue is done", || async {
            (length(context, "CREDIT_COMMANDS").await? <= rest).then_some(())
        })
        .await;
        chaos.strike();
    }
    until_empty(context).await;
}

async fn each_command_is_done_once_and_each_letter_written_once_whatever_is_killed(database: NewDatabase) {
    let (nats, url) = (Nats::start(), database.url.clone());
    let nats_url = nats.url();
    let start = move || Service::start(&url, &["--nats-url", &nats_url, "--nats-commands"]);
    // Several processes share a PostgreSQL database, and the queue.
    let processes = if database.url.starts_with("postgres") { 2 } else { 1 };
    let services: Vec<_> = (0..processes).map(|_| start()).collect();
    let context = jetstream(&nats).await;
    let random = StdRng::seed_from_u64(7);
    let mut chaos = Chaos { nats, services, start: Box::new(start), random, kills: 0 };
    for number in 0..USERS {
        let open = account(&user(number), OPENED_WITH, "opened");
        assert_eq!(chaos.services[0].post("/v1/credits", &open).await.status, 201);
    }

    let count = messages();
    let firsts = count * 65 / 100;
    let mut balances = [OPENED_WITH; USERS];
    let mut hopeless_bodies = HashSet::new();
    let mut expected: HashSet<(String, String)> = HashSet::new();
    let mut all = Vec::new();
    let (mut freezes, mut debits) = (Vec::new(), Vec::new());
    for number in 0..firsts {
        let (user, id) = (user(number / 7), format!("first-{number}"));
        let balance = &mut balances[number / 7 % USERS];
        let kind = match number % 3 {
            0 => {
                *balance += 11;
                "credit"
            }
            1 => {
                *balance -= 11;
                debits.push((user.clone(), id.clone()));
                "debit"
            }
            _ => {
                freezes.push((user.clone(), id.clone()));
                "freeze"
            }
        };
        expected.insert((user.clone(), id.clone()));
        all.push(sent(kind, &account(&user, 11, &id)));
        if number % 50 == 0 {
            // The sender does not know that it was taken.
            all.push(sent(kind, &account(&user, 11, &id)));
        }
        if number % 50 == 25 {
            let hopeless = hopeless(number / 50);
            hopeless_bodies.insert(hopeless.payload.clone());
            all.push(hopeless);
        }
    }
    send_all(&context, &mut chaos, &all).await;

    let ids = done(&chaos.services[0]).await;
    let id_of = |owner: &(String, String)| ids[owner].clone();
    let mut all = Vec::new();
    for (number, freeze) in freezes.iter().enumerate() {
        let id = format!("then-{}", freeze.1);
        let command = json!({ "freeze_id": id_of(freeze), "business_code": "queue", "business_id": id });
        expected.insert((freeze.0.clone(), id));
        let kind = if number % 2 == 0 { "debit" } else { "unfreeze" };
        if kind == "debit" {
            let user: usize = freeze.0.trim_start_matches("user-").parse().expect("a number");
            balances[user] -= 11;
        }
        all.push(sent(kind, &command));
    }
    for debit in debits.iter().take(count - firsts - freezes.len()) {
        let id = format!("then-{}", debit.1);
        let command =
            json!({ "debit_id": id_of(debit), "amount": 4, "business_code": "queue", "business_id": id.clone() });
        expected.insert((debit.0.clone(), id));
        let user: usize = debit.0.trim_start_matches("user-").parse().expect("a number");
        balances[user] += 4;
        all.push(sent("refund", &command));
    }
    send_all(&context, &mut chaos, &all).await;

    let done = done(&chaos.services[0]).await;
    let found: HashSet<_> = done.into_keys().collect();
    expected.extend((0..USERS).map(|number| (user(number), "opened".to_owned())));
    assert_eq!(found.symmetric_difference(&expected).collect::<Vec<_>>(), Vec::<&(String, String)>::new());
    for (number, balance) in balances.iter().enumerate() {
        assert_eq!(chaos.services[0].holdings(&user(number)).await, (*balance, 0, *balance), "{}", user(number));
    }
    let letters = stored(&context, "CREDIT_DEAD", hopeless_bodies.len()).await;
    let mut bodies = HashSet::new();
    for letter in &letters {
        let shown = String::from_utf8_lossy(&letter.payload[..letter.payload.len().min(200)]);
        assert!(hopeless_bodies.contains(&letter.payload), "not hopeless: {shown} {}", letter.header("Ledger-Problem"));
        assert!(bodies.insert(letter.payload.clone()), "two letters: {shown}");
    }
    assert_eq!(bodies.len(), hopeless_bodies.len());
    eprintln!("{} commands done, {} letters, {} kills", found.len(), letters.len(), chaos.kills);
    for service in &mut chaos.services {
        service.terminate();
    }
    assert_eq!(length(&context, "CREDIT_COMMANDS").await, Some(0));
    verify_consistent(&database.url);
}

/// Every transaction, by user and business id. A key that is there twice fails.
async fn done(service: &Service) -> HashMap<(String, String), String> {
    let mut found = HashMap::new();
    for number in 0..USERS {
        let user = user(number);
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/accounts/{user}/points/transactions?limit=500{cursor}");
            let page = service.get(&path).await.expect(200);
            for item in page["items"].as_array().expect("items") {
                let text = |field: &str| item[field].as_str().expect("text").to_owned();
                let twice = found.insert((user.clone(), text("business_id")), text("transaction_id"));
                assert_eq!(twice, None, "done twice: {item}");
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
    }
    found
}
