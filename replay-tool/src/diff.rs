//! `diff`: two databases compared.

mod logs;
mod states;

use std::time::Instant;

use clap::Args;
use ledger_core::{Hash, Head, PARTITIONS, Partition, digest};
use ledger_store::Database;
use serde::Serialize;

use crate::{
    context::{Context, Failure, Outcome, say},
    progress::Progress,
};

/// Compares two ledgers: their logs, the states that follow from them, and their read models.
///
/// Both logs are read as far as they are when this begins. A partition in which they differ is named with the first event
/// that is not the same and what is not the same about it, and with the accounts and freezes that came out differently. Where
/// the logs are the same, the rows of the read models are compared. At most 20 accounts and freezes of a partition are
/// shown, all are counted. The epoch plays no part: a restored ledger is the same as the one that was lost.
///
/// Exit codes: 0 they are the same, 1 they differ, 2 one of them cannot be read.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  replay-tool diff sqlite://ledger.db postgres://ledger@db/ledger\n  replay-tool diff --quick postgres://ledger@a/ledger postgres://ledger@b/ledger"
)]
pub(crate) struct Arguments {
    /// One ledger's database.
    #[arg(value_name = "URL_A")]
    a: String,
    /// The other's.
    #[arg(value_name = "URL_B")]
    b: String,
    /// Believe the hashes: compare the heads, and find the first differing event by bisection. An event that was edited
    /// without a change of its hash is not found like this.
    #[arg(long)]
    quick: bool,
}

/// What differs in a partition.
#[derive(Debug, Default, Serialize)]
struct Difference {
    partition: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<logs::LogDifference>,
    #[serde(skip_serializing_if = "states::Differences::is_none")]
    accounts: states::Differences,
    #[serde(skip_serializing_if = "states::Differences::is_none")]
    freezes: states::Differences,
    /// Read models that stand at different places although the logs are the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checkpoints: Vec<String>,
}

impl Difference {
    fn is_none(&self) -> bool {
        self.log.is_none() && self.accounts.is_none() && self.freezes.is_none() && self.checkpoints.is_empty()
    }
}

#[derive(Debug, Serialize)]
struct Compared {
    equal: bool,
    a: Side,
    b: Side,
    differences: Vec<Difference>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Side {
    database: String,
    events: u64,
    /// Of the state that follows from the log; absent when the log cannot be folded, or was not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Hash>,
}

pub(crate) async fn run(context: &Context, arguments: &Arguments) -> Result<Outcome, Failure> {
    let began = Instant::now();
    let open = async |name: &str, url: &str| {
        Database::open_existing(url).await.map_err(|error| Failure::new(format!("{name}: {}", Failure::from(error))))
    };
    let a = open("URL_A", &arguments.a).await?;
    let b = open("URL_B", &arguments.b).await?;
    let compared = compare(&a, &b, arguments.quick, began).await;
    a.close().await;
    b.close().await;
    let compared = compared?;
    if context.json {
        say!("{}", serde_json::to_string(&compared).unwrap_or_default());
    } else {
        show(&compared);
    }
    Ok(Outcome::of(compared.equal))
}

async fn compare(a: &Database, b: &Database, quick: bool, began: Instant) -> Result<Compared, Failure> {
    let heads = [a.heads().await?, b.heads().await?];
    let events = heads.each_ref().map(|heads| heads.iter().map(|head| head.position.0).sum::<u64>());
    let progress = Progress::new("comparing");
    progress.expect(events[0].max(events[1]));
    let mut differences = Vec::new();
    let mut patience = states::Patience::default();
    let mut digests = [Some([(Hash::ZERO, Hash::ZERO); PARTITIONS]); 2];
    for partition in Partition::all() {
        let index = partition.index();
        let ends: [Head; 2] = [heads[0][index], heads[1][index]];
        let mut difference = Difference { partition: partition.number(), ..Difference::default() };
        if quick {
            difference.log = logs::bisect([a, b], partition, &ends).await?;
            progress.advance(ends[0].position.max(ends[1].position).0);
        } else {
            let read = logs::read([a, b], partition, &ends, &progress).await?;
            difference.log = read.difference;
            for (digests, state) in digests.iter_mut().zip(&read.states) {
                match (digests.as_mut(), state) {
                    (Some(digests), Some(state)) => digests[index] = state.digest(),
                    _ => *digests = None,
                }
            }
            if difference.log.is_some()
                && let [Some(one), Some(other)] = &read.states
            {
                (difference.accounts, difference.freezes) = states::compare(one, other);
            }
        }
        if difference.log.is_none() || quick {
            states::compare_read_models([a, b], partition, &mut patience, &mut difference).await?;
        }
        if !difference.is_none() {
            differences.push(difference);
        }
    }
    progress.finish();
    let mut sides = [a, b].into_iter().zip(events).zip(digests).map(|((database, events), digests)| Side {
        database: database.describe(),
        events,
        digest: digests.filter(|_| !quick).map(|digests| digest::combine(&digests)),
    });
    let (Some(a), Some(b)) = (sides.next(), sides.next()) else { unreachable!("there are two") };
    Ok(Compared { equal: differences.is_empty(), a, b, differences, seconds: began.elapsed().as_secs_f64() })
}

fn show(compared: &Compared) {
    for (name, side) in [("A", &compared.a), ("B", &compared.b)] {
        let digest = side.digest.map_or_else(|| "not known".to_owned(), |digest| digest.to_string());
        say!("{name}  {}\n   events {}  digest {digest}", side.database, side.events);
    }
    for difference in &compared.differences {
        let partition = difference.partition;
        if let Some(log) = &difference.log {
            say!("partition {partition}: the logs differ from position {} on", log.position);
            for field in &log.fields {
                say!("    {:<18} A {}  B {}", field.field, field.a, field.b);
            }
        }
        for (what, found) in [("account", &difference.accounts), ("freeze", &difference.freezes)] {
            for one in &found.shown {
                say!("partition {partition}: {what} {}: A {}  B {}", one.whose, one.a, one.b);
            }
            let more = found.count - found.shown.len() as u64;
            if more > 0 {
                say!("partition {partition}: … and {more} more of {what}s");
            }
        }
        for checkpoint in &difference.checkpoints {
            say!("partition {partition}: {checkpoint}");
        }
    }
    say!("seconds {:.1}", compared.seconds);
    if compared.equal {
        say!("the same");
    } else {
        say!("DIFFERENT in {} of {PARTITIONS} partitions", compared.differences.len());
    }
}
