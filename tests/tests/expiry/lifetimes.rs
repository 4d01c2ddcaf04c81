//! How long a freeze may stay open.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Service, on_both_databases, store::NewDatabase};

use crate::{freeze, is_settled, time_from_now, until};

on_both_databases!(a_freeze_gets_the_usual_lifetime_and_no_longer_one_than_the_longest);

fn order(id: &str, fields: &Value) -> Value {
    let command = json!({ "user_id": "ann", "credit_type": "points", "amount": 1,
        "business_code": "order.create", "business_id": id });
    crate::with(command, fields)
}

fn in_batch(command: &Value, atomic: bool) -> Value {
    let command = crate::with(command.clone(), &json!({ "type": "freeze" }));
    json!({ "atomic": atomic, "commands": [command] })
}

async fn a_freeze_gets_the_usual_lifetime_and_no_longer_one_than_the_longest(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    service.credit("ann", 1_000, "seed").await;
    // Accepted while nothing was set.
    let open = freeze(&service, "ann", 1, "open", json!({})).await;
    assert_eq!(open["expires_at"], Value::Null);
    let in_a_day = json!({ "expires_in_seconds": 86_400 });
    let at_a_day = json!({ "expires_at": time_from_now(Duration::from_secs(86_400)) });
    let long = freeze(&service, "ann", 1, "long", in_a_day.clone()).await;
    let far = freeze(&service, "ann", 1, "far", at_a_day.clone()).await;
    for refused in [json!({ "expires_in_seconds": 3_162_240_001_u64 }), json!({ "expires_at": "9999-12-31T00:00:00Z" })]
    {
        let field = refused.as_object().expect("an object").keys().next().expect("one").clone();
        assert_eq!(service.post("/v1/freezes", &order("ages", &refused)).await.expect(400)["field"], field);
    }
    service.terminate();

    let service = Service::start(&database.url, &["--freeze-lifetime", "1", "--freeze-lifetime-max", "3600"]);
    // A repeat stays a repeat.
    for (id, fields, first) in
        [("open", json!({}), &open), ("long", in_a_day.clone(), &long), ("far", at_a_day.clone(), &far)]
    {
        let again = service.post("/v1/freezes", &order(id, &fields)).await.expect(200);
        assert_eq!(
            (&again["transaction_id"], &again["expires_at"], &again["replayed"]),
            (&first["transaction_id"], &first["expires_at"], &json!(true))
        );
        service.post("/v1/batches", &in_batch(&order(id, &fields), true)).await.expect(200);
    }
    // A new one is bounded, and so is another command under a key that is bound.
    for (field, fields) in [("expires_in_seconds", &in_a_day), ("expires_at", &at_a_day)] {
        let refused = service.post("/v1/freezes", &order("new", fields)).await.expect(400);
        assert_eq!((&refused["code"], &refused["field"]), (&json!("invalid_request"), &json!(field)));
        assert!(refused["detail"].as_str().expect("text").contains("3600"), "{refused}");
        let refused = service.post("/v1/batches", &in_batch(&order("new", fields), true)).await.expect(400);
        assert_eq!(refused["field"], format!("commands[0].{field}"));
        let each = service.post("/v1/batches", &in_batch(&order("new", fields), false)).await.expect(200);
        assert_eq!(each["results"][0]["field"], format!("commands[0].{field}"));
    }
    let other = crate::with(order("long", &in_a_day), &json!({ "amount": 2 }));
    assert_eq!(service.post("/v1/freezes", &other).await.expect(409)["code"], "idempotency_conflict");
    freeze(&service, "ann", 1, "longest", json!({ "expires_in_seconds": 3_600 })).await;

    let usual = freeze(&service, "ann", 1, "usual", json!({})).await;
    assert!(usual["expires_at"].is_string(), "{usual}");
    let batched = service.post("/v1/batches", &in_batch(&order("batched", &json!({})), true)).await.expect(201);
    assert!(batched["results"][0]["expires_at"].is_string(), "{batched}");
    until("the release", || is_settled(&service, &usual)).await;
    let again = service.post("/v1/freezes", &order("usual", &json!({}))).await.expect(200);
    assert_eq!(again["expires_at"], usual["expires_at"]);
    assert_eq!(crate::served(&service, &open).await["status"], "open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_makes_no_sense_is_refused_in_one_line() {
    let database = tests::store::sqlite();
    for (arguments, says) in [
        (vec!["--freeze-lifetime", "0"], "--freeze-lifetime"),
        (vec!["--freeze-lifetime", "soon"], "--freeze-lifetime"),
        (vec!["--freeze-lifetime-max", "99999999999"], "--freeze-lifetime-max"),
        (vec!["--freeze-lifetime", "61", "--freeze-lifetime-max", "60"], "--freeze-lifetime-max 60"),
        (vec!["--order-status-url", "shop.example/{business_id}"], "must begin with http"),
        (vec!["--order-status-url", "http://shop.example/orders?token=s3cret"], "must contain {business_id}"),
        (vec!["--order-status-url", "http://shop.example/{business_id}/{order}"], "{user_id} and no other"),
        (vec!["--order-status-url", "http://{business_id}/"], "must name the host"),
    ] {
        let said = Service::try_start(&database.url, &arguments).expect_err("refused");
        assert!(said.contains(says) && said.lines().count() == 1 && !said.contains("s3cret"), "{arguments:?}: {said}");
    }
}
