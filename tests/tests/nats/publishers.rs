//! Publishers in this process, which are held where it matters.

use std::{collections::HashMap, ops::Range, time::Duration};

use ledger_core::{Account, PARTITIONS};
use ledger_store::{Database, Ledger, LedgerOptions};
use projector::publisher::{Publisher, PublisherOptions};
use serde_json::json;
use tests::{
    Nats,
    nats::{Fate, Proxy},
    rewind::{log_of, put_back},
    store::{self, credit},
};
use tokio::time::timeout;

use super::stream_of;

/// A publisher asks for a message when it reads what the stream holds, which it has asked for before.
const READS_THE_STREAM: &str = "$JS.API.STREAM.MSG.GET.CREDIT ";

fn publisher(database: &Database, nats_url: String) -> Publisher {
    Publisher::start(database.clone(), PublisherOptions::new(nats_url), None)
}

/// Waits until a publisher knows so many events to be in the stream.
async fn until_published(publisher: &Publisher, count: u64) {
    let mut status = publisher.status();
    let published = async {
        let sum = status.wait_for(|status| status.published.iter().map(|position| position.0).sum::<u64>() == count);
        sum.await.map(|_| ()).expect("it runs");
    };
    let in_time = timeout(Duration::from_secs(30), published).await;
    assert!(in_time.is_ok(), "{count} events are published: {:?}", publisher.status().borrow().trouble);
}

async fn start(database: &Database) -> Ledger {
    Ledger::start(database.clone(), LedgerOptions::default()).await.expect("the ledger starts")
}

async fn credits(ledger: &Ledger, user: &str, what: &str, count: u64) {
    for number in 0..count {
        ledger.execute(credit(user, 1, &format!("{what}-{number}"))).await.expect("credited");
    }
}

/// A user whose account is in one of some partitions.
fn user_in(partitions: Range<usize>) -> String {
    let mut users = (0_u32..).map(|number| format!("user-{number}"));
    let found =
        users.find(|user| partitions.contains(&Account::new(user, "points").expect("valid").partition().index()));
    found.expect("there is no end of users")
}

/// On a SQLite file every process is elected.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_of_messages_leaves_no_gap_where_another_publisher_was_faster() {
    let (nats, new) = (Nats::start(), store::sqlite());
    let database = Database::open(&new.url).await.expect("the database opens");
    let ledger = start(&database).await;
    let (low, high) = (user_in(0..PARTITIONS / 2), user_in(PARTITIONS / 2..PARTITIONS));
    credits(&ledger, &high, "seed", 1).await;
    let first = publisher(&database, nats.url());
    until_published(&first, 1).await;
    first.stop().await;

    // It knows that the stream ends at the seed, and nothing of what comes meanwhile.
    let proxy = Proxy::start(&nats, READS_THE_STREAM, Fate::Held).await;
    let slow = publisher(&database, proxy.url());
    proxy.met().await;
    let fast = publisher(&database, nats.url());
    credits(&ledger, &high, "fast", 3).await;
    until_published(&fast, 4).await;
    fast.stop().await;
    // More than the other one has published; the slow one sends them first.
    credits(&ledger, &low, "slow", 5).await;
    proxy.release();
    until_published(&slow, 9).await;
    slow.stop().await;

    let mut positions: HashMap<u64, u64> = HashMap::new();
    let messages = stream_of(&nats).await;
    for message in &messages {
        let next = positions.entry(message["partition"].as_u64().expect("a number")).or_insert(0);
        *next += 1;
        assert_eq!(message["position"].as_u64(), Some(*next), "{message}");
    }
    assert_eq!(messages.len(), 9);
    credits(&ledger, &low, "after", 1).await;
    let last = publisher(&database, nats.url());
    until_published(&last, 10).await;
    last.stop().await;
    ledger.stop().await;
}

/// On SQLite nobody may have the file open while a log is restored.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_comes_while_a_publisher_reads_the_stream_is_told() {
    let (nats, new) = (Nats::start(), store::postgres());
    let database = Database::open(&new.url).await.expect("the database opens");
    let ledger = start(&database).await;
    credits(&ledger, "ann", "before", 3).await;
    let first = publisher(&database, nats.url());
    until_published(&first, 3).await;
    first.stop().await;
    ledger.stop().await;
    let kept = log_of(&new.url).await;

    let proxy = Proxy::start(&nats, READS_THE_STREAM, Fate::Held).await;
    let publisher = publisher(&database, proxy.url());
    proxy.met().await;
    put_back(&new.url, kept, 7).await;
    proxy.release();
    let ledger = start(&database).await;
    credits(&ledger, "ann", "after", 1).await;
    until_published(&publisher, 4).await;
    publisher.stop().await;
    ledger.stop().await;
    let messages = stream_of(&nats).await;
    let told: Vec<_> = messages.iter().map(|message| json!([message["epoch"], message["position"]])).collect();
    // What tells of the restore is no event.
    assert_eq!(json!(told), json!([[1, 1], [1, 2], [1, 3], [7, null], [7, 4]]));
}
