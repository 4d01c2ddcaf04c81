//! The HTTP service of the ledger.

mod access;
mod accounts;
mod alerts;
mod allocator;
mod audit;
mod backoff;
mod batches;
mod body;
mod breaker;
mod commands;
mod content;
mod cursor;
mod docs;
mod events;
mod expiry;
mod freezes;
mod health;
mod inconsistencies;
mod keys;
mod lifetime;
mod limits;
mod metrics_help;
mod nats;
mod operations;
mod problem;
mod proof;
mod queue;
mod request;
mod router;
mod server;
mod service;
mod settings;
mod stream;
mod tls;
mod transactions;

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use ledger_store::{Database, Ledger, LedgerOptions, error::chain};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use projector::{
    balances::Reader,
    publisher::{Publisher, PublisherOptions},
    runner::Runner,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, watch},
};
use tokio_util::task::TaskTracker;

use access::Access;
use alerts::{Alerts, Delivery, Targets};
use breaker::{Breaker, Position};
use content::Room;
use expiry::{Expiry, OrderStatus};
use limits::Limits;
use proof::Prover;
use queue::{Queue, QueueStatus};
use service::{Parts, Service};
use settings::{Settings, Task};

/// The bytes of bodies that may be in memory at once, over all connections: three of the largest batches.
const BODY_BYTES_MAX: usize = 192 * 1024 * 1024;

/// How often a database that failed is looked at, and how long it may take to answer that.
const LOOK_AT_DATABASE: Duration = Duration::from_secs(1);

/// How often the samples of metrics are folded, whether or not anybody scrapes them.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// How long each part of the service may take to stop: longer only when it waits for somebody who does not answer.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for the audit, which may have many rows to write.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for the database: on SQLite what its write-ahead log holds is copied back.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> ExitCode {
    match start().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("api: {why}");
            ExitCode::from(2)
        }
    }
}

async fn start() -> Result<(), String> {
    let settings = Settings::read()?;
    if let Some(Task::Keys(command)) = &settings.command {
        return keys::run(&settings.database_url, command).await;
    }
    show_log(&settings);
    run(settings).await
}

/// Tells whoever started the service how the start goes. That nobody listens any more is no reason to stop.
fn tell(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn show_log(settings: &Settings) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| "info,sqlx=warn,async_nats=warn".into());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if settings.log_format == "json" {
        log.json().init();
    } else {
        log.init();
    }
}

fn keep_metrics() -> Result<PrometheusHandle, String> {
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(
            Matcher::Full("ledger_command_seconds".to_owned()),
            &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5],
        )
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| format!("metrics cannot be kept: {error}"))?;
    metrics_help::describe();
    // Samples of histograms pile up until somebody folds them: a scrape, or this.
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        let mut turn = tokio::time::interval(METRICS_UPKEEP);
        loop {
            turn.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(metrics)
}

/// Waits for a part to stop, but not for ever: what it does not come to is done after the next start.
async fn in_time(limit: Duration, what: &str, stopped: impl Future<Output = ()>) {
    if tokio::time::timeout(limit, stopped).await.is_err() {
        tracing::warn!(what, "did not stop in time and is left");
    }
}

/// Closes the breaker as soon as the database is well again, instead of when its time is over.
async fn close_breaker(service: Service) {
    let mut turn = tokio::time::interval(LOOK_AT_DATABASE);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        if service.breaker.position() == Position::Closed || service.ledger.trouble().is_some() {
            continue;
        }
        if let Ok(Ok(_)) = tokio::time::timeout(LOOK_AT_DATABASE, service.database.heads()).await {
            service.breaker.recovered();
        }
    }
}

async fn run(settings: Settings) -> Result<(), String> {
    let lifetimes = settings.lifetimes()?;
    let orders = settings.order_status()?.map(OrderStatus::new).transpose()?;
    let metrics = keep_metrics()?;
    let webhook = settings.webhook()?;
    let commands = settings.commands()?;
    let database = Database::open(&settings.database_url).await.map_err(|error| chain(&error))?;
    let is_new = if database.is_new() { " (new, empty)" } else { "" };
    tell(&format!("database      {}{is_new}", database.describe()));
    let is_closed = !settings.listen.ip().is_loopback();
    let access = Access::load(database.clone(), is_closed).await.map_err(|error| chain(&error))?;
    settings.check(access.has_usable_key())?;
    let freshness = access.keep_fresh();
    let queue_commands_max = usize::try_from(settings.queue_commands).unwrap_or(usize::MAX);
    let options = LedgerOptions { queue_commands_max, ..LedgerOptions::default() };
    let ledger = Ledger::start(database.clone(), options).await.map_err(|error| chain(&error))?;
    let runner = Runner::start(database.clone(), Some(ledger.feed()));
    tell("read models   kept by this process");
    let publisher = settings.nats().map(|nats_url| {
        let options = PublisherOptions {
            duplicate_window: Duration::from_millis(settings.nats_duplicate_window_ms),
            ..PublisherOptions::new(nats_url.to_owned())
        };
        Publisher::start(database.clone(), options, Some(ledger.commits()))
    });
    tell(match publisher {
        Some(_) => "NATS          on",
        None => "NATS          off (--nats-url nats://HOST:4222 turns it on)",
    });
    tell(&match &orders {
        Some(orders) => format!("expiry        on, asks {}", orders.describe()),
        None => "expiry        on (--order-status-url asks about the order first)".to_owned(),
    });

    let tls = settings.tls()?;
    if let Some(tls) = tls.clone() {
        tokio::spawn(tls.keep_fresh());
    }
    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}; choose another with --listen", settings.listen))?;
    let address = listener.local_addr().map_err(|error| format!("cannot listen: {error}"))?;
    let (stop, stopping) = watch::channel(false);
    let (show_queue, queue_status) = watch::channel(QueueStatus::default());
    let (alerts, raised) = Alerts::new();
    let delivery = Delivery::start(raised, Targets { nats_url: settings.nats().map(str::to_owned), webhook });
    let audit = audit::Audit::start(database.clone(), settings.audit, settings.audit_kept_days);
    let left = TaskTracker::new();
    let service = Service::new(Parts {
        ledger: ledger.clone(),
        database: database.clone(),
        balances: Reader::start(database.clone()),
        progress: runner.progress(),
        hurry: runner.hurry(),
        publisher: publisher.as_ref().map(Publisher::status),
        queue: commands.is_some().then_some(queue_status),
        metrics,
        access: access.clone(),
        limits: Limits::new(settings.rate_limit),
        lifetimes,
        alerts,
        audit: audit.clone(),
        breaker: Breaker::default(),
        left: left.clone(),
        deadline: settings.deadline(),
        bodies: Room::new(BODY_BYTES_MAX, settings.deadline()),
        streams: Arc::new(Semaphore::new(stream::STREAMS_MAX)),
        stopping: stopping.clone(),
    });
    let watch = tokio::spawn(close_breaker(service.clone()));
    let expiry = Expiry::start(ledger.clone(), database.clone(), service.alerts.clone(), orders);
    let prover = Prover::start(service.clone(), &settings);
    tell(match prover {
        Some(_) => "proof         on: read models are compared with the log all the time",
        None => "proof         off (--proof-round 86400 turns it on)",
    });
    let queue = commands.map(|url| Queue::start(service.clone(), url, settings.nats_command_attempts, show_queue));
    // Before the address is told: whoever reads it may stop the service at once.
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| format!("cannot watch for signals: {error}"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| format!("cannot watch for signals: {error}"))?;
    tell(if access.is_on() {
        "API keys      asked of every caller"
    } else {
        "API keys      none: everything is open (api keys create)"
    });
    let scheme = if tls.is_some() { "https" } else { "http" };
    tell(&format!("listening on {scheme}://{address}"));
    tell(&format!("documentation {scheme}://{address}/docs"));
    tell(&format!(
        "try           curl -s {scheme}://{address}/v1/credits -H 'Content-Type: application/json' -d \
         '{{\"user_id\":\"u1\",\"credit_type\":\"points\",\"amount\":1000,\"business_code\":\"signup.bonus\",\"business_id\":\"u1\"}}'"
    ));

    if is_closed && settings.tls_certificate.is_none() {
        tell("TLS           off: keys and amounts travel in the clear (--tls-certificate, --tls-key)");
    }

    let server = tokio::spawn(server::serve(listener, tls, service, stopping));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: requests under way are answered first");
    stop.send_replace(true);
    // A server that panicked has ended, too.
    let _ = server.await;
    // Their ends are still to be written down. They have a limit of their own.
    left.close();
    left.wait().await;
    if let Some(queue) = queue {
        in_time(STOP_TIMEOUT, "the work queue", queue.stop()).await;
    }
    freshness.abort();
    watch.abort();
    in_time(STOP_TIMEOUT, "the release of freezes", expiry.stop()).await;
    if let Some(prover) = prover {
        in_time(STOP_TIMEOUT, "the proof", prover.stopped()).await;
    }
    in_time(AUDIT_TIMEOUT, "the audit", audit.stop()).await;
    // Its own limits are those of the commits that are under way.
    ledger.stop().await;
    if let Some(publisher) = publisher {
        in_time(STOP_TIMEOUT, "the publisher", publisher.stop()).await;
    }
    in_time(STOP_TIMEOUT, "the projector", runner.stop()).await;
    in_time(STOP_TIMEOUT, "the delivery of alerts", delivery.stop()).await;
    in_time(CLOSE_TIMEOUT, "the connections to the database", database.close()).await;
    tracing::info!("stopped");
    Ok(())
}
