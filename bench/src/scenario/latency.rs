//! How long an answer takes at a given load, whether or not the service keeps up.

use super::{ACCOUNTS, Bench, singles};
use crate::{
    load::{Accounts, Singles},
    series::Series,
};

/// Percent of the rate that the closed loop reached.
pub(crate) const LEVELS: [u32; 5] = [10, 25, 50, 75, 90];
/// So many that a request rarely waits for a free connection.
const CONNECTIONS: usize = 256;

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
            let per_second = full * f64::from(level) / 100.0;
            let figures = subject.open(&mut sources, per_second, bench.plan.warm_up(), bench.plan.length()).await;
            Bench { run, ..*bench }.record(Series::Offered(level), figures);
        }
    }
}
