//! An order system that is asked before a freeze is released.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tests::{Service, on_both_databases, store::NewDatabase, verify_consistent};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::{freeze, id, is_settled, metric, releases, served, until};

on_both_databases!(
    a_paid_order_keeps_its_freeze_and_a_cancelled_one_does_not,
    while_the_order_system_cannot_be_reached_nothing_is_released,
);

/// A small order system.
#[derive(Clone, Default)]
struct Shop {
    /// What is answered, by path.
    answers: Arc<Mutex<HashMap<String, (u16, String)>>>,
    asked: Arc<Mutex<Vec<String>>>,
    /// Answers nothing, and keeps who asks waiting.
    hangs: Arc<AtomicBool>,
}

impl Shop {
    fn set(&self, path: &str, status: u16, body: &Value) {
        self.answers.lock().expect("no holder panics").insert(path.to_owned(), (status, body.to_string()));
    }

    fn asked(&self, path: &str) -> usize {
        self.asked.lock().expect("no holder panics").iter().filter(|asked| *asked == path).count()
    }

    async fn run(&self, port: u16) -> (u16, JoinHandle<()>) {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let shop = self.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                tokio::spawn(shop.clone().answer(stream));
            }
        });
        (port, task)
    }

    async fn answer(self, mut stream: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read_exact(&mut byte).await.is_err() {
                return;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("text");
        let path = head.split(' ').nth(1).expect("GET PATH").to_owned();
        self.asked.lock().expect("no holder panics").push(path.clone());
        if self.hangs.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_secs(600)).await;
        }
        let known = self.answers.lock().expect("no holder panics").get(&path).cloned();
        let (status, body) = known.unwrap_or((404, "{}".to_owned()));
        let answer = format!(
            "HTTP/1.1 {status} Whatever\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        // Whoever asked may have given up.
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

async fn a_paid_order_keeps_its_freeze_and_a_cancelled_one_does_not(database: NewDatabase) {
    let shop = Shop::default();
    let (port, server) = shop.run(0).await;
    let template = format!("http://127.0.0.1:{port}/{{user_id}}/{{business_id}}?step={{business_code}}");
    let service = Service::start(&database.url, &["--order-status-url", &template]);
    let path = |order: &str| format!("/ann/{order}?step=order.create");
    shop.set(&path("paid"), 200, &json!({ "status": "paid" }));
    shop.set(&path("completed"), 200, &json!({ "status": "Completed", "lines": [] }));
    shop.set(&path("cancelled"), 200, &json!({ "status": "cancelled" }));
    shop.set(&path("A%2F1%20%C3%A4%3F"), 200, &json!({ "status": "created" }));
    shop.set(&path("broken"), 500, &json!({ "status": "cancelled" }));
    shop.set(&path("nonsense"), 200, &json!(["cancelled"]));
    service.credit("ann", 1_000, "seed").await;
    let mut freezes = HashMap::new();
    for order in ["paid", "completed", "cancelled", "A/1 ä?", "unknown-there", "broken", "nonsense"] {
        freezes.insert(order, freeze(&service, "ann", 10, order, json!({ "expires_in_seconds": 1 })).await);
    }
    for order in ["cancelled", "A/1 ä?", "unknown-there"] {
        until("the release", || is_settled(&service, &freezes[order])).await;
    }
    until("both alerts", || async { metric(&service, "ledger_alerts_total{kind=\"freeze_kept\"} ").await == 2 }).await;
    until("the gauge", || async { metric(&service, "ledger_expiry_kept ").await == 2 }).await;
    // What nobody knows is asked again, and told of, and not released.
    until("further tries", || async { shop.asked(&path("broken")) >= 4 && shop.asked(&path("nonsense")) >= 4 }).await;
    for order in ["paid", "completed", "broken", "nonsense"] {
        assert_eq!(served(&service, &freezes[order]).await["status"], "open", "{order}");
    }
    assert_eq!(releases(&database).await, 3);
    assert_eq!(shop.asked(&path("cancelled")), 1);
    let told = "ledger_alerts_total{kind=\"order_status_unreachable\"} ";
    until("the alert", || async { metric(&service, told).await >= 1 }).await;
    let log = service.log();
    assert!(log.contains("freeze_kept") && log.contains(id(&freezes["paid"])) && !log.contains("step=order"), "{log}");

    shop.set(&path("broken"), 200, &json!({ "status": "cancelled" }));
    shop.set(&path("nonsense"), 404, &json!({}));
    for order in ["broken", "nonsense"] {
        until("the release when it is known", || is_settled(&service, &freezes[order])).await;
    }
    // The paid ones are captured; what is known no more is asked anew after a start.
    let capture = json!({ "freeze_id": id(&freezes["paid"]), "business_code": "order.payment", "business_id": "paid" });
    service.post("/v1/debits", &capture).await.expect(201);
    until("the read model", || is_settled(&service, &freezes["paid"])).await;
    drop(service);
    let asked = shop.asked(&path("paid"));
    shop.set(&path("completed"), 200, &json!({ "status": "cancelled" }));
    let service = Service::start(&database.url, &["--order-status-url", &template]);
    until("the release after all", || is_settled(&service, &freezes["completed"])).await;
    assert_eq!((releases(&database).await, shop.asked(&path("paid"))), (6, asked));
    assert_eq!(service.holdings("ann").await, (990, 0, 990));
    server.abort();
    verify_consistent(&database.url);
}

async fn while_the_order_system_cannot_be_reached_nothing_is_released(database: NewDatabase) {
    let shop = Shop::default();
    let (port, server) = shop.run(0).await;
    server.abort();
    let _ = server.await;
    let template = format!("http://127.0.0.1:{port}/{{business_id}}");
    let mut service = Service::start(&database.url, &["--order-status-url", &template]);
    service.credit("ann", 1_000, "seed").await;
    let mut freezes = Vec::new();
    for order in 0..100 {
        freezes.push(freeze(&service, "ann", 1, &order.to_string(), json!({ "expires_in_seconds": 1 })).await);
    }
    let failures = "ledger_expiry_failures_total{reason=\"order_status\"} ";
    let alerts = "ledger_alerts_total{kind=\"order_status_unreachable\"} ";
    until("the alert", || async { metric(&service, alerts).await == 1 }).await;
    assert_eq!(releases(&database).await, 0);
    // It is let alone now and then: a freeze is not asked about again and again.
    assert!(metric(&service, failures).await < 1_500);
    // Commands do not mind.
    service.credit("ben", 1, "meanwhile").await;

    // It is there again, and hangs; then it answers.
    shop.hangs.store(true, Ordering::Relaxed);
    let (_, server) = shop.run(port).await;
    until("somebody who waits", || async { !shop.asked.lock().expect("no holder panics").is_empty() }).await;
    assert_eq!(releases(&database).await, 0);
    shop.hangs.store(false, Ordering::Relaxed);
    for freeze in &freezes {
        until("the release", || is_settled(&service, freeze)).await;
    }
    assert_eq!(releases(&database).await, 100);
    assert_eq!(metric(&service, alerts).await, 1);
    assert_eq!(service.holdings("ann").await, (1_000, 0, 1_000));
    server.abort();
    service.terminate();
    verify_consistent(&database.url);
}
