//! Crashes of the service and of the database, under load.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use tests::{Load, Postgres, Service, on_both_databases, store::NewDatabase, verify_consistent};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

on_both_databases!(what_was_acknowledged_is_there_once_after_each_kill);

/// How often the service is killed: `CRASHES` says otherwise.
fn crashes() -> u64 {
    std::env::var("CRASHES").ok().and_then(|crashes| crashes.parse().ok()).unwrap_or(8)
}

/// An irregular number of milliseconds, the same in every run.
fn moment(crash: u64) -> Duration {
    Duration::from_millis(
        20 + crash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) % 400,
    )
}

async fn what_was_acknowledged_is_there_once_after_each_kill(database: NewDatabase) {
    let mut service = Service::start(&database.url, &[]);
    Load::open_accounts(&service).await;
    let load = Load::default();
    for crash in 0..crashes() {
        let before = load.acknowledged();
        let killer = async {
            // At a random moment, but not before something was acknowledged.
            tokio::time::timeout(Duration::from_secs(30), async {
                while load.acknowledged() < before + 50 {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("the load is served");
            tokio::time::sleep(moment(crash)).await;
            service.signal("KILL");
        };
        let services = [&service];
        tokio::join!(load.run(&services, 32), killer);
        drop(service);
        service = Service::start(&database.url, &[]);
    }
    assert!(load.acknowledged() > 50 * usize::try_from(crashes()).expect("few"));
    load.check(&service).await;
    verify_consistent(&database.url);
    service.terminate();
    verify_consistent(&database.url);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_stops_under_load_is_told_and_survived() {
    let mut cluster = Postgres::start();
    let url = cluster.database();
    let service = Service::start(&url, &[]);
    Load::open_accounts(&service).await;
    let load = Load::default();
    for _ in 0..3 {
        load.go_on();
        let before = load.acknowledged();
        let crash = async {
            while load.acknowledged() < before + 200 {
                tokio::task::yield_now().await;
            }
            cluster.stop_immediately();
            // The service says so and goes on answering.
            let refused = loop {
                let ready = service.get("/readyz").await;
                if ready.status == 503 {
                    break ready;
                }
            };
            assert!(refused.headers.contains_key("retry-after"));
            let answer = service
                .post(
                    "/v1/credits",
                    &serde_json::json!({ "user_id": "ann", "credit_type": "points", "amount": 1,
                    "business_code": "while.down", "business_id": before.to_string() }),
                )
                .await;
            assert_eq!((answer.status.as_u16(), answer.text("code")), (503, "store_unavailable"));
            assert_eq!(answer.body["retryable"], true);
            cluster.run();
            // It recovers by itself.
            tokio::time::timeout(Duration::from_secs(30), async {
                let again = load.acknowledged();
                while load.acknowledged() < again + 100 {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("commands are served again");
            load.stop();
        };
        let services = [&service];
        tokio::join!(load.run(&services, 16), crash);
    }
    load.check(&service).await;
    verify_consistent(&url);
}

/// A credit of one.
fn credit(user: &str, id: &str) -> Value {
    json!({ "user_id": user, "credit_type": "points", "amount": 1, "business_code": "test.credit", "business_id": id })
}

/// Waits for something, a minute at most.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Repeats the credit until the service has recovered: it must turn out to be known.
async fn was_done_once(service: &Service, url: &str) {
    let mut again = service.post("/v1/credits", &credit("ann", "once")).await;
    until("it recovers", async || {
        again = service.post("/v1/credits", &credit("ann", "once")).await;
        again.status != 503
    })
    .await;
    assert_eq!(again.expect(200)["replayed"], true);
    assert_eq!(service.holdings("ann").await, (1, 0, 1));
    verify_consistent(url);
}

/// What the writer has forgotten the server must still have when it comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_done_once_though_the_server_crashes_right_after_a_flush() {
    // Commits that nobody waits for stay off the disk for as long as the server allows.
    let settings = ["shared_buffers=128MB", "wal_writer_delay=10s", "autovacuum=off"];
    let mut cluster = Postgres::start_with(Path::new("/tmp"), &settings);
    let url = cluster.database();
    let database = url.rsplit('/').next().expect("its name").to_owned();
    let service = Service::start(&url, &["--proof-round", "0"]);
    service.post("/v1/credits", &credit("ann", "once")).await.expect(201);
    // A service that is idle writes its indexes.
    until("the key is flushed", async || cluster.psql(&database, "select count(*) from key_positions") == "1").await;
    cluster.stop_immediately();
    cluster.run();
    was_done_once(&service, &url).await;
}

/// The same for a service that has not committed anything yet: what it knows it has read, and flushed.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_done_once_though_a_server_without_the_last_flush_took_over() {
    let mut cluster = Postgres::start();
    let url = cluster.database();
    let database = url.rsplit('/').next().expect("its name").to_owned();
    let mut service = Service::start(&url, &["--proof-round", "0"]);
    // Nothing is flushed as long as this is held.
    let mut holder = PgConnection::connect(&url).await.expect("the server runs");
    holder.execute("begin; lock table index_checkpoints in exclusive mode").await.expect("held");
    service.post("/v1/credits", &credit("ann", "once")).await.expect(201);
    service.kill9();
    cluster.stop_immediately();
    drop(holder);
    cluster.keep();
    cluster.run();
    let service = Service::start(&url, &["--proof-round", "0"]);
    until("the key is flushed", async || cluster.psql(&database, "select count(*) from key_positions") == "1").await;
    cluster.stop_immediately();
    cluster.put_back();
    cluster.run();
    was_done_once(&service, &url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_can_be_stopped_while_its_database_is_away() {
    let mut cluster = Postgres::start();
    let url = cluster.database();
    let mut service = Service::start(&url, &[]);
    service.post("/v1/credits", &credit("ann", "before")).await.expect(201);
    cluster.stop_immediately();
    until("it says so", async || {
        service.post("/v1/credits", &credit("ann", "while.down")).await.expect(503);
        service.get("/readyz").await.status == 503
    })
    .await;
    let began = Instant::now();
    service.terminate();
    assert!(began.elapsed() < Duration::from_secs(45), "it took {:?} to stop", began.elapsed());
    cluster.run();
    let service = Service::start(&url, &[]);
    assert_eq!(service.holdings("ann").await, (1, 0, 1));
    verify_consistent(&url);
}

/// Stands between a service and its database, and can make connections go silent: nothing is sent on any more, and nobody is
/// told, as when a host dies or an address moves.
struct Proxy {
    port: u16,
    /// How many connections, counted from the first, are silent.
    silent: watch::Sender<usize>,
    accepted: Arc<AtomicUsize>,
}

impl Proxy {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let (silent, accepted) = (watch::Sender::new(0), Arc::new(AtomicUsize::new(0)));
        let (listening, counted) = (silent.subscribe(), accepted.clone());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (number, mut silent) = (counted.fetch_add(1, Ordering::SeqCst), listening.clone());
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        // Both stay open.
                        () = async { drop(silent.wait_for(|silent| number < *silent).await) } => std::future::pending().await,
                    }
                });
            }
        });
        Self { port, silent, accepted }
    }

    fn silence(&self) {
        self.silent.send_replace(self.accepted.load(Ordering::SeqCst));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_die_silently_do_not_hold_the_writer() {
    let cluster = Postgres::start();
    let url = cluster.database();
    let (_, port) = url.rsplit_once(':').expect("a port");
    let (port, name) = port.split_once('/').expect("a name");
    let proxy = Proxy::start(port.parse().expect("a number")).await;
    let through = format!("postgres://postgres@127.0.0.1:{}/{name}", proxy.port);
    let mut service = Service::start(&through, &["--proof-round", "0"]);
    for user in 0..20 {
        service.post("/v1/credits", &credit(&format!("user-{user}"), "1")).await.expect(201);
    }
    proxy.silence();
    // Each is about an account that is not in memory, so that it is looked up on a connection that nobody answers on.
    let mut user = 20;
    until("commands are done again", async || {
        user += 1;
        service.post("/v1/credits", &credit(&format!("user-{user}"), "1")).await.status == 201
    })
    .await;
    let began = Instant::now();
    service.terminate();
    assert!(began.elapsed() < Duration::from_secs(120), "it took {:?} to stop", began.elapsed());
    verify_consistent(&url);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_at_full_load_on_the_same_accounts_lose_and_repeat_nothing() {
    let database = tests::store::postgres();
    let (one, other) = (Service::start(&database.url, &[]), Service::start(&database.url, &[]));
    Load::open_accounts(&one).await;
    let load = Load::default();
    let end = async {
        tokio::time::timeout(Duration::from_secs(60), async {
            while load.acknowledged() < 6_000 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("both serve");
        load.stop();
    };
    let services = [&one, &other];
    tokio::join!(load.run(&services, 64), end);
    load.check(&other).await;
    verify_consistent(&database.url);
}
