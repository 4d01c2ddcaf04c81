//! `POST /v1/batches`.

use ledger_core::{Account, BusinessKey, TransactionId};
use ledger_store::Database;
use serde_json::{Value, json};
use tests::{Service, on_both_databases, store::NewDatabase, verify_consistent};

on_both_databases!(
    a_batch_whose_37th_command_is_refused_changes_nothing,
    a_batch_of_10_000_commands_is_done_whole,
    a_batch_that_is_not_atomic_answers_each_command_on_its_own,
    a_command_that_cannot_be_read_is_named_by_its_index,
    a_batch_cannot_name_what_it_makes_itself,
    an_id_that_no_ledger_gives_is_refused_like_one_that_names_nothing,
    a_key_of_very_many_accounts_is_shown_in_part,
);

fn command(kind: &str, user: &str, amount: u64, id: &str) -> Value {
    json!({ "type": kind, "user_id": user, "credit_type": "points", "amount": amount,
        "business_code": format!("batch.{kind}"), "business_id": id })
}

async fn a_batch_whose_37th_command_is_refused_changes_nothing(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let seeds: Vec<_> = (0..50).map(|user| command("credit", &format!("user-{user}"), 10, "seed")).collect();
    service.post("/v1/batches", &json!({ "commands": seeds })).await.expect(201);
    let debits = |poor: u64| -> Vec<_> {
        (0..50)
            .map(|user| command("debit", &format!("user-{user}"), if user == 36 { poor } else { 5 }, "spend"))
            .collect()
    };
    let refused = service.post("/v1/batches", &json!({ "commands": debits(11) })).await.expect(422);
    assert_eq!((&refused["code"], &refused["index"]), (&json!("batch_rejected"), &json!(36)));
    assert_eq!(
        (&refused["problem"]["code"], &refused["problem"]["required"], &refused["problem"]["available"]),
        (&json!("insufficient_balance"), &json!(11), &json!(10))
    );
    for user in 0..50 {
        assert_eq!(service.holdings(&format!("user-{user}")).await, (10, 0, 10));
    }
    let done = service.post("/v1/batches", &json!({ "commands": debits(10) })).await.expect(201);
    assert_eq!(done["results"].as_array().map(Vec::len), Some(50));
    let again = service.post("/v1/batches", &json!({ "commands": debits(10) })).await.expect(200);
    assert!(again["results"].as_array().expect("a list").iter().all(|result| result["replayed"] == true));
    verify_consistent(&database.url);
}

async fn a_batch_of_10_000_commands_is_done_whole(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let commands: Vec<_> =
        (0..10_000).map(|n| command("credit", &format!("user-{}", n % 500), 1, &n.to_string())).collect();
    let done = service.post("/v1/batches", &json!({ "atomic": true, "commands": commands })).await.expect(201);
    assert_eq!(done["results"].as_array().map(Vec::len), Some(10_000));
    assert_eq!(service.holdings("user-7").await, (20, 0, 20));
    let verified = verify_consistent(&database.url);
    assert_eq!((&verified["events"], &verified["accounts"]), (&json!(10_000), &json!(500)));
    let mut more = commands;
    more.push(command("credit", "user-0", 1, "one-too-many"));
    let refused = service.post("/v1/batches", &json!({ "commands": more })).await.expect(400);
    assert_eq!(refused["field"], "commands");
}

async fn a_batch_that_is_not_atomic_answers_each_command_on_its_own(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let commands = json!([
        command("credit", "ann", 10, "1"),
        command("debit", "ann", 11, "2"),
        command("debit", "ann", 10, "3"),
        { "type": "debit", "user_id": "ann" },
        command("credit", "ann", 10, "1"),
    ]);
    let answer = service.post("/v1/batches", &json!({ "atomic": false, "commands": commands })).await.expect(200);
    let results = answer["results"].as_array().expect("a list");
    assert_eq!(results[0]["type"], "credited");
    assert_eq!(results[1]["code"], "insufficient_balance");
    assert_eq!(results[2]["balance"], 0);
    assert_eq!(
        (&results[3]["code"], &results[3]["field"]),
        (&json!("invalid_request"), &json!("commands[3].credit_type"))
    );
    assert_eq!(results[4]["replayed"], true);
    verify_consistent(&database.url);
}

async fn a_command_that_cannot_be_read_is_named_by_its_index(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let mut wrong = command("credit", "ann", 10, "2");
    wrong["amount"] = json!("10");
    let refused = service
        .post("/v1/batches", &json!({ "commands": [command("credit", "ann", 10, "1"), wrong] }))
        .await
        .expect(400);
    assert_eq!((&refused["code"], &refused["field"]), (&json!("invalid_request"), &json!("commands[1].amount")));
    service.get("/v1/accounts/ann/points").await.expect(404);
    for (body, field) in [
        (json!({}), "commands"),
        (json!({ "commands": [] }), "commands"),
        (json!({ "commands": {} }), "commands"),
        (json!({ "atomic": 1, "commands": [] }), "atomic"),
        (json!({ "commands": [{ "type": "steal" }] }), "commands[0].type"),
        (json!({ "commands": [7] }), "commands[0]"),
    ] {
        assert_eq!(service.post("/v1/batches", &body).await.expect(400)["field"], field, "{body}");
    }
}

async fn an_id_that_no_ledger_gives_is_refused_like_one_that_names_nothing(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    // The first is of a version that the ledger does not make; the second could be an id, of an event far ahead.
    for id in ["67e55044-10b1-426f-9247-bb680e5fe0c8", "07e55044-10b1-826f-9247-bb680e5fe0c8"] {
        for (kind, field, code) in [
            ("debit", "freeze_id", "freeze_not_found"),
            ("unfreeze", "freeze_id", "freeze_not_found"),
            ("refund", "debit_id", "debit_not_found"),
        ] {
            let mut stray = json!({ "type": kind, "business_code": "batch.stray", "business_id": "1" });
            stray[field] = json!(id);
            let credit = command("credit", "ann", 10, "1");
            let batch = json!({ "commands": [credit, stray] });
            let refused = service.post("/v1/batches", &batch).await.expect(422);
            assert_eq!((&refused["code"], &refused["index"]), (&json!("batch_rejected"), &json!(1)), "{refused}");
            let problem = &refused["problem"];
            assert_eq!(
                (&problem["status"], &problem["code"], &problem["field"], &problem[field]),
                (&json!(404), &json!(code), &json!(field), &json!(id))
            );
            service.get("/v1/accounts/ann/points").await.expect(404);
            // What cannot be read is told first.
            let unreadable = json!({ "commands": [stray, { "type": "credit" }] });
            assert_eq!(service.post("/v1/batches", &unreadable).await.expect(400)["field"], "commands[1].user_id");
            let each = json!({ "atomic": false, "commands": [stray] });
            let problem = service.post("/v1/batches", &each).await.expect(200)["results"][0].clone();
            assert_eq!((&problem["code"], &problem["field"]), (&json!(code), &json!(field)));
        }
    }
}

/// A thousand transactions of the key that the accounts share, and whether it is said that there are more.
async fn shown_in_part(service: &Service, has_more: bool) {
    let found = service.get("/v1/transactions?business_code=batch.credit&business_id=campaign").await.expect(200);
    let items = found["items"].as_array().expect("a list");
    let place = |item: &Value| (item["partition"].as_u64(), item["position"].as_u64());
    let places: Vec<_> = items.iter().map(place).collect();
    assert!(places.is_sorted_by(|one, next| one < next), "each once and in order: {places:?}");
    assert_eq!((places.len(), &found["has_more"]), (1_000, &json!(has_more)));
}

async fn a_key_of_very_many_accounts_is_shown_in_part(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    let credit = |user: usize| command("credit", &format!("user-{user}"), 1, "campaign");
    let commands: Vec<_> = (0..1_000).map(credit).collect();
    service.post("/v1/batches", &json!({ "commands": commands })).await.expect(201);
    shown_in_part(&service, false).await;
    // From then on the index holds them, and memory what comes later.
    service.terminate();
    let mut service = Service::start(&database.url, &[]);
    shown_in_part(&service, false).await;
    service.post("/v1/batches", &json!({ "commands": [credit(1_000)] })).await.expect(201);
    shown_in_part(&service, true).await;
    let key = "business_code=batch.credit&business_id=campaign";
    let one = service.get(&format!("/v1/transactions?{key}&user_id=user-1000&credit_type=points")).await.expect(200);
    assert_eq!((one["items"].as_array().map(Vec::len), one.get("has_more")), (Some(1), None));
    service.terminate();
    let service = Service::start(&database.url, &[]);
    shown_in_part(&service, true).await;
}

/// The id that a freeze of ann's has if its event is the next one.
async fn id_of_next(database: &NewDatabase, freeze: &Value) -> TransactionId {
    let opened = Database::open_existing(&database.url).await.expect("a ledger");
    let heads = opened.heads().await.expect("heads");
    opened.close().await;
    let account = Account::new("ann", "points").expect("valid");
    let text = |field: &str| freeze[field].as_str().expect("a text");
    let key = BusinessKey::new(text("business_code"), text("business_id")).expect("valid");
    let head = &heads[account.partition().index()];
    TransactionId::derive(&account, head.epoch, head.position.next(), &key)
}

async fn a_batch_cannot_name_what_it_makes_itself(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    let mut bound = command("credit", "ann", 100, "bound");
    bound["business_code"] = json!("batch.unfreeze");
    service.post("/v1/batches", &json!({ "commands": [bound] })).await.expect(201);
    // From then on only the index knows that the key is bound.
    service.terminate();
    let service = Service::start(&database.url, &[]);

    let freeze = command("freeze", "ann", 30, "1");
    let freeze_id = id_of_next(&database, &freeze).await;
    let release = |id: &str| json!({ "freeze_id": freeze_id, "business_code": "batch.unfreeze", "business_id": id });
    let unfreeze = |id: &str| {
        let mut command = release(id);
        command["type"] = json!("unfreeze");
        command
    };
    for commands in [
        vec![freeze.clone(), unfreeze("1")],
        vec![freeze.clone(), command("debit", "ann", 5, "1"), unfreeze("1")],
        vec![freeze.clone(), unfreeze("bound")],
    ] {
        let last = commands.len() - 1;
        let refused = service.post("/v1/batches", &json!({ "commands": commands })).await.expect(422);
        assert_eq!((&refused["code"], &refused["index"]), (&json!("batch_rejected"), &json!(last)));
        assert_eq!(refused["problem"]["code"], "freeze_not_found");
    }
    assert_eq!(service.holdings("ann").await, (100, 0, 100));

    let commands = json!([freeze, unfreeze("1"), unfreeze("bound")]);
    let answer = service.post("/v1/batches", &json!({ "atomic": false, "commands": commands })).await.expect(200);
    let results = answer["results"].as_array().expect("a list");
    assert_eq!(results[0]["transaction_id"], json!(freeze_id), "the guess was right");
    assert_eq!((&results[1]["code"], &results[2]["code"]), (&json!("freeze_not_found"), &json!("freeze_not_found")));
    // Once its id is known the freeze is released, under a key that is free.
    let conflict = service.post("/v1/unfreezes", &release("bound")).await.expect(409);
    assert_eq!(conflict["code"], "idempotency_conflict");
    service.post("/v1/unfreezes", &release("1")).await.expect(201);
    verify_consistent(&database.url);
}
