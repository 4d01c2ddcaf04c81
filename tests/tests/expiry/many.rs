//! Many freezes that are due at once, beside a load of commands.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tests::{Service, on_both_databases, store::NewDatabase, verify_consistent};

use crate::{metric, number, released_freezes, releases, time_from_now};

on_both_databases!(many_that_are_due_at_once_are_each_released_once_beside_a_load);

const USERS: usize = 500;
/// Commands of one batch.
const BATCH: usize = 1_000;
/// Clients that send one command after the other.
const CLIENTS: u64 = 4;

/// How many freezes: `EXPIRY_FREEZES` says otherwise.
fn freezes() -> usize {
    std::env::var("EXPIRY_FREEZES").ok().and_then(|freezes| freezes.parse().ok()).unwrap_or(5_000)
}

/// Commands, one after the other from each client, and how long each took.
struct Beside {
    next: AtomicU64,
    stop: AtomicBool,
    took: Mutex<Vec<(Instant, Duration)>>,
}

impl Beside {
    async fn run(&self, service: &Service) {
        let run = || async {
            while !self.stop.load(Ordering::Relaxed) {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                let (path, amount) = if number.is_multiple_of(4) { ("/v1/credits", 9) } else { ("/v1/debits", 1) };
                let command = json!({ "user_id": format!("load-{}", number % 64), "credit_type": "points",
                    "amount": amount, "business_code": "load", "business_id": number.to_string() });
                let began = Instant::now();
                service.post(path, &command).await.expect(201);
                self.took.lock().expect("no holder panics").push((began, began.elapsed()));
                // As callers do: not as fast as ever possible.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        futures::future::join_all((0..CLIENTS).map(|_| run())).await;
    }

    /// The latency in milliseconds that all but one in a hundred kept, and how many commands there were.
    fn p99(&self, from: Instant, to: Instant) -> (f64, usize) {
        let took = self.took.lock().expect("no holder panics");
        let mut took: Vec<_> = took.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, took)| *took).collect();
        took.sort_unstable();
        let p99 = took.get(took.len() * 99 / 100).map_or(0.0, Duration::as_secs_f64);
        (p99 * 1e3, took.len())
    }
}

async fn many_that_are_due_at_once_are_each_released_once_beside_a_load(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let freezes = freezes();
    for user in 0..USERS {
        service.credit(&format!("user-{user}"), freezes as u64, "seed").await;
    }
    for user in 0..64 {
        service.credit(&format!("load-{user}"), 1_000_000, "seed").await;
    }
    // Time to make them and to measure the load without them; a debug build makes some thousand a second.
    let wait = Duration::from_secs(16 + freezes as u64 / 1_000);
    let (began, expires_at) = (Instant::now(), time_from_now(wait));
    for batch in 0..freezes.div_ceil(BATCH) {
        let commands: Vec<_> = (batch * BATCH..freezes.min((batch + 1) * BATCH))
            .map(|order| {
                json!({ "type": "freeze", "user_id": format!("user-{}", order % USERS), "credit_type": "points",
                    "amount": 1, "expires_at": expires_at, "business_code": "order.create",
                    "business_id": order.to_string() })
            })
            .collect();
        service.post("/v1/batches", &json!({ "commands": commands })).await.expect(201);
    }
    assert!(began.elapsed() + Duration::from_secs(5) < wait, "the machine is too slow for {freezes} freezes");
    let due = began + wait;
    let beside = Beside { next: AtomicU64::new(0), stop: AtomicBool::new(false), took: Mutex::default() };
    let measured_from = Instant::now() + Duration::from_secs(1);
    let watch = async {
        // A minute for 100,000, and a busy machine.
        let deadline = due + Duration::from_secs(45 + freezes as u64 / 700);
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            // The service counts them; to count them in the events would take from the commands what is measured.
            let released = metric(&service, "ledger_expiry_released_total").await;
            if released >= freezes as u64 {
                break;
            }
            assert!(Instant::now() < deadline, "{released} of {freezes} released in time");
        }
        let done = Instant::now();
        beside.stop.store(true, Ordering::Relaxed);
        done
    };
    let ((), done) = tokio::join!(beside.run(&service), watch);
    let ((before, some), (during, others)) = (beside.p99(measured_from, due), beside.p99(due, done));
    println!(
        "{freezes} freezes released within {:.1} s of their expiry; p99 of commands {before:.1} ms before ({some}), \
         {during:.1} ms during ({others})",
        (done - due).as_secs_f64()
    );
    let expected = i64::try_from(freezes).expect("few");
    assert_eq!((releases(&database).await, released_freezes(&database).await), (expected, expected));
    let early = "select count(*) from events r join events f on f.transaction_id = r.related_id \
         where r.business_code = 'system.auto_unfreeze' and r.recorded_at < f.expires_at";
    if freezes <= 5_000 {
        assert_eq!(number(&database, early).await, 0, "released too early");
    }
    for user in [0, USERS - 1] {
        assert_eq!(service.holdings(&format!("user-{user}")).await, (freezes as u64, 0, freezes as u64));
    }
    verify_consistent(&database.url);
}
