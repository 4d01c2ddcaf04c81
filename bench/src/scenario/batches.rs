//! Atomic batches, and their rows loaded in bulk by the peer.

use std::time::Duration;

use tests::Postgres;

use super::{ACCOUNTS, Bench};
use crate::{
    figures::Figures,
    load::{Accounts, Batches},
    peers::{copy, sqlite},
    process::Busy,
    series::Series,
    subject::Subject,
};

/// Rows that a peer loads, and how many of them in one transaction.
pub(super) const PEER_ROWS: u64 = 500_000;
pub(super) const PEER_CHUNK: usize = 8_000;

/// So many that the service always has one to decide while it commits another, and no more: each holds megabytes.
pub(super) const fn connections(size: u32) -> usize {
    if size < 10_000 { 8 } else { 4 }
}

pub(super) async fn batches(bench: &Bench<'_>, size: u32) {
    let subject = bench.subject().await;
    let mut sources = Batches::sources("batches", Accounts::Uniform(ACCOUNTS), size, connections(size));
    let length = if size == 1_000 { bench.plan.sustained() } else { bench.plan.length() };
    let figures = subject.closed(&mut sources, bench.plan.warm_up(), length).await;
    bench.record(Series::batches(size), figures);
    let rows = usize::try_from(subject.events().await.min(PEER_ROWS)).expect("few rows");
    let figures = match subject.file() {
        Some(file) => {
            let folder = tempfile::Builder::new().prefix("ledger-peer").tempdir_in(&bench.plan.folder);
            sqlite::naive_insert(&file, folder.expect("a temporary folder").path(), rows, PEER_CHUNK).await
        }
        None => {
            copy::prepare_naive(&subject.database_url, None).await;
            let chunks = copy::rows(&subject.database_url, rows, PEER_CHUNK).await;
            load(bench, &subject, &chunks).await
        }
    };
    bench.record(Series::batches_peer(size), figures);
}

/// Loads rows by COPY.
pub(super) async fn load(bench: &Bench<'_>, subject: &Subject<'_>, chunks: &[copy::Chunk]) -> Figures {
    subject.checkpoint();
    let busy = Busy { service: None, database: bench.cluster.map(Postgres::pid) };
    let (figures, cpu) = busy.watch(Duration::ZERO, copy::run(&subject.database_url, chunks)).await;
    Figures { cpu: Some(cpu), ..figures }
}
