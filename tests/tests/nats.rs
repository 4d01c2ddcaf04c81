//! The stream on NATS: each event once, in order, whatever is killed.

#[path = "nats/publishers.rs"]
mod publishers;

use std::{collections::HashMap, time::Duration};

use futures::StreamExt;
use serde_json::Value;
use tests::{
    Load, Nats, Service, on_both_databases, replay_tool, store::NewDatabase, vandal::Vandal, verify_consistent,
};

on_both_databases!(
    the_stream_holds_each_event_once_and_in_order_whatever_is_killed,
    a_plain_subscriber_gets_the_payload_of_the_contract,
    a_message_that_somebody_deleted_stops_publishing_only_where_its_place_must_be_known,
);

/// Every message of the stream: its JSON, in order.
async fn stream_of(nats: &Nats) -> Vec<Value> {
    let client = async_nats::connect(nats.url()).await.expect("NATS is there");
    let context = async_nats::jetstream::new(client);
    let stream = context.get_stream("CREDIT").await.expect("the stream is there");
    let last = stream.get_info().await.expect("its state").state.last_sequence;
    let stream = &stream;
    futures::stream::iter(1..=last)
        .map(|sequence| async move {
            let message = stream.get_raw_message(sequence).await.expect("a message");
            serde_json::from_slice(&message.payload).expect("JSON")
        })
        .buffered(64)
        .collect()
        .await
}

async fn wait_until_published(service: &Service) {
    let published = async {
        loop {
            let ready = service.get("/readyz").await.body;
            if ready["nats"]["connected"] == true && ready["nats"]["lag_positions"] == 0 {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), published).await.expect("everything is published");
}

async fn the_stream_holds_each_event_once_and_in_order_whatever_is_killed(database: NewDatabase) {
    let mut nats = Nats::start();
    // The server forgets message ids after 100 ms, so that every outage is longer than that.
    let arguments = ["--nats-url", &nats.url(), "--nats-duplicate-window-ms", "100"].map(str::to_owned);
    let arguments = arguments.each_ref().map(String::as_str);
    let mut service = Service::start(&database.url, &arguments);
    Load::open_accounts(&service).await;
    let load = Load::default();
    for round in 0..6_u64 {
        load.go_on();
        let services = [&service];
        let disturb = async {
            let served = load.acknowledged();
            while load.acknowledged() < served + 300 {
                tokio::task::yield_now().await;
            }
            nats.kill9();
            // Commands are served all the while.
            let served = load.acknowledged();
            while load.acknowledged() < served + 300 {
                tokio::task::yield_now().await;
            }
            nats.run();
            let served = load.acknowledged();
            while load.acknowledged() < served + 100 {
                tokio::task::yield_now().await;
            }
            if round % 2 == 0 {
                service.signal("KILL");
            } else {
                load.stop();
            }
        };
        tokio::join!(load.run(&services, 8), disturb);
        if round % 2 == 0 {
            drop(service);
            service = Service::start(&database.url, &arguments);
        }
    }
    load.check(&service).await;
    wait_until_published(&service).await;
    let verified = verify_consistent(&database.url);
    let messages = stream_of(&nats).await;
    let mut positions: HashMap<u64, u64> = HashMap::new();
    for message in &messages {
        let partition = message["partition"].as_u64().expect("a number");
        let next = positions.entry(partition).or_insert(0);
        *next += 1;
        assert_eq!(message["position"].as_u64(), Some(*next), "partition {partition}");
    }
    assert_eq!(Some(messages.len() as u64), verified["events"].as_u64());
    // What was published is what the log holds.
    for (partition, newest) in positions {
        let log = service.get(&format!("/v1/events?partition={partition}&after={}", newest - 1)).await.expect(200);
        assert_eq!(log["head"].as_u64(), Some(newest));
        let published = messages.iter().rfind(|message| message["partition"] == partition);
        assert_eq!(published, Some(&log["items"][0]));
    }
}

/// Takes a message from the stream, as `nats stream rmm` does.
async fn delete(nats: &Nats, sequence: u64) {
    let client = async_nats::connect(nats.url()).await.expect("NATS is there");
    let stream = async_nats::jetstream::new(client).get_stream("CREDIT").await.expect("the stream is there");
    assert!(stream.delete_message(sequence).await.expect("the server does it"));
}

async fn a_message_that_somebody_deleted_stops_publishing_only_where_its_place_must_be_known(database: NewDatabase) {
    let nats = Nats::start();
    let nats_url = nats.url();
    let arguments = ["--nats-url", &nats_url];
    let mut service = Service::start(&database.url, &arguments);
    for id in ["1", "2", "3"] {
        service.credit("ann", 1, id).await;
    }
    wait_until_published(&service).await;
    service.terminate();
    delete(&nats, 3).await;
    let (code, verified) = replay_tool(&database.url, &["verify", "--nats-url", &nats_url]);
    assert_eq!(code, 0, "{verified:#}");

    // It is the newest that was published: the checkpoint knows what it held.
    let mut service = Service::start(&database.url, &arguments);
    service.credit("ann", 1, "4").await;
    wait_until_published(&service).await;
    service.terminate();
    let (code, verified) = replay_tool(&database.url, &["verify", "--nats-url", &nats_url]);
    assert_eq!(code, 0, "{verified:#}");

    // Without the checkpoint nobody knows.
    Vandal::in_place(&database.url).run(&["delete from publisher_checkpoints"]).await;
    let service = Service::start(&database.url, &arguments);
    let told = async {
        loop {
            let trouble = service.get("/readyz").await.body["nats"]["trouble"].as_str().unwrap_or_default().to_owned();
            if trouble.contains("was deleted") {
                return trouble;
            }
        }
    };
    let trouble = tokio::time::timeout(Duration::from_secs(60), told).await.expect("told");
    assert!(trouble.contains("sequence 3 ") && trouble.contains("publisher_checkpoints"), "{trouble}");
}

async fn a_plain_subscriber_gets_the_payload_of_the_contract(database: NewDatabase) {
    let nats = Nats::start();
    let client = async_nats::connect(nats.url()).await.expect("NATS is there");
    let mut subscriber = client.subscribe("credit.deducted").await.expect("subscribed");
    client.flush().await.expect("the server knows");
    let service = Service::start(&database.url, &["--nats-url", &nats.url()]);
    service.credit("ann", 10, "seed").await;
    let debit = serde_json::json!({ "user_id": "ann", "credit_type": "points", "amount": 3, "business_code": "a",
        "business_id": "b", "metadata": { "order": "1" } });
    let mut answer = service.post("/v1/debits", &debit).await.expect(201);
    let message =
        tokio::time::timeout(Duration::from_secs(30), subscriber.next()).await.expect("in time").expect("a message");
    let payload: Value = serde_json::from_slice(&message.payload).expect("JSON");
    answer.as_object_mut().expect("an object").shift_remove("replayed");
    for (field, value) in answer.as_object().expect("an object") {
        assert_eq!(&payload[field], value, "{field}");
    }
    for field in ["epoch", "hash", "previous_position", "schema_version", "locked", "actor", "batch_id"] {
        assert!(payload.get(field).is_some(), "{field}");
    }
    let headers = message.headers.expect("headers");
    let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(header("ce-specversion").as_deref(), Some("1.0"));
    assert_eq!(header("ce-type").as_deref(), Some("credit.deducted"));
    assert_eq!(header("ce-id").as_deref(), answer["transaction_id"].as_str());
    assert_eq!(header("ce-time").as_deref(), answer["recorded_at"].as_str());
    assert!(header("ce-source").is_some() && header("ce-subject").is_some());
}
