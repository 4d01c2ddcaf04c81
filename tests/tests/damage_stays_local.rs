//! Damage of the log stays where it is: what would have to believe it fails, nothing false is answered, all else goes on.

use std::time::Duration;

use futures::future::join_all;
use ledger_core::{Account, operation};
use serde_json::{Value, json};
use tests::{
    Answer, Service, on_both_databases,
    store::{self, NewDatabase},
    vandal::Vandal,
};
use uuid::Uuid;

on_both_databases!(
    a_history_that_runs_in_a_circle_fails_and_holds_nobody_up,
    a_history_that_leads_to_another_account_is_not_served,
    an_event_that_is_missing_is_not_answered_as_never_done,
    a_moment_that_is_missing_is_not_answered_with_an_older_one,
    a_command_that_meets_damage_fails_alone_in_its_batch,
    an_index_row_that_cannot_be_fails_only_its_account,
);

/// How long anything is waited for, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(30);

fn account(user: &str) -> Account {
    Account::new(user, "points").expect("a valid account")
}

/// A user whose account is in ann's partition, or one whose is not.
fn user(name: &str, is_neighbour: bool) -> String {
    let partition = account("ann").partition();
    let mut users = (0..10_000).map(|number| format!("{name}-{number}"));
    let user = users.find(|user| (account(user).partition() == partition) == is_neighbour);
    user.expect("accounts spread over all partitions")
}

fn credit(user: &str, id: &str) -> Value {
    json!({ "user_id": user, "credit_type": "points", "amount": 10, "business_code": "c", "business_id": id })
}

/// Ann's event at a position, or her neighbour's.
fn at(position: u64) -> String {
    format!("partition = {} and position = {position}", account("ann").partition())
}

/// A service on a ledger that was damaged while none ran, and what was there before. In ann's partition the first, fourth
/// and eighth event are a neighbour's credits and the others hers; each has its position as its key.
async fn damaged(database: &NewDatabase, damage: &str) -> (Service, Vec<Value>) {
    let mut service = Service::start(&database.url, &[]);
    let neighbour = user("neighbour", true);
    let mut credited = Vec::new();
    for position in 1..=8_u64 {
        let whose: &str = if [1, 4, 8].contains(&position) { &neighbour } else { "ann" };
        let event = service.post("/v1/credits", &credit(whose, &position.to_string())).await.expect(201);
        assert_eq!(event["position"], position);
        credited.push(event);
    }
    let projected = async {
        while service.get("/readyz").await.body["projector"]["lag_positions"] != 0 {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    tokio::time::timeout(PATIENCE, projected).await.expect("the projector catches up");
    // The indexes hold all of it then, and nothing of it is in memory any more.
    service.terminate();
    Vandal::in_place(&database.url).run(&[damage]).await;
    (Service::start(&database.url, &[]), credited)
}

/// It is not known, and so it is neither said that there is nothing nor what there is.
fn expect_unknown(what: &str, answer: &Answer) {
    assert_eq!((answer.status.as_u16(), answer.text("code")), (503, "store_unavailable"), "{what}: {}", answer.body);
}

async fn a_history_that_runs_in_a_circle_fails_and_holds_nobody_up(database: NewDatabase) {
    let circle = format!("update events set previous_position = position where {}", at(6));
    let (service, _) = damaged(&database, &circle).await;
    let newest = service.get("/v1/accounts/ann/points?at_version=5").await.expect(200);
    assert_eq!(newest["balance"], 50, "nothing leads over the circle to it");
    let transactions = "/v1/accounts/ann/points/transactions";
    expect_unknown(transactions, &service.get(transactions).await);
    // More than there are connections.
    let past = "/v1/accounts/ann/points?at_version=1";
    for answer in join_all((0..20).map(|_| service.get(past))).await {
        expect_unknown(past, &answer);
    }
    // Nor do so many failures in a row close the service to others: the database is not away.
    service.post("/v1/credits", &credit(&user("bob", false), "after")).await.expect(201);
}

async fn a_history_that_leads_to_another_account_is_not_served(database: NewDatabase) {
    // Hers of version 2 then comes after the neighbour's of version 1.
    let astray = format!("update events set previous_position = 1 where {}", at(3));
    let (service, credited) = damaged(&database, &astray).await;
    let ann = "/v1/accounts/ann/points";
    let opened = credited[1]["recorded_at"].as_str().expect("a time");
    for path in [
        format!("{ann}?at_version=1"),
        format!("{ann}?at={opened}"),
        format!("{ann}/transactions"),
        format!("{ann}/transactions?type=credited"),
    ] {
        expect_unknown(&path, &service.get(&path).await);
    }
    assert_eq!(service.get(&format!("{ann}?at_version=2")).await.expect(200)["balance"], 20);
    assert_eq!(service.holdings("ann").await, (50, 0, 50));
}

async fn an_event_that_is_missing_is_not_answered_as_never_done(database: NewDatabase) {
    let (service, credited) = damaged(&database, &format!("delete from events where {}", at(7))).await;
    let ann = "/v1/accounts/ann/points";
    let gone = credited[6]["transaction_id"].as_str().expect("an id");
    let of_key = |id: u64| format!("/v1/transactions?business_code=c&business_id={id}");
    let of_ann = |id: u64| format!("{}&user_id=ann&credit_type=points", of_key(id));
    for path in [
        format!("{ann}?consistency=strong"),
        format!("{ann}?at_version=1"),
        format!("{ann}/transactions"),
        of_ann(7),
        of_key(7),
        format!("/v1/transactions/{gone}"),
        format!("/v1/operations/{gone}"),
    ] {
        expect_unknown(&path, &service.get(&path).await);
    }
    expect_unknown("the same command again", &service.post("/v1/credits", &credit("ann", "7")).await);
    let found = service.get(&of_ann(6)).await.expect(200);
    assert_eq!((&found["items"][0]["position"], &found["items"][1]), (&json!(6), &Value::Null), "{found:#}");
    assert_eq!(service.get(&of_ann(9)).await.expect(200)["items"], json!([]));
    assert_eq!(service.holdings(&user("neighbour", true)).await, (30, 0, 30));
}

async fn a_moment_that_is_missing_is_not_answered_with_an_older_one(database: NewDatabase) {
    // The search by time begins there.
    let (service, credited) = damaged(&database, &format!("delete from events where {}", at(4))).await;
    let past = |position: usize| {
        let time = credited[position - 1]["recorded_at"].as_str().expect("a time");
        format!("/v1/accounts/ann/points?at={time}")
    };
    expect_unknown("after it", &service.get(&past(6)).await);
    let before = service.get(&past(2)).await.expect(200);
    assert_eq!((&before["version"], &before["position"]), (&json!(1), &json!(2)));
    assert_eq!(service.get(&past(1)).await.expect(404)["code"], "version_not_found");
    assert_eq!(service.get("/v1/accounts/ann/points?at_version=1").await.expect(200)["position"], 2);
}

async fn a_command_that_meets_damage_fails_alone_in_its_batch(database: NewDatabase) {
    let (service, _) = damaged(&database, &format!("delete from events where {}", at(7))).await;
    let (bob, cid) = (user("bob", false), user("cid", false));
    // Whether hers was done before is not known.
    let mut commands = [credit(&bob, "1"), credit("ann", "7"), credit(&cid, "1")];
    commands.iter_mut().for_each(|command| command["type"] = json!("credit"));
    expect_unknown("all or nothing", &service.post("/v1/batches", &json!({ "commands": commands })).await);
    for is_repeat in [false, true] {
        let batch = json!({ "atomic": false, "commands": commands });
        let answer = service.post("/v1/batches", &batch).await.expect(200);
        let results = &answer["results"];
        for sound in [&results[0], &results[2]] {
            assert_eq!((&sound["type"], &sound["replayed"]), (&json!("credited"), &json!(is_repeat)), "{answer:#}");
        }
        let damaged = &results[1];
        assert_eq!((&damaged["status"], &damaged["code"]), (&json!(503), &json!("store_unavailable")), "{answer:#}");
    }
    for user in [bob, cid] {
        assert_eq!(service.holdings(&user).await, (10, 0, 10));
    }
}

async fn an_index_row_that_cannot_be_fails_only_its_account(database: NewDatabase) {
    let (neighbour, bob, cid) = (user("neighbour", true), user("bob", false), user("cid", true));
    let [hers, her_neighbours] = ["ann", &neighbour].map(|user| account(user).id());
    // One stands past the end of the log, as if another process had written on, and one before its beginning.
    let edit = format!(
        "update account_positions set position = case when account_id = '{hers}' then position + 1000 else -1 end \
         where account_id in ('{hers}', '{her_neighbours}')"
    );
    let (service, _) = damaged(&database, &edit).await;
    let damaged = async {
        for number in 0..5 {
            for user in ["ann", &neighbour] {
                let command = credit(user, &format!("later-{number}"));
                expect_unknown("a command", &service.post("/v1/credits", &command).await);
                let read = format!("/v1/accounts/{user}/points?consistency=strong");
                expect_unknown("a read", &service.get(&read).await);
            }
        }
    };
    let sound = async {
        for number in 0..50 {
            for user in [&bob, &cid] {
                service.post("/v1/credits", &credit(user, &number.to_string())).await.expect(201);
            }
        }
    };
    tokio::join!(damaged, sound);
    let mut commands = [credit(&bob, "batch"), credit("ann", "batch"), credit(&cid, "batch")];
    commands.iter_mut().for_each(|command| command["type"] = json!("credit"));
    let answer = service.post("/v1/batches", &json!({ "atomic": false, "commands": commands })).await.expect(200);
    let results = &answer["results"];
    assert_eq!((&results[0]["balance"], &results[2]["balance"]), (&json!(510), &json!(510)), "{answer:#}");
    assert_eq!((&results[1]["status"], &results[3]), (&json!(503), &Value::Null), "{answer:#}");
    assert_eq!(service.get("/readyz").await.expect(200)["trouble"], Value::Null);
}

/// Only SQLite takes a row that is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_compensation_that_cannot_be_read_fails_only_commands_of_its_operation() {
    let (database, id, bob) = (store::sqlite(), Uuid::new_v4(), user("bob", false));
    let row = format!(
        "insert into compensations values ({}, '{id}', 'never', 'a request', 'an actor', 'a reason', 1)",
        operation::partition(id)
    );
    let (service, _) = damaged(&database, &row).await;
    for number in 9..12 {
        let mut command = credit("ann", &number.to_string());
        command["operation_id"] = json!(id);
        expect_unknown("its operation", &service.post("/v1/credits", &command).await);
        service.post("/v1/credits", &credit(&bob, &number.to_string())).await.expect(201);
    }
    assert_eq!(service.holdings("ann").await, (50, 0, 50));
}
