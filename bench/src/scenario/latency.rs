//! How long an answer takes at a given load, whether or not the service keeps up.

use super::{ACCOUNTS, Bench, Peer, singles};
use crate::{
    load::{Accounts, Singles},
    peers::pgbench::Form,
    series::Series,
};

/// Percent of the rate that the closed loop reached.
pub(crate) const LEVELS: [u32; 5] = [10, 25, 50, 75, 90];
/// So many that a request rarely waits for a free connection.
const CONNECTIONS: usize = 256;
/// At what level peers are measured: two cores that a client, a service and a database share make anybody wait.
const PEER_LEVEL: u32 = 50;

pub(super) async fn latency(bench: &Bench<'_>) {
    let uniform = Accounts::Uniform(ACCOUNTS);
    let known = bench.results.borrow().rate(bench.kind, Series::Singles);
    let full = match known {
        Some(rate) => rate,
        None => singles::closed(bench, uniform).await.rate,
    };
    for run in 1..=bench.plan.runs {
        let subject = bench.subject().await;
        for level in LEVELS {
            let mut sources = Singles::sources(&format!("at{level}"), uniform, CONNECTIONS);
            let per_second = share(full, level);
            let figures = subject.open(&mut sources, per_second, bench.plan.warm_up(), bench.plan.length()).await;
            Bench { run, ..*bench }.record(Series::Offered(level), figures);
        }
        peers(&Bench { run, ..*bench }, share(full, PEER_LEVEL)).await;
    }
}

/// The echo, asked as often as the ledger was, and the one function, at a share of the rate that it reaches itself.
async fn peers(bench: &Bench<'_>, per_second: f64) {
    let known = |series| bench.results.borrow().rate(bench.kind, series);
    let figures = singles::echo_offered(bench, per_second, CONNECTIONS).await;
    bench.record(Series::EchoOffered(PEER_LEVEL), figures);
    let (series, form, accounts) = (Series::OneFunctionOffered(PEER_LEVEL), Form::OneFunction, ACCOUNTS);
    if known(Series::SinglesOneFunction).is_none() {
        singles::pgbench(bench, &[Peer::closed(Series::SinglesOneFunction, form, accounts)]).await;
    }
    if let Some(full) = known(Series::SinglesOneFunction) {
        let per_second = Some(share(full, PEER_LEVEL));
        singles::pgbench(bench, &[Peer { series, form, accounts, per_second }]).await;
    }
}

fn share(full: f64, percent: u32) -> f64 {
    full * f64::from(percent) / 100.0
}
