//! Where alerts go.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;
use tests::{
    Nats, Service, Webhook,
    nats::{Fate, Proxy},
    on_both_databases,
    store::{self, NewDatabase},
    webhook::Delivered,
};

use super::{Stored, account, jetstream, send, stored, until, until_empty};

on_both_databases!(
    alerts_come_to_nats_and_signed_to_the_webhook,
    a_dead_webhook_holds_up_nothing_and_gets_its_alerts_later,
    alerts_are_kept_while_nats_is_away,
);

const SECRET: &str = "0123456789abcdef-nobody-may-see";

/// A service that raises an alert for each command that it refuses.
fn service(database: &NewDatabase, nats: &Nats, webhook: &Webhook) -> Service {
    let arguments = ["--nats-url", &nats.url(), "--nats-commands", "--alert-webhook-url", &webhook.url()];
    Service::start(&database.url, &[arguments.as_slice(), &["--alert-webhook-secret", SECRET]].concat())
}

/// Checks a signature as its receiver would.
fn check(delivered: &Delivered) -> Value {
    let signature = delivered.header("x-ledger-signature").expect("a signature");
    let (time, hex) = signature.strip_prefix("t=").and_then(|rest| rest.split_once(",v1=")).expect("t=…,v1=…");
    let sent = time.parse::<u64>().expect("seconds");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("later").as_secs();
    assert!(now.abs_diff(sent) < 120, "{sent} is not now, {now}");
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length");
    mac.update(format!("{time}.").as_bytes());
    mac.update(&delivered.body);
    let expected: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expected);
    assert_eq!(delivered.header("content-type"), Some("application/json"));
    let alert: Value = serde_json::from_slice(&delivered.body).expect("JSON");
    assert_eq!(delivered.header("x-ledger-alert-id"), alert["alert_id"].as_str());
    alert
}

async fn delivered(webhook: &Webhook, count: usize) -> Vec<Delivered> {
    until("the webhook is told", || async {
        let received = webhook.received();
        (received.len() >= count).then_some(received)
    })
    .await
}

async fn alerts_come_to_nats_and_signed_to_the_webhook(database: NewDatabase) {
    let (nats, mut webhook) = (Nats::start(), Webhook::default());
    webhook.answer(204).await;
    let service = service(&database, &nats, &webhook);
    let context = jetstream(&nats).await;
    send(&context, "debit", &account("ann", 5, "1")).await;
    let posted = check(&delivered(&webhook, 1).await[0]);
    let published = stored(&context, "CREDIT_ALERTS", 1).await;
    assert_eq!(published[0].subject, "credit.alerts");
    assert_eq!(published[0].json(), posted);
    assert_eq!(published[0].header("ce-id"), posted["alert_id"]);
    for field in ["alert_id", "kind", "user_id", "credit_type", "figures", "message", "remedy", "raised_at"] {
        assert!(!posted[field].is_null(), "{field}: {posted}");
    }
    assert_eq!(posted.as_object().map(serde_json::Map::len), Some(8), "{posted}");
    assert_eq!((posted["kind"].as_str(), posted["user_id"].as_str()), (Some("command_dead"), Some("ann")));
    let log = service.log();
    assert!(log.contains("command_dead") && log.contains(posted["alert_id"].as_str().expect("text")), "{log}");
    assert!(!log.contains("nobody-may-see"), "{log}");
}

async fn a_dead_webhook_holds_up_nothing_and_gets_its_alerts_later(database: NewDatabase) {
    let (nats, mut webhook) = (Nats::start(), Webhook::default());
    let service = service(&database, &nats, &webhook);
    let context = jetstream(&nats).await;
    for number in 0..20 {
        send(&context, "debit", &account("ann", 5, &number.to_string())).await;
    }
    assert_eq!(stored(&context, "CREDIT_ALERTS", 20).await.len(), 20);
    assert_eq!(webhook.received().len(), 0);
    service.credit("ann", 1, "seed").await;
    // It comes up with an error first.
    webhook.answer(500).await;
    delivered(&webhook, 1).await;
    webhook.answer(200).await;
    let mut wanted: Vec<_> =
        stored(&context, "CREDIT_ALERTS", 20).await.iter().map(|alert| alert.header("ce-id").to_owned()).collect();
    until("every alert is taken", || async {
        let metrics = service.get("/metrics").await.body.to_string();
        metrics.contains(r#"ledger_alerts_delivered_total{target=\"webhook\"} 20"#).then_some(())
    })
    .await;
    let mut got: Vec<_> =
        webhook.received().iter().map(|one| check(one)["alert_id"].as_str().expect("text").to_owned()).collect();
    wanted.sort();
    got.sort();
    got.dedup();
    assert_eq!(got, wanted);
    let log = service.log();
    assert!(log.contains("the webhook did not take an alert"), "{log}");
    let metrics = service.get("/metrics").await.body.to_string();
    assert!(!log.contains("nobody-may-see") && !metrics.contains("nobody-may-see"), "{log}");
}

async fn alerts_are_kept_while_nats_is_away(database: NewDatabase) {
    let (mut nats, mut webhook) = (Nats::start(), Webhook::default());
    webhook.answer(200).await;
    let _service = service(&database, &nats, &webhook);
    let context = jetstream(&nats).await;
    for number in 0..5 {
        send(&context, "debit", &account("ann", 5, &number.to_string())).await;
        delivered(&webhook, number + 1).await;
        nats.kill9();
        nats.run();
    }
    let published: Vec<_> = stored(&context, "CREDIT_ALERTS", 5).await.iter().map(Stored::json).collect();
    let posted: Vec<_> = webhook.received().iter().map(check).collect();
    assert_eq!(published.len(), 5);
    assert!(posted.iter().all(|alert| published.contains(alert)), "{posted:?}");
}

/// The database plays no part in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_whose_acknowledgement_is_lost_raises_its_alert_all_the_same() {
    let (nats, database) = (Nats::start(), store::sqlite());
    let proxy = Proxy::start(&nats, "HPUB credit.dead.debit ", Fate::Unanswered).await;
    let _service = Service::start(&database.url, &["--nats-url", &proxy.url(), "--nats-commands"]);
    let context = jetstream(&nats).await;
    send(&context, "debit", &account("ann", 5, "1")).await;
    proxy.met().await;
    assert_eq!(stored(&context, "CREDIT_DEAD", 1).await.len(), 1);
    proxy.release();
    let alerts = stored(&context, "CREDIT_ALERTS", 1).await;
    assert_eq!(alerts[0].json()["kind"], "command_dead");
    until_empty(&context).await;
    assert_eq!(stored(&context, "CREDIT_DEAD", 1).await.len(), 1);
}

#[test]
fn settings_that_cannot_be_right_are_refused_in_one_line() {
    let url = "http://127.0.0.1:1/hush";
    for (arguments, told) in [
        (&["--alert-webhook-url", "hush", "--alert-webhook-secret", SECRET][..], "--alert-webhook-url must be a URL"),
        (
            &["--alert-webhook-url", "ftp://a/hush", "--alert-webhook-secret", SECRET],
            "--alert-webhook-url must be a URL",
        ),
        (&["--alert-webhook-url", "https://a:hush@b/", "--alert-webhook-secret", SECRET], "must not hold a user"),
        (&["--alert-webhook-url", url], "needs --alert-webhook-secret"),
        (&["--alert-webhook-url", url, "--alert-webhook-secret", "hush"], "must have 16 to 256"),
        (&["--alert-webhook-url", url, "--alert-webhook-secret", "hush hush hush hush hush"], "must have 16 to 256"),
        (&["--alert-webhook-secret", SECRET], "signs nothing without --alert-webhook-url"),
        (&["--nats-commands"], "--nats-commands needs --nats-url"),
        (&["--nats-url", "nats://127.0.0.1:1", "--nats-commands", "--nats-command-attempts", "0"], "0"),
    ] {
        let log = Service::try_start(&store::sqlite().url, arguments).expect_err("refused");
        assert!(log.contains(told), "{arguments:?}: {log}");
        assert_eq!(log.trim_end().lines().count(), 1, "{log}");
        assert!(!log.contains("hush") && !log.contains("nobody-may-see"), "{log}");
    }
}
