//! `rebuild`: the read models made anew.

use std::num::NonZeroU32;

use clap::{Args, ValueEnum};
use ledger_core::Account;
use ledger_store::{Database, StoreError};
use projector::{
    checkpoint::ReadModel,
    rebuild::{self, Mended, Options, RebuildError, Rebuilt},
};
use serde_json::{Value, json};

use crate::{
    argument::parse_account,
    context::{Context, Failure, Outcome, say},
    progress::Progress,
    verify,
};

/// Makes the balances and freezes anew from the log, beside the served ones, and puts them in their place.
///
/// The service goes on meanwhile: no command is refused, and reads see the old tables until the new ones are complete, compared
/// with what the log makes, and put in their place in one step. After any failure, and after a kill at any moment, what was
/// served is as it was; run it again. Exit code 1 when the log itself is damaged: then nothing is changed, and `verify` says
/// where.
///
/// Nothing here touches events, and nothing is published.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only this read model; the other stays as it is.
    #[arg(long, value_enum, value_name = "NAME")]
    read_model: Option<Name>,
    /// Only this account's rows, in both read models: they are mended where they stand, all others stay as they are.
    #[arg(long, value_name = "USER/CREDIT_TYPE", value_parser = parse_account, conflicts_with = "read_model")]
    account: Option<Account>,
    /// Only the rows that say which operations are closed, as far as the log tells of what reversed them: the read models stay as
    /// they are.
    #[arg(long, conflicts_with_all = ["read_model", "account", "max_rate"])]
    compensations: bool,
    /// Replay at most so many events a second, to leave the machine to the service. What is written meanwhile is folded in as
    /// fast as it comes.
    #[arg(long, value_name = "EVENTS_PER_SECOND", value_parser = parse_rate)]
    max_rate: Option<NonZeroU32>,
}

/// A read model's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    Balances,
    Freezes,
}

impl From<Name> for ReadModel {
    fn from(name: Name) -> Self {
        match name {
            Name::Balances => Self::Balances,
            Name::Freezes => Self::Freezes,
        }
    }
}

fn parse_rate(text: &str) -> Result<NonZeroU32, String> {
    text.parse().map_err(|_| {
        format!(
            "write a whole number from 1 to {}, such as 20000; without --max-rate it is as fast as it can be",
            u32::MAX
        )
    })
}

pub(crate) async fn run(context: &Context, arguments: &Arguments) -> Result<Outcome, Failure> {
    let database = context.open().await?;
    let models = arguments.read_model.map_or(ReadModel::ALL.to_vec(), |name| vec![name.into()]);
    let options = Options { models, max_rate: arguments.max_rate, ..Options::default() };
    if arguments.compensations {
        let mended = mend_compensations(&database).await;
        database.close().await;
        return match mended? {
            Ok(mended) => {
                let lines = vec![("mended", format!("{mended} rows"))];
                show(Ok((lines, json!({ "rebuilt": true, "rows_mended": mended }))), context.json)
            }
            Err(why) => Ok(refuse(&why, context.json)),
        };
    }
    let done = match &arguments.account {
        Some(account) => mend(&database, account, &options).await,
        None => rebuild_all(&database, &options).await,
    };
    database.close().await;
    if let (Some(account), Ok((_, document))) = (&arguments.account, &done)
        && document["events"] == 0
        && document["rows_mended"] == 0
    {
        return Err(Failure::new(format!(
            "--account: the ledger holds no account {}/{}; write USER/CREDIT_TYPE as in its commands",
            account.user_id(),
            account.credit_type()
        )));
    }
    show(done, context.json)
}

/// What was done, in words and as JSON.
type Done = (Vec<(&'static str, String)>, Value);

async fn rebuild_all(database: &Database, options: &Options) -> Result<Done, RebuildError> {
    let bar = Progress::new("rebuilding");
    let rebuilt = rebuild::rebuild_with(database, options, &mut |progress| bar.set(progress.done, progress.all)).await;
    bar.finish();
    let Rebuilt { events, accounts, freezes, digest, resolved, took } = rebuilt?;
    let names: Vec<_> = options.models.iter().map(|model| model.name()).collect();
    let mut lines = vec![("events", events.to_string())];
    let mut document = json!({ "rebuilt": true, "read_models": names, "events": events });
    if options.models.contains(&ReadModel::Balances) {
        lines.push(("accounts", accounts.to_string()));
        document["accounts"] = json!(accounts);
    }
    if options.models.contains(&ReadModel::Freezes) {
        lines.push(("freezes", freezes.to_string()));
        document["freezes"] = json!(freezes);
    }
    // The digest is of a whole state: of one read model alone it could be compared with nothing.
    if options.models.len() == ReadModel::ALL.len() {
        lines.push(("digest", digest.to_string()));
        document["digest"] = json!(digest);
    }
    document["inconsistencies_resolved"] = json!(resolved);
    document["seconds"] = json!(took.as_secs_f64());
    lines.push(("resolved", resolved.to_string()));
    lines.push(("seconds", format!("{:.1}", took.as_secs_f64())));
    Ok((lines, document))
}

/// Mends the rows that close operations, and tells how many; or why it touches none: a damaged log may lack what tells that an
/// operation was reversed, and that one would be open again.
async fn mend_compensations(database: &Database) -> Result<Result<usize, String>, Failure> {
    let progress = Progress::new("verifying");
    let verified = verify::verify(database, &progress).await;
    progress.finish();
    let findings = verified?.findings;
    if findings.log_is_damaged() {
        // Kinds of damage of the log come before all others.
        let kind = findings.kinds.keys().next();
        let named = findings.kept.iter().find(|finding| Some(&finding.kind) == kind);
        let what = named.map_or("the log is damaged".to_owned(), |finding| {
            let at = finding.position.map(|position| format!(" at position {position}")).unwrap_or_default();
            format!("the log of partition {} is damaged{at} ({})", finding.partition, finding.kind.name())
        });
        return Ok(Err(format!("{what}: run replay-tool verify")));
    }
    match database.mend_compensations().await {
        // It was damaged meanwhile.
        Err(StoreError::Inconsistent(why)) => Ok(Err(why)),
        mended => Ok(Ok(mended?)),
    }
}

async fn mend(database: &Database, account: &Account, options: &Options) -> Result<Done, RebuildError> {
    let bar = Progress::new("replaying");
    let mended =
        rebuild::mend_account(database, account, options, &mut |progress| bar.set(progress.done, progress.all)).await;
    bar.finish();
    let Mended { events, freezes, rows_mended, resolved, took } = mended?;
    let lines = vec![
        ("account", format!("{}/{}", account.user_id(), account.credit_type())),
        ("events", events.to_string()),
        ("freezes", freezes.to_string()),
        ("mended", format!("{rows_mended} rows")),
        ("resolved", resolved.to_string()),
        ("seconds", format!("{:.1}", took.as_secs_f64())),
    ];
    let document = json!({
        "rebuilt": true, "user_id": account.user_id(), "credit_type": account.credit_type(), "account_id": account.id(),
        "events": events, "freezes": freezes, "rows_mended": rows_mended, "inconsistencies_resolved": resolved,
        "seconds": took.as_secs_f64(),
    });
    Ok((lines, document))
}

fn show(done: Result<Done, RebuildError>, as_json: bool) -> Result<Outcome, Failure> {
    match done {
        Ok((lines, document)) => {
            if as_json {
                say!("{document}");
            } else {
                for (name, value) in lines {
                    say!("{name:<9} {value}");
                }
                say!("rebuilt");
            }
            Ok(Outcome::Consistent)
        }
        Err(RebuildError::Store(error)) => Err(error.into()),
        Err(RebuildError::AlreadyRunning) => Err(Failure::new("another rebuild is running; wait for it")),
        Err(
            error @ (RebuildError::Contradiction { .. }
            | RebuildError::Differs { .. }
            | RebuildError::Checkpoint { .. }),
        ) => Ok(refuse(&error.to_string(), as_json)),
    }
}

/// Says why nothing was changed.
fn refuse(why: &str, as_json: bool) -> Outcome {
    if as_json {
        say!("{}", json!({ "rebuilt": false, "why": why }));
    } else {
        say!("not rebuilt: {why}");
    }
    Outcome::Inconsistent
}
