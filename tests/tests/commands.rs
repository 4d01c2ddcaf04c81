//! `POST /v1/credits`, `/v1/debits`, `/v1/freezes`, `/v1/unfreezes`, `/v1/refunds`, as an order flow uses them.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Service, on_both_databases, store::NewDatabase, vandal::Vandal, verify_consistent};

on_both_databases!(
    an_order_is_cancelled_and_another_is_confirmed_and_refunded,
    a_command_that_is_sent_64_times_at_once_is_done_once,
    a_freeze_is_read_at_once_through_the_process_that_made_it,
    what_the_read_models_have_not_come_to_is_not_called_unknown,
    a_key_that_was_used_for_other_content_is_a_conflict,
    a_repeat_is_answered_though_the_account_could_not_afford_it_any_more,
    of_a_capture_and_a_release_of_one_freeze_exactly_one_wins,
    of_200_debits_of_1_on_a_balance_of_100_exactly_100_succeed,
    refunds_that_race_never_give_back_more_than_was_deducted,
    a_locked_account_lets_value_in_and_none_out,
    an_expected_version_that_is_not_the_accounts_is_refused,
);

fn command(fields: Value, code: &str, id: &str) -> Value {
    let mut command = json!({ "business_code": code, "business_id": id });
    command.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    command
}

fn of(user: &str, amount: u64, code: &str, id: &str) -> Value {
    command(json!({ "user_id": user, "credit_type": "points", "amount": amount }), code, id)
}

fn holds(transaction: &Value) -> [u64; 3] {
    ["balance", "frozen", "available"].map(|field| transaction[field].as_u64().expect("a number"))
}

async fn an_order_is_cancelled_and_another_is_confirmed_and_refunded(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let credited = service.credit("ann", 1000, "signup").await;
    for field in [
        "transaction_id",
        "type",
        "account_id",
        "user_id",
        "credit_type",
        "amount",
        "released",
        "related_id",
        "remaining",
        "balance",
        "frozen",
        "available",
        "version",
        "partition",
        "position",
        "business_code",
        "business_id",
        "operation_id",
        "request_id",
        "description",
        "metadata",
        "expires_at",
        "recorded_at",
        "replayed",
    ] {
        assert!(credited.get(field).is_some(), "{field} is missing in {credited}");
    }
    let frozen = service.post("/v1/freezes", &of("ann", 500, "order.create", "1")).await.expect(201);
    assert_eq!((holds(&frozen), &frozen["remaining"]), ([1000, 500, 500], &json!(500)));
    let cancel = command(json!({ "freeze_id": frozen["transaction_id"] }), "order.cancel", "1");
    let cancelled = service.post("/v1/unfreezes", &cancel).await.expect(201);
    assert_eq!((holds(&cancelled), &cancelled["amount"]), ([1000, 0, 1000], &json!(500)));
    let late = command(json!({ "freeze_id": frozen["transaction_id"] }), "order.payment", "1");
    let refused = service.post("/v1/debits", &late).await.expect(422);
    assert_eq!((&refused["code"], &refused["remaining"]), (&json!("insufficient_frozen"), &json!(0)));

    let frozen = service.post("/v1/freezes", &of("ann", 500, "order.create", "2")).await.expect(201);
    let pay = command(json!({ "freeze_id": frozen["transaction_id"], "amount": 500 }), "order.payment", "2");
    let paid = service.post("/v1/debits", &pay).await.expect(201);
    assert_eq!(
        (holds(&paid), &paid["type"], &paid["related_id"]),
        ([500, 0, 500], &json!("deducted"), &frozen["transaction_id"])
    );
    let refund = |amount: Value, id: &str| {
        command(json!({ "debit_id": paid["transaction_id"], "amount": amount }), "order.refund", id)
    };
    let first = service.post("/v1/refunds", &refund(json!(200), "2-a")).await.expect(201);
    assert_eq!((holds(&first), &first["remaining"]), ([700, 0, 700], &json!(300)));
    let refused = service.post("/v1/refunds", &refund(json!(400), "2-b")).await.expect(422);
    assert_eq!(
        (&refused["code"], &refused["required"], &refused["remaining"]),
        (&json!("refund_exceeds_debit"), &json!(400), &json!(300))
    );
    let rest = service.post("/v1/refunds", &refund(Value::Null, "2-c")).await.expect(201);
    assert_eq!((holds(&rest), &rest["amount"]), ([1000, 0, 1000], &json!(300)));

    let frozen = service.post("/v1/freezes", &of("ann", 300, "order.create", "3")).await.expect(201);
    let partly = command(
        json!({ "freeze_id": frozen["transaction_id"], "amount": 100, "release_remainder": true }),
        "order.payment",
        "3",
    );
    let captured = service.post("/v1/debits", &partly).await.expect(201);
    assert_eq!(
        (holds(&captured), &captured["amount"], &captured["released"], &captured["remaining"]),
        ([900, 0, 900], &json!(100), &json!(200), &json!(0))
    );
    let freeze =
        service.get(&format!("/v1/freezes/{}", frozen["transaction_id"].as_str().expect("an id"))).await.expect(200);
    assert_eq!(
        (&freeze["status"], &freeze["captured"], &freeze["released"], &freeze["remaining"]),
        (&json!("settled"), &json!(100), &json!(200), &json!(0))
    );
    let steps = [
        [1000, 0, 1000],
        [1000, 500, 500],
        [1000, 0, 1000],
        [1000, 500, 500],
        [500, 0, 500],
        [700, 0, 700],
        [1000, 0, 1000],
        [1000, 300, 700],
        [900, 0, 900],
    ];
    for (index, step) in steps.iter().enumerate() {
        let past = service.get(&format!("/v1/accounts/ann/points?at_version={}", index + 1)).await.expect(200);
        assert_eq!((holds(&past), past["version"].as_u64()), (*step, Some(index as u64 + 1)));
    }
    assert_eq!(service.get("/v1/accounts/ann/points?at_version=10").await.expect(404)["code"], "version_not_found");
    verify_consistent(&database.url);
}

async fn a_command_that_is_sent_64_times_at_once_is_done_once(database: NewDatabase) {
    let one = Service::start(&database.url, &[]);
    let other = Service::start(&database.url, &[]);
    one.credit("ann", 100, "seed").await;
    let debit = of("ann", 7, "order.payment", "1");
    let answers = futures::future::join_all((0..64).map(|n| {
        let service = if n % 2 == 0 { &one } else { &other };
        service.post("/v1/debits", &debit)
    }))
    .await;
    let created = answers.iter().filter(|answer| answer.status == 201).count();
    let replayed = answers.iter().filter(|answer| answer.status == 200 && answer.body["replayed"] == true).count();
    assert_eq!((created, replayed), (1, 63));
    assert!(answers.iter().all(|answer| answer.body["transaction_id"] == answers[0].body["transaction_id"]));
    assert_eq!(one.holdings("ann").await, (93, 0, 93));
    verify_consistent(&database.url);
}

async fn a_freeze_is_read_at_once_through_the_process_that_made_it(database: NewDatabase) {
    let services = [Service::start(&database.url, &[]), Service::start(&database.url, &[])];
    for round in 0..20 {
        // Only one of the two keeps the read models.
        let service = &services[round % 2];
        let user = format!("user-{round}");
        service.credit(&user, 10, "seed").await;
        let frozen = service.post("/v1/freezes", &of(&user, 4, "order.create", "1")).await.expect(201);
        let id = frozen["transaction_id"].as_str().expect("an id");
        assert_eq!(service.get(&format!("/v1/freezes/{id}")).await.expect(200)["remaining"], 4);
        let open = service.get(&format!("/v1/accounts/{user}/points/freezes?status=open")).await.expect(200);
        assert_eq!(open["items"][0]["freeze_id"], *id);
        assert_eq!(service.get(&format!("/v1/accounts/{user}/points")).await.expect(200)["frozen"], 4);
    }
}

async fn what_the_read_models_have_not_come_to_is_not_called_unknown(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    let credited = service.credit("ann", 10, "seed").await;
    let frozen = service.post("/v1/freezes", &of("ann", 4, "order.create", "1")).await.expect(201);
    let projected = async {
        while service.get("/readyz").await.body["projector"]["lag_positions"] != 0 {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), projected).await.expect("the projector catches up");
    service.terminate();
    // As if the projector had come to none of it, and to a process that remembers nothing of it.
    Vandal::in_place(&database.url).run(&["delete from balances", "delete from freezes"]).await;
    let service = Service::start(&database.url, &["--proof-round", "0"]);

    let account = service.get("/v1/accounts/ann/points").await.expect(200);
    assert_eq!((holds(&account), &account["version"]), ([10, 4, 6], &json!(2)));
    let freeze =
        |transaction: &Value| format!("/v1/freezes/{}", transaction["transaction_id"].as_str().expect("an id"));
    let behind = service.get(&freeze(&frozen)).await;
    assert_eq!((behind.status.as_u16(), behind.text("code")), (503, "read_model_behind"), "{}", behind.body);
    assert!(behind.headers.contains_key("retry-after"));

    assert_eq!(service.get("/v1/accounts/bob/points").await.expect(404)["code"], "account_not_found");
    assert_eq!(service.get(&freeze(&credited)).await.expect(404)["code"], "freeze_not_found");
}

async fn a_key_that_was_used_for_other_content_is_a_conflict(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 100, "seed").await;
    let first = service.post("/v1/debits", &of("ann", 7, "order.payment", "1")).await.expect(201);
    for other in
        [("/v1/debits", of("ann", 8, "order.payment", "1")), ("/v1/freezes", of("ann", 7, "order.payment", "1"))]
    {
        let conflict = service.post(other.0, &other.1).await.expect(409);
        assert_eq!(
            (&conflict["code"], &conflict["transaction_id"]),
            (&json!("idempotency_conflict"), &first["transaction_id"])
        );
    }
    // Another account's key is another key.
    service.credit("bob", 100, "seed").await;
    service.post("/v1/debits", &of("bob", 8, "order.payment", "1")).await.expect(201);
}

async fn a_repeat_is_answered_though_the_account_could_not_afford_it_any_more(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 100, "seed").await;
    let all = of("ann", 100, "order.payment", "1");
    let first = service.post("/v1/debits", &all).await.expect(201);
    let again = service.post("/v1/debits", &all).await;
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.expect(200)["transaction_id"], first["transaction_id"]);
    let refused = service.post("/v1/debits", &of("ann", 1, "order.payment", "2")).await.expect(422);
    assert_eq!((&refused["required"], &refused["available"]), (&json!(1), &json!(0)));
}

async fn of_a_capture_and_a_release_of_one_freeze_exactly_one_wins(database: NewDatabase) {
    const ROUNDS: u64 = 1_000;
    let service = Service::start(&database.url, &[]);
    service.credit("ann", ROUNDS * 10, "seed").await;
    let service = &service;
    let rounds = futures::stream::iter(0..ROUNDS).map(|round| async move {
        let frozen = service.post("/v1/freezes", &of("ann", 10, "order.create", &round.to_string())).await.expect(201);
        let id = json!({ "freeze_id": frozen["transaction_id"] });
        let (pay, cancel) =
            (command(id.clone(), "order.payment", &round.to_string()), command(id, "order.cancel", &round.to_string()));
        let (paid, cancelled) = if round % 2 == 0 {
            tokio::join!(service.post("/v1/debits", &pay), service.post("/v1/unfreezes", &cancel))
        } else {
            let (cancelled, paid) =
                tokio::join!(service.post("/v1/unfreezes", &cancel), service.post("/v1/debits", &pay));
            (paid, cancelled)
        };
        let loser = match (paid.status.as_u16(), cancelled.status.as_u16()) {
            (201, 422) => cancelled,
            (422, 201) => paid.clone(),
            other => panic!("round {round}: {other:?}"),
        };
        assert_eq!((loser.text("code"), &loser.body["remaining"]), ("insufficient_frozen", &json!(0)));
        u64::from(paid.status == 201)
    });
    use futures::StreamExt;
    let paid: u64 = rounds.buffer_unordered(16).fold(0, |sum, paid| async move { sum + paid }).await;
    let left = (ROUNDS - paid) * 10;
    assert_eq!(service.holdings("ann").await, (left, 0, left));
    verify_consistent(&database.url);
}

async fn of_200_debits_of_1_on_a_balance_of_100_exactly_100_succeed(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 100, "seed").await;
    let debits: Vec<_> = (0..200).map(|n| of("ann", 1, "order.payment", &n.to_string())).collect();
    let answers = futures::future::join_all(debits.iter().map(|debit| service.post("/v1/debits", debit))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 100);
    let refused = answers.iter().filter(|answer| answer.status == 422 && answer.text("code") == "insufficient_balance");
    assert_eq!(refused.count(), 100);
    assert_eq!(service.holdings("ann").await, (0, 0, 0));
}

async fn refunds_that_race_never_give_back_more_than_was_deducted(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 100, "seed").await;
    let debit = service.post("/v1/debits", &of("ann", 100, "order.payment", "1")).await.expect(201);
    let refunds: Vec<_> = (0..40)
        .map(|n| command(json!({ "debit_id": debit["transaction_id"], "amount": 7 }), "order.refund", &n.to_string()))
        .collect();
    let answers = futures::future::join_all(refunds.iter().map(|refund| service.post("/v1/refunds", refund))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 14);
    assert!(
        answers
            .iter()
            .filter(|answer| answer.status != 201)
            .all(|answer| answer.text("code") == "refund_exceeds_debit")
    );
    assert_eq!(service.holdings("ann").await, (98, 0, 98));
}

async fn a_locked_account_lets_value_in_and_none_out(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 100, "seed").await;
    let frozen = service.post("/v1/freezes", &of("ann", 40, "order.create", "1")).await.expect(201);
    let debit = service.post("/v1/debits", &of("ann", 10, "order.payment", "0")).await.expect(201);
    let locked =
        service.post("/v1/accounts/ann/points/lock", &json!({ "reason": "under investigation" })).await.expect(201);
    assert_eq!((&locked["type"], &locked["amount"], &locked["version"]), (&json!("locked"), &Value::Null, &json!(4)));
    for (path, body) in [
        ("/v1/debits", of("ann", 1, "order.payment", "1")),
        ("/v1/freezes", of("ann", 1, "order.create", "2")),
        ("/v1/debits", command(json!({ "freeze_id": frozen["transaction_id"] }), "order.payment", "2")),
    ] {
        assert_eq!(service.post(path, &body).await.expect(423)["code"], "account_locked");
    }
    service.credit("ann", 1, "more").await;
    let id = json!({ "freeze_id": frozen["transaction_id"] });
    service.post("/v1/unfreezes", &command(id, "order.cancel", "1")).await.expect(201);
    service
        .post("/v1/refunds", &command(json!({ "debit_id": debit["transaction_id"] }), "order.refund", "1"))
        .await
        .expect(201);
    assert_eq!(service.get("/v1/accounts/ann/points").await.expect(200)["status"], "locked");
    service.post("/v1/accounts/ann/points/unlock", &json!({ "reason": "cleared" })).await.expect(201);
    service.post("/v1/debits", &of("ann", 101, "order.payment", "3")).await.expect(201);
    let listed = service.get("/v1/accounts/ann/points/transactions?type=locked").await.expect(200);
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(listed["items"][0]["description"], "under investigation");
    verify_consistent(&database.url);
}

async fn an_expected_version_that_is_not_the_accounts_is_refused(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let mut opening = of("ann", 100, "seed", "1");
    opening["expected_version"] = json!(0);
    service.post("/v1/credits", &opening).await.expect(201);
    let mut stale = of("ann", 1, "order.payment", "1");
    stale["expected_version"] = json!(0);
    let refused = service.post("/v1/debits", &stale).await.expect(412);
    assert_eq!(
        (&refused["code"], &refused["expected"], &refused["current"]),
        (&json!("version_conflict"), &json!(0), &json!(1))
    );
    // A refusal binds nothing.
    stale["expected_version"] = json!(1);
    service.post("/v1/debits", &stale).await.expect(201);
}
