//! Operations: what became of them, and their reversal by the ledger itself.

use std::collections::BTreeMap;

use futures::future::join_all;
use serde_json::{Value, json};
use tests::{
    Service, on_both_databases, replay_tool,
    store::{self, NewDatabase},
    verify_consistent,
};
use uuid::Uuid;

on_both_databases!(
    a_caller_who_timed_out_finds_out_what_became_of_the_command,
    a_flow_says_by_its_steps_how_far_it_is,
    an_order_half_done_is_reversed_whole_and_once,
    what_cannot_be_reversed_whole_is_refused_whole,
    a_refund_of_another_operations_deduction_loses_nothing,
    a_compensated_operation_takes_no_more_commands,
    orders_that_are_cancelled_from_three_sides_are_reversed_once,
    a_compensation_survives_a_crash_in_the_middle,
    an_operation_is_found_again_however_old_it_is,
    a_restore_knows_which_operations_are_closed,
);

fn body(user: &str, amount: u64, code: &str, id: &str, operation: Uuid) -> Value {
    json!({ "user_id": user, "credit_type": "points", "amount": amount, "business_code": code, "business_id": id,
        "operation_id": operation })
}

async fn operation(service: &Service, id: Uuid) -> Value {
    service.get(&format!("/v1/operations/{id}")).await.expect(200)
}

async fn by_key(service: &Service, user: &str, code: &str, id: &str) -> Value {
    let query = format!("business_code={code}&business_id={id}&user_id={user}&credit_type=points");
    service.get(&format!("/v1/transactions?{query}")).await.expect(200)
}

async fn a_caller_who_timed_out_finds_out_what_became_of_the_command(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 100, "seed").await;
    let [done, refused, never] = [Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4()];

    let committed = service.post("/v1/debits", &body("ann", 40, "order.pay", "1", done)).await.expect(201);
    let found = operation(&service, done).await;
    assert_eq!(found["status"], "completed");
    assert_eq!(found["transactions"][0]["transaction_id"], committed["transaction_id"]);
    assert_eq!((&found["transactions_total"], &found["refusals"]), (&json!(1), &json!([])));
    assert_eq!(by_key(&service, "ann", "order.pay", "1").await["items"][0], found["transactions"][0]);

    service.post("/v1/debits", &body("ann", 61, "order.pay", "2", refused)).await.expect(422);
    let found = operation(&service, refused).await;
    assert_eq!((&found["status"], &found["transactions"]), (&json!("failed"), &json!([])));
    let refusal = &found["refusals"][0];
    assert_eq!((&refusal["code"], &refusal["type"]), (&json!("insufficient_balance"), &json!("debit")));
    assert_eq!(refusal["figures"], json!({ "required": 61, "available": 60 }));
    assert_eq!((&refusal["user_id"], &refusal["business_id"]), (&json!("ann"), &json!("2")));
    let found = by_key(&service, "ann", "order.pay", "2").await;
    assert_eq!((&found["items"], &found["refusals"][0]["code"]), (&json!([]), &json!("insufficient_balance")));

    let missing = service.get(&format!("/v1/operations/{never}")).await.expect(404);
    assert_eq!((&missing["code"], &missing["field"]), (&json!("operation_not_found"), &json!("operation_id")));
    assert_eq!(by_key(&service, "ann", "order.pay", "3").await, json!({ "items": [] }));

    // A refusal binds nothing: what succeeds later under its key completes the operation.
    service.credit("ann", 10, "more").await;
    service.post("/v1/debits", &body("ann", 61, "order.pay", "2", refused)).await.expect(201);
    let found = operation(&service, refused).await;
    assert_eq!(
        (&found["status"], &found["refusals"][0]["code"]),
        (&json!("completed"), &json!("insufficient_balance"))
    );

    // In a batch that is refused every command finds its end.
    let batch = Uuid::new_v4();
    let command = |kind: &str, amount: u64, id: &str| {
        let mut command = body("ann", amount, "order.batch", id, batch);
        command["type"] = json!(kind);
        command
    };
    let commands = json!({ "commands": [command("credit", 1, "4"), command("debit", 1_000, "5")] });
    assert_eq!(service.post("/v1/batches", &commands).await.expect(422)["index"], 1);
    let found = operation(&service, batch).await;
    let codes: BTreeMap<_, _> = found["refusals"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|refusal| (refusal["business_id"].as_str().expect("an id"), refusal["code"].as_str().expect("a code")))
        .collect();
    assert_eq!(codes, BTreeMap::from([("4", "batch_rejected"), ("5", "insufficient_balance")]));
    // One that never named its account is found by its freeze, too.
    let freeze = service.post("/v1/freezes", &body("ann", 5, "hold", "6", Uuid::new_v4())).await.expect(201);
    let capture =
        json!({ "freeze_id": freeze["transaction_id"], "amount": 6, "business_code": "hold.pay", "business_id": "6" });
    service.post("/v1/debits", &capture).await.expect(422);
    assert_eq!(by_key(&service, "ann", "hold.pay", "6").await["refusals"][0]["figures"]["remaining"], 5);
    let own = freeze["operation_id"].as_str().expect("an id").parse().expect("an id");
    assert_eq!(operation(&service, own).await["transactions_total"], 1);
    // A transaction without an operation is one by itself.
    let alone = service.credit("ann", 1, "alone").await;
    let alone: Uuid = alone["transaction_id"].as_str().expect("an id").parse().expect("an id");
    assert_eq!(operation(&service, alone).await["transactions"][0]["business_id"], "alone");
}

async fn a_flow_says_by_its_steps_how_far_it_is(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let id = Uuid::new_v4();
    let flow =
        json!({ "operation_id": id, "name": "order.checkout", "steps": ["reserve", "pay"], "description": "an order" });
    let opened = service.post("/v1/operations", &flow).await;
    assert_eq!(opened.headers["location"], format!("/v1/operations/{id}"));
    let opened = opened.expect(201);
    assert_eq!((&opened["status"], &opened["name"]), (&json!("in_progress"), &json!("order.checkout")));
    assert!(opened["elapsed_seconds"].as_f64().is_some_and(|seconds| seconds >= 0.0), "{opened}");
    assert_eq!(opened["steps"][1]["status"], "pending");
    service.post("/v1/operations", &flow).await.expect(200);
    let mut other = flow.clone();
    other["steps"] = json!(["reserve"]);
    assert_eq!(service.post("/v1/operations", &other).await.expect(409)["code"], "idempotency_conflict");

    let step = |name: &str| format!("/v1/operations/{id}/steps/{name}");
    let data = json!({ "status": "completed", "data": { "warehouse": "north", "zeroes": 1.50 } });
    service.post(&step("reserve"), &json!({ "status": "started" })).await.expect(201);
    let done = service.post(&step("reserve"), &data).await.expect(201);
    assert_eq!(done["steps"][0]["data"]["warehouse"], "north");
    service.post(&step("reserve"), &data).await.expect(200);
    let conflict = service.post(&step("reserve"), &json!({ "status": "failed" })).await.expect(409);
    assert_eq!(conflict["code"], "step_conflict");
    let failed = service.post(&step("pay"), &json!({ "status": "failed" })).await.expect(201);
    assert_eq!((&failed["status"], &failed["elapsed_seconds"]), (&json!("failed"), &Value::Null));
    service.post(&step("pay"), &json!({ "status": "started" })).await.expect(201);
    let (path, last) = (step("pay"), json!({ "status": "completed" }));
    let both = join_all((0..20).map(|_| service.post(&path, &last))).await;
    let new = both.iter().filter(|answer| answer.status == 201).count();
    assert_eq!((new, both.iter().filter(|answer| answer.status == 200).count()), (1, 19));
    assert_eq!(operation(&service, id).await["status"], "completed");

    for (path, body, status, field) in [
        (step("ship"), json!({ "status": "started" }), 404, "name"),
        (step("pay"), json!({ "status": "done" }), 400, "status"),
        (step("pay"), json!({}), 400, "status"),
        (step("pay"), json!({ "status": "failed", "data": [] }), 400, "data"),
        (format!("/v1/operations/{}/steps/pay", Uuid::new_v4()), json!({ "status": "started" }), 404, "operation_id"),
        ("/v1/operations/nonsense/steps/pay".to_owned(), json!({ "status": "started" }), 400, "operation_id"),
        ("/v1/operations".to_owned(), json!({ "name": "x" }), 400, "steps"),
        ("/v1/operations".to_owned(), json!({ "name": "x", "steps": [] }), 400, "steps"),
        ("/v1/operations".to_owned(), json!({ "name": "x", "steps": ["a", "a"] }), 400, "steps"),
        ("/v1/operations".to_owned(), json!({ "name": "x", "steps": ["a", 1] }), 400, "steps[1]"),
        ("/v1/operations".to_owned(), json!({ "name": "", "steps": ["a"] }), 400, "name"),
        ("/v1/operations".to_owned(), json!({ "name": "x", "steps": ["a"], "operation_id": "1" }), 400, "operation_id"),
    ] {
        let refused = service.post(&path, &body).await.expect(status);
        assert_eq!(refused["field"], field, "{path} {body}: {refused}");
    }
}

/// A credit, two debits, a freeze, a half capture and a part of a refund under one operation, over three accounts.
async fn half_an_order(service: &Service, id: Uuid) {
    let debit = service.post("/v1/debits", &body("ann", 30, "order.pay", "a", id)).await.expect(201);
    service.post("/v1/debits", &body("bob", 20, "order.fee", "b", id)).await.expect(201);
    service.post("/v1/credits", &body("cid", 7, "order.bonus", "c", id)).await.expect(201);
    let freeze = service.post("/v1/freezes", &body("ann", 50, "order.hold", "d", id)).await.expect(201);
    let capture = json!({ "freeze_id": freeze["transaction_id"], "amount": 10, "business_code": "order.part",
        "business_id": "e", "operation_id": id });
    service.post("/v1/debits", &capture).await.expect(201);
    let refund = json!({ "debit_id": debit["transaction_id"], "amount": 5, "business_code": "order.back",
        "business_id": "f", "operation_id": id });
    service.post("/v1/refunds", &refund).await.expect(201);
    service.post("/v1/debits", &body("bob", 1_000_000, "order.too.much", "g", id)).await.expect(422);
}

async fn an_order_half_done_is_reversed_whole_and_once(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    for user in ["ann", "bob", "cid"] {
        service.credit(user, 100, "seed").await;
    }
    let id = Uuid::new_v4();
    half_an_order(&service, id).await;
    assert_eq!(operation(&service, id).await["status"], "failed");
    let path = format!("/v1/operations/{id}/compensate");
    let compensated = service.post(&path, &json!({ "reason": "out of stock" })).await.expect(200);
    assert_eq!((&compensated["status"], &compensated["transactions_total"]), (&json!("compensated"), &json!(11)));
    assert_eq!(compensated["compensation"]["reason"], "out of stock");
    for user in ["ann", "bob", "cid"] {
        assert_eq!(service.holdings(user).await, (100, 0, 100), "{user}");
    }
    let again = service.post(&path, &json!({ "reason": "another one" })).await.expect(200);
    assert_eq!(again, compensated);
    assert_eq!(operation(&service, id).await, compensated);
    // Without a body, too.
    assert_eq!(service.send(reqwest::Method::POST, &path, None).await.expect("an answer").expect(200), compensated);
    let marks: Vec<_> = compensated["transactions"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|transaction| transaction["business_code"] == "system.compensation")
        .map(|transaction| {
            (transaction["type"].as_str().expect("a type"), transaction["amount"].as_u64().expect("one"))
        })
        .collect();
    let mut sorted = marks;
    sorted.sort_unstable();
    assert_eq!(sorted, [("deducted", 7), ("refunded", 10), ("refunded", 20), ("refunded", 25), ("unfrozen", 40)]);
    verify_consistent(&database.url);
}

async fn what_cannot_be_reversed_whole_is_refused_whole(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    service.credit("ann", 100, "seed").await;
    let id = Uuid::new_v4();
    let path = format!("/v1/operations/{id}/compensate");
    assert_eq!(service.post(&path, &json!({})).await.expect(404)["code"], "operation_not_found");
    service.post("/v1/debits", &body("ann", 30, "order.pay", "1", id)).await.expect(201);
    let bonus = service.post("/v1/credits", &body("bob", 10, "order.bonus", "2", id)).await.expect(201);
    let spent =
        json!({ "user_id": "bob", "credit_type": "points", "amount": 4, "business_code": "spend", "business_id": "3" });
    let spent = service.post("/v1/debits", &spent).await.expect(201);
    let refused = service.post(&path, &json!({})).await.expect(422);
    assert_eq!(refused["code"], "compensation_refused");
    assert_eq!(refused["problems"].as_array().map(Vec::len), Some(1));
    let problem = &refused["problems"][0];
    assert_eq!(problem["transaction_id"], bonus["transaction_id"]);
    assert_eq!(
        (&problem["code"], &problem["required"], &problem["available"], &problem["user_id"]),
        (&json!("insufficient_balance"), &json!(10), &json!(6), &json!("bob"))
    );
    assert_eq!((service.holdings("ann").await, service.holdings("bob").await), ((70, 0, 70), (6, 0, 6)));
    assert_ne!(operation(&service, id).await["status"], "compensated");
    // Once nothing is in the way any more, it is done.
    let back = json!({ "debit_id": spent["transaction_id"], "business_code": "spend.back", "business_id": "3" });
    service.post("/v1/refunds", &back).await.expect(201);
    assert_eq!(service.post(&path, &json!({})).await.expect(200)["status"], "compensated");
    assert_eq!((service.holdings("ann").await, service.holdings("bob").await), ((100, 0, 100), (0, 0, 0)));

    // The release of another operation's freeze is for ever.
    let freeze = service.post("/v1/freezes", &body("ann", 5, "hold", "4", Uuid::new_v4())).await.expect(201);
    let release = Uuid::new_v4();
    let unfreeze = json!({ "freeze_id": freeze["transaction_id"], "business_code": "hold.end", "business_id": "4",
        "operation_id": release });
    service.post("/v1/unfreezes", &unfreeze).await.expect(201);
    let refused = service.post(&format!("/v1/operations/{release}/compensate"), &json!({})).await.expect(422);
    assert_eq!(refused["problems"][0]["code"], "not_reversible");
    for (body, field) in [(json!({ "reason": 1 }), "reason"), (json!({ "amount": 1 }), "amount")] {
        assert_eq!(service.post(&path, &body).await.expect(400)["field"], field);
    }
    verify_consistent(&database.url);
}

async fn a_refund_of_another_operations_deduction_loses_nothing(database: NewDatabase) {
    let service = Service::start(&database.url, &[]);
    let compensate = async |id: Uuid| service.post(&format!("/v1/operations/{id}/compensate"), &json!({})).await;
    for (user, is_refund_first) in [("ann", true), ("bob", false)] {
        service.credit(user, 100, "seed").await;
        let [order, claim] = [Uuid::new_v4(), Uuid::new_v4()];
        let debit = service.post("/v1/debits", &body(user, 100, "order.pay", "1", order)).await.expect(201);
        let refund = json!({ "debit_id": debit["transaction_id"], "amount": 40, "business_code": "order.back",
            "business_id": "1", "operation_id": claim });
        let refund = service.post("/v1/refunds", &refund).await.expect(201);
        let mut answers = if is_refund_first {
            [compensate(claim).await, compensate(order).await]
        } else {
            [compensate(order).await, compensate(claim).await]
        };
        answers.sort_by_key(|answer| answer.status);
        let [compensated, refused] = answers;
        assert_eq!(compensated.expect(200)["status"], "compensated");
        // Its deduction would stay refunded, and the units would be nobody's.
        let refused = refused.expect(422);
        assert_eq!(refused["code"], "compensation_refused");
        assert_eq!(refused["problems"].as_array().map(Vec::len), Some(1), "{refused}");
        let problem = &refused["problems"][0];
        assert_eq!(
            (&problem["code"], &problem["transaction_id"]),
            (&json!("not_reversible"), &refund["transaction_id"])
        );
        assert_eq!(service.holdings(user).await, (100, 0, 100), "{user}");
    }
    verify_consistent(&database.url);
}

async fn a_compensated_operation_takes_no_more_commands(database: NewDatabase) {
    let first = Service::start(&database.url, &[]);
    first.credit("ann", 100, "seed").await;
    // On PostgreSQL another process does not know what this one reversed; the append finds out.
    let second = (!database.url.starts_with("sqlite")).then(|| Service::start(&database.url, &[]));
    let second = second.as_ref().unwrap_or(&first);
    second.credit("bob", 100, "seed").await;
    let id = Uuid::new_v4();
    let paid = first.post("/v1/debits", &body("ann", 30, "order.pay", "1", id)).await.expect(201);
    first.post(&format!("/v1/operations/{id}/compensate"), &json!({})).await.expect(200);
    for service in [second, &first] {
        let late = service.post("/v1/debits", &body("bob", 5, "order.fee", "2", id)).await.expect(409);
        assert_eq!((&late["code"], &late["field"]), (&json!("operation_compensated"), &json!("operation_id")));
        assert_eq!(late["operation_id"], json!(id));
        let batch = json!({ "commands": [
            { "type": "credit", "user_id": "bob", "credit_type": "points", "amount": 1, "business_code": "x", "business_id": "1" },
            { "type": "debit", "user_id": "bob", "credit_type": "points", "amount": 1, "business_code": "x", "business_id": "2",
              "operation_id": id },
        ] });
        let refused = service.post("/v1/batches", &batch).await.expect(422);
        assert_eq!((&refused["index"], &refused["problem"]["code"]), (&json!(1), &json!("operation_compensated")));
        // A repeat is answered before every other check.
        let again = service.post("/v1/debits", &body("ann", 30, "order.pay", "1", id)).await.expect(200);
        assert_eq!(again["transaction_id"], paid["transaction_id"]);
    }
    assert_eq!(first.holdings("bob").await, (100, 0, 100));
    // One that was refused as a whole, or only opened, is closed as well: what comes late finds the door shut.
    let opened = Uuid::new_v4();
    let flow = json!({ "operation_id": opened, "name": "order", "steps": ["pay"] });
    first.post("/v1/operations", &flow).await.expect(201);
    let closed = first.post(&format!("/v1/operations/{opened}/compensate"), &json!({})).await.expect(200);
    assert_eq!((&closed["status"], &closed["transactions"]), (&json!("compensated"), &json!([])));
    second.post("/v1/debits", &body("bob", 5, "order.fee", "3", opened)).await.expect(409);
    let step = first.post(&format!("/v1/operations/{opened}/steps/pay"), &json!({ "status": "started" })).await;
    assert_eq!(step.expect(409)["code"], "operation_compensated");
    verify_consistent(&database.url);
}

/// So many orders: each of two debits and a freeze under one operation.
async fn orders(service: &Service, count: usize) -> Vec<Uuid> {
    let ids: Vec<_> = (0..count).map(|_| Uuid::new_v4()).collect();
    let seeds: Vec<_> = (0..50)
        .map(|user| {
            json!({ "type": "credit", "user_id": format!("u{user}"), "credit_type": "points", "amount": 100_000,
                "business_code": "seed", "business_id": "1" })
        })
        .collect();
    service.post("/v1/batches", &json!({ "commands": seeds })).await;
    for (chunk, ids) in ids.chunks(100).enumerate() {
        let commands: Vec<_> = ids
            .iter()
            .enumerate()
            .flat_map(|(n, id)| {
                let n = chunk * 100 + n;
                [("debit", 7), ("debit", 11), ("freeze", 13)].into_iter().enumerate().map(
                    move |(step, (kind, amount))| {
                        let user = format!("u{}", (n + step * 17) % 50);
                        let mut command = body(&user, amount, &format!("order.{step}"), &n.to_string(), *id);
                        command["type"] = json!(kind);
                        command
                    },
                )
            })
            .collect();
        service.post("/v1/batches", &json!({ "commands": commands })).await.expect(201);
    }
    ids
}

async fn all_is_as_before(service: &Service) {
    for user in 0..50 {
        assert_eq!(service.holdings(&format!("u{user}")).await, (100_000, 0, 100_000), "u{user}");
    }
}

async fn orders_that_are_cancelled_from_three_sides_are_reversed_once(database: NewDatabase) {
    let first = Service::start(&database.url, &[]);
    let second = (!database.url.starts_with("sqlite")).then(|| Service::start(&database.url, &[]));
    let second = second.as_ref().unwrap_or(&first);
    let ids = orders(&first, 500).await;
    for ids in ids.chunks(20) {
        let sides = ids.iter().flat_map(|id| {
            [(&first, "user"), (second, "timeout"), (&first, "administrator")].map(|(service, reason)| async move {
                let path = format!("/v1/operations/{id}/compensate");
                service.post(&path, &json!({ "reason": reason })).await.expect(200)
            })
        });
        let answers = join_all(sides).await;
        for sides in answers.chunks(3) {
            assert_eq!(sides[0]["status"], "compensated");
            assert_eq!(sides[0]["transactions_total"], 6, "{}", sides[0]);
            assert!(sides.iter().all(|side| *side == sides[0]), "{sides:#?}");
        }
    }
    all_is_as_before(&first).await;
    let verified = verify_consistent(&database.url);
    assert_eq!(verified["events"], 50 + 500 * 6);
}

async fn a_compensation_survives_a_crash_in_the_middle(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    let ids = orders(&service, 500).await;
    for round in 0..5_usize {
        let asked = ids.iter().map(|id| {
            let service = &service;
            async move {
                // The service dies in the middle: no answer is as good as any.
                let path = format!("/v1/operations/{id}/compensate");
                let _ = service.send(reqwest::Method::POST, &path, Some("{}".to_owned())).await;
            }
        });
        let pid = service.pid().to_string();
        let killer = async {
            // After some of them were done: which ones is left to chance.
            let done = || async { operation(&service, ids[40 * (round + 1)]).await["status"] == "compensated" };
            for _ in 0..2_000 {
                if done().await {
                    break;
                }
            }
            assert!(std::process::Command::new("kill").args(["-9", &pid]).status().expect("kill runs").success());
        };
        let asked = async {
            for chunk in asked.collect::<Vec<_>>().into_iter().fold(Vec::<Vec<_>>::new(), |mut chunks, future| {
                match chunks.last_mut() {
                    Some(last) if last.len() < 8 => last.push(future),
                    _ => chunks.push(vec![future]),
                }
                chunks
            }) {
                join_all(chunk).await;
            }
        };
        tokio::join!(asked, killer);
        drop(service);
        service = Service::start(&database.url, &[]);
    }
    for ids in ids.chunks(50) {
        let asked = ids.iter().map(|id| {
            let service = &service;
            async move { service.post(&format!("/v1/operations/{id}/compensate"), &json!({})).await.expect(200) }
        });
        for answer in join_all(asked).await {
            assert_eq!((&answer["transactions_total"], &answer["status"]), (&json!(6), &json!("compensated")));
        }
    }
    all_is_as_before(&service).await;
    assert_eq!(verify_consistent(&database.url)["events"], 50 + 500 * 6);
}

async fn an_operation_is_found_again_however_old_it_is(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    let ids = orders(&service, 200).await;
    // Stopping writes the indexes; after it the memory of the process is gone.
    service.terminate();
    let service = Service::start(&database.url, &[]);
    for id in ids.iter().step_by(20) {
        let found = operation(&service, *id).await;
        assert_eq!((&found["status"], &found["transactions_total"]), (&json!("completed"), &json!(3)));
    }
    let compensated = service.post(&format!("/v1/operations/{}/compensate", ids[0]), &json!({})).await.expect(200);
    assert_eq!(compensated["transactions_total"], 6);
    verify_consistent(&database.url);
}

async fn a_restore_knows_which_operations_are_closed(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    service.credit("ann", 100, "seed").await;
    let [before, after] = [Uuid::new_v4(), Uuid::new_v4()];
    for id in [before, after] {
        service.post("/v1/debits", &body("ann", 30, "order.pay", &id.to_string(), id)).await.expect(201);
    }
    service.post(&format!("/v1/operations/{before}/compensate"), &json!({})).await.expect(200);
    let folder = tempfile::tempdir().expect("a folder");
    let archive = folder.path().join("archive").display().to_string();
    assert_eq!(replay_tool(&database.url, &["export", "--out", &archive]).0, 0);
    service.post(&format!("/v1/operations/{after}/compensate"), &json!({})).await.expect(200);
    assert_eq!(service.holdings("ann").await, (100, 0, 100));
    service.terminate();

    // Into a new database of either kind: the second compensation never happened there.
    for database in [store::sqlite(), store::postgres()] {
        let url = &database.url;
        assert_eq!(replay_tool(url, &["import", "--from", &archive]).0, 0);
        let service = Service::start(url, &[]);
        assert_eq!(service.holdings("ann").await, (70, 0, 70));
        service.post("/v1/debits", &body("ann", 1, "order.late", "1", before)).await.expect(409);
        assert_eq!(operation(&service, before).await["status"], "compensated");
        assert_eq!(operation(&service, after).await["status"], "completed");
        service.post("/v1/debits", &body("ann", 1, "order.late", "2", after)).await.expect(201);
        service.post(&format!("/v1/operations/{after}/compensate"), &json!({})).await.expect(200);
        assert_eq!(service.holdings("ann").await, (100, 0, 100));
        verify_consistent(url);
    }
}
