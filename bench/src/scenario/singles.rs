//! One command a request, and what it is compared with.

use std::time::Duration;

use tests::Postgres;

use super::{ACCOUNTS, Bench, CONNECTIONS, Peer, PeerDatabase};
use crate::{
    client::{self, Outcome},
    figures::{Figures, Latency},
    load::{Accounts, Echoes, Shop, Singles},
    peers::{
        echo::Echo,
        pgbench::{self, Form},
    },
    process::Busy,
    series::Series,
};

pub(super) async fn echo(bench: &Bench<'_>) {
    let echo = Echo::start();
    let mut sources = Echoes::sources("echo", Accounts::Uniform(ACCOUNTS), CONNECTIONS);
    let (warm_up, length) = (bench.plan.warm_up(), bench.plan.length());
    let load = client::closed_loop(&echo.url, &mut sources, warm_up, length);
    bench.record(Series::Echo, watched(bench, &echo, load).await);
}

/// The echo at a given rate.
pub(super) async fn echo_offered(bench: &Bench<'_>, per_second: f64, connections: usize) -> Figures {
    let echo = Echo::start();
    let mut sources = Echoes::sources("echo", Accounts::Uniform(ACCOUNTS), connections);
    let (warm_up, length) = (bench.plan.warm_up(), bench.plan.length());
    let load = client::open_loop(&echo.url, &mut sources, per_second, warm_up, length);
    watched(bench, &echo, load).await
}

async fn watched(bench: &Bench<'_>, echo: &Echo, load: impl Future<Output = Outcome>) -> Figures {
    let busy = Busy { service: Some(echo.pid()), database: None };
    let (outcome, cpu) = busy.watch(bench.plan.warm_up(), load).await;
    let latency = Some(Latency::of(&outcome.latencies));
    Figures { rate: outcome.commands_per_second(), latency, cpu: Some(cpu), ..Figures::default() }
}

pub(super) async fn singles(bench: &Bench<'_>) {
    pgbench(
        bench,
        &[
            Peer::closed(Series::SinglesOneFunction, Form::OneFunction, ACCOUNTS),
            Peer::closed(Series::SinglesRowLocked, Form::RowLocked, ACCOUNTS),
            Peer::closed(Series::SinglesInsert, Form::SingleInsert, ACCOUNTS),
        ],
    )
    .await;
    bench.record(Series::Singles, closed(bench, Accounts::Uniform(ACCOUNTS)).await);
}

pub(super) async fn hot(bench: &Bench<'_>) {
    pgbench(
        bench,
        &[
            Peer::closed(Series::HotOneFunction, Form::OneFunction, 1),
            Peer::closed(Series::HotRowLocked, Form::RowLocked, 1),
        ],
    )
    .await;
    bench.record(Series::Hot, closed(bench, Accounts::Hot).await);
}

pub(super) async fn mix(bench: &Bench<'_>) {
    let subject = bench.subject().await;
    let mut sources = Shop::sources("mix", Accounts::Zipf(ACCOUNTS), CONNECTIONS);
    let figures = subject.closed(&mut sources, bench.plan.warm_up(), bench.plan.length()).await;
    bench.record(Series::Mix, figures);
}

/// Single commands as fast as they are answered, on a new ledger.
pub(super) async fn closed(bench: &Bench<'_>, accounts: Accounts) -> Figures {
    let subject = bench.subject().await;
    let mut sources = Singles::sources("singles", accounts, CONNECTIONS);
    subject.closed(&mut sources, bench.plan.warm_up(), bench.plan.length()).await
}

/// Runs pgbench on the ledger's cluster, from as many connections, after as long a warm-up.
pub(super) async fn pgbench(bench: &Bench<'_>, peers: &[Peer]) {
    let Some(cluster) = bench.cluster else { return };
    let busy = Busy { service: None, database: Some(Postgres::pid(cluster)) };
    let clients = u32::try_from(CONNECTIONS).expect("few connections");
    for Peer { series, form, accounts, per_second } in peers {
        let database = PeerDatabase::new(cluster);
        pgbench::prepare(&database.url, *accounts);
        cluster.psql("postgres", "checkpoint");
        let run = |seconds| pgbench::run(&database.url, *form, *accounts, clients, *per_second, seconds);
        run(bench.plan.warm_up_seconds);
        let (figures, cpu) = busy.watch(Duration::ZERO, async { run(bench.plan.seconds) }).await;
        bench.record(*series, Figures { cpu: Some(cpu), ..figures });
    }
}
