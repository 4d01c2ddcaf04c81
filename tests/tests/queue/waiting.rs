//! What has to wait waits, and is done.

use tests::{Nats, Postgres, Service, on_both_databases, store::NewDatabase, verify_consistent};

use super::{account, jetstream, length, send, stored, until, until_empty};

on_both_databases!(
    a_limited_account_waits_and_holds_up_no_other,
    what_may_pass_is_tried_again_so_many_times,
    a_queue_that_was_lost_is_made_again,
    what_is_under_way_when_the_service_stops_is_done_then_or_later,
);

async fn a_limited_account_waits_and_holds_up_no_other(database: NewDatabase) {
    let nats = Nats::start();
    let arguments = ["--nats-url", &nats.url(), "--nats-commands", "--rate-limit", "5/5"].map(str::to_owned);
    let service = Service::start(&database.url, &arguments.each_ref().map(String::as_str));
    let context = jetstream(&nats).await;
    for number in 0..600 {
        send(&context, "credit", &account("greedy", 1, &number.to_string())).await;
        if number < 25 {
            send(&context, "credit", &account("greedy too", 1, &number.to_string())).await;
        }
    }
    send(&context, "credit", &account("calm", 1, "1")).await;
    until("the calm one is done", || async {
        (service.get("/v1/accounts/calm/points?consistency=strong").await.status == 200).then_some(())
    })
    .await;
    assert!(length(&context, "CREDIT_COMMANDS").await > Some(100), "the greedy one still waits");
    until("the limited one is done", || async {
        let account = service.get("/v1/accounts/greedy%20too/points?consistency=strong").await;
        (account.body["balance"] == 25).then_some(())
    })
    .await;
    assert_eq!(length(&context, "CREDIT_DEAD").await, Some(0));
}

async fn what_may_pass_is_tried_again_so_many_times(database: NewDatabase) {
    let nats = Nats::start();
    let arguments = ["--nats-url", &nats.url(), "--nats-commands", "--nats-command-attempts", "2"].map(str::to_owned);
    let service = Service::start(&database.url, &arguments.each_ref().map(String::as_str));
    let context = jetstream(&nats).await;
    service.credit("ann", 1, "seed").await;
    let ahead = |version: u64, id: &str| {
        let mut command = account("ann", 1, id);
        command["expected_version"] = version.into();
        command
    };
    send(&context, "credit", &ahead(9, "never")).await;
    let letters = stored(&context, "CREDIT_DEAD", 1).await;
    assert_eq!((letters[0].header("Ledger-Code"), letters[0].header("Ledger-Attempts")), ("version_conflict", "2"));
    send(&context, "credit", &ahead(0, "too late")).await;
    let letters = stored(&context, "CREDIT_DEAD", 2).await;
    assert_eq!((letters[1].header("Ledger-Code"), letters[1].header("Ledger-Attempts")), ("version_conflict", "1"));
    // What it waits for comes before the second attempt.
    send(&context, "credit", &ahead(2, "second")).await;
    send(&context, "credit", &ahead(1, "first")).await;
    until_empty(&context).await;
    assert_eq!(service.holdings("ann").await.0, 3);
    assert_eq!(length(&context, "CREDIT_DEAD").await, Some(2));
}

async fn a_queue_that_was_lost_is_made_again(database: NewDatabase) {
    let nats = Nats::start();
    let service = Service::start(&database.url, &["--nats-url", &nats.url(), "--nats-commands"]);
    let context = jetstream(&nats).await;
    let credited = async |units: u64| {
        until("the balance", || async { (service.holdings("ann").await.0 == units).then_some(()) }).await;
    };
    send(&context, "credit", &account("ann", 1, "1")).await;
    service.credit("ann", 1, "seed").await;
    credited(2).await;
    let queue = context.get_stream("CREDIT_COMMANDS").await.expect("the queue");
    queue.delete_consumer("ledger").await.expect("deleted");
    send(&context, "credit", &account("ann", 1, "2")).await;
    credited(3).await;
    context.delete_stream("CREDIT_COMMANDS").await.expect("deleted");
    context.delete_stream("CREDIT_DEAD").await.expect("deleted");
    send(&context, "credit", &account("ann", 1, "3")).await;
    credited(4).await;
    send(&context, "debit", &account("ann", 100, "4")).await;
    assert_eq!(stored(&context, "CREDIT_DEAD", 1).await.len(), 1);
    // Its sequence is one that another letter may have had: it is a letter of its own all the same.
    until_empty(&context).await;
    assert_eq!(service.get("/readyz").await.body["nats_commands"]["connected"], true);
}

async fn what_is_under_way_when_the_service_stops_is_done_then_or_later(database: NewDatabase) {
    let nats = Nats::start();
    let arguments = ["--nats-url", &nats.url(), "--nats-commands"].map(str::to_owned);
    let arguments = arguments.each_ref().map(String::as_str);
    let mut service = Service::start(&database.url, &arguments);
    let context = jetstream(&nats).await;
    let context = &context;
    for round in 0..3 {
        let sending = (0..300).map(|number| async move {
            send(context, "credit", &account("ann", 1, &format!("{round}-{number}"))).await;
        });
        let stop = async {
            until("some are done", || async {
                let account = service.get("/v1/accounts/ann/points?consistency=strong").await.body;
                (account["balance"].as_u64()? > round * 300 + 20).then_some(())
            })
            .await;
            service.terminate();
        };
        tokio::join!(futures::future::join_all(sending), stop);
        service = Service::start(&database.url, &arguments);
    }
    until_empty(context).await;
    assert_eq!(service.holdings("ann").await, (900, 0, 900));
    assert_eq!(length(context, "CREDIT_DEAD").await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_database_sends_nothing_to_the_dead_letters() {
    let (mut postgres, nats) = (Postgres::start(), Nats::start());
    let url = postgres.database();
    // A single failure would be one too many.
    let arguments = ["--nats-url", &nats.url(), "--nats-commands", "--nats-command-attempts", "1"].map(str::to_owned);
    let service = Service::start(&url, &arguments.each_ref().map(String::as_str));
    let context = jetstream(&nats).await;
    service.credit("ann", 1_000, "seed").await;
    let first = |number: u64| account("ann", 1, &format!("before-{number}"));
    for number in 0..300 {
        send(&context, "debit", &first(number)).await;
    }
    postgres.stop_immediately();
    for number in 0..200 {
        send(&context, "credit", &account("ann", 1, &format!("away-{number}"))).await;
    }
    until("the queue rests", || async {
        let queue = service.get("/readyz").await.body["nats_commands"].clone();
        (queue["trouble"] == "the database is away").then_some(())
    })
    .await;
    // Longer than all pauses between attempts together, had these been attempts.
    tokio::time::sleep(std::time::Duration::from_secs(8)).await;
    assert!(length(&context, "CREDIT_COMMANDS").await >= Some(200));
    postgres.run();
    until_empty(&context).await;
    assert_eq!(service.holdings("ann").await, (900, 0, 900));
    assert_eq!(length(&context, "CREDIT_DEAD").await, Some(0));
    drop(service);
    verify_consistent(&url);
}
