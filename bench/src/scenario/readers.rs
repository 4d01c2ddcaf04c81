//! Reads of balances, alone and while commands are recorded.

use super::{ACCOUNTS, Bench, CONNECTIONS};
use crate::{
    client,
    load::{Accounts, Reads, Singles},
    series::Series,
};

const UNIFORM: Accounts = Accounts::Uniform(ACCOUNTS);

pub(super) async fn reads(bench: &Bench<'_>) {
    let subject = bench.subject().await;
    let mut sources = Reads::sources("reads", UNIFORM, CONNECTIONS);
    let figures = subject.closed(&mut sources, bench.plan.warm_up(), bench.plan.length()).await;
    bench.record(Series::Reads, figures);
}

/// Both alone, each by half of the connections, and then at once.
pub(super) async fn reads_beside_writes(bench: &Bench<'_>) {
    const HALF: usize = CONNECTIONS / 2;
    let subject = bench.subject().await;
    let (warm_up, length) = (bench.plan.warm_up(), bench.plan.length());
    let reads = subject.closed(&mut Reads::sources("reads", UNIFORM, HALF), warm_up, length).await;
    bench.record(Series::ReadsAlone, reads);
    let writes = subject.closed(&mut Singles::sources("alone", UNIFORM, HALF), warm_up, length).await;
    bench.record(Series::WritesAlone, writes);

    let (mut reads, mut writes) = (Reads::sources("beside", UNIFORM, HALF), Singles::sources("beside", UNIFORM, HALF));
    let both = async {
        futures::join!(
            client::closed_loop(&subject.service.url, &mut reads, warm_up, length),
            client::closed_loop(&subject.service.url, &mut writes, warm_up, length)
        )
    };
    let ((reads, writes), watched) = subject.watch(warm_up, both).await;
    bench.record(Series::ReadsBeside, watched.figures(&reads));
    bench.record(Series::WritesBeside, watched.figures(&writes));
}
