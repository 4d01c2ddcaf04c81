//! `drill`: the whole way of a backup, tried.

mod scratch;

use std::{path::PathBuf, time::Instant};

use clap::Args;
use ledger_core::Hash;
use ledger_store::Database;
use projector::rebuild::Rebuilt;
use serde::Serialize;

use crate::{
    archive::{
        Archive, Manifest, Restored, Summary, Target,
        export::{Exported, export},
        make_read_models, next_epoch, restore,
    },
    context::{Context, Failure, Outcome, say},
    report::{Place, Report},
};
use scratch::{Scratch, WorkFolder};

/// Tries a backup and its restore, from end to end, and times each step: what a team runs every week.
///
/// The ledger is exported to a temporary folder, the archive is restored into a scratch database, the read models are made
/// anew there from the restored log, and their digest is compared with the archive's. Nothing that is served is touched, the ledger is only read. What
/// was made is removed at the end; what is left of a drill that was killed is removed by the next one.
///
/// Exit codes: 0 the restored ledger is the same, 1 it is not or the log is damaged, 2 the drill could not run.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  replay-tool drill --report drill.html\n  replay-tool --database-url postgres://ledger@db/ledger drill --scratch-url postgres://ledger@db/scratch"
)]
pub(crate) struct Arguments {
    /// The scratch database: an empty PostgreSQL database, or a SQLite file that does not exist yet. Without it a SQLite
    /// file in the temporary folder.
    #[arg(long, value_name = "URL")]
    scratch_url: Option<String>,
    /// Where the temporary folder is made; it takes some 100 bytes for each event for the archive, and 1 KiB for a SQLite
    /// scratch database. Without it the system's folder for such things.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Keep the archive and the scratch database, and tell where they are.
    #[arg(long)]
    keep: bool,
    /// Write a report that a person looks at.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// A step, and what it took.
#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    seconds: f64,
    events_per_second: f64,
}

/// What a drill came to.
#[derive(Debug, Serialize)]
struct Drilled {
    passed: bool,
    database: String,
    scratch: String,
    events: u64,
    accounts: u64,
    archive_bytes: u64,
    /// Of the ledger as it was archived, and as it came out.
    digest: Hash,
    restored_digest: Hash,
    steps: Vec<Step>,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<PathBuf>,
}

pub(crate) async fn run(context: &Context, arguments: &Arguments) -> Result<Outcome, Failure> {
    let began = Instant::now();
    let page = Place::new(arguments.report.as_deref())?;
    let database = context.open().await?;
    let place = database.describe();
    let folder = WorkFolder::create(arguments.folder.as_deref())?;
    let scratch = Scratch::choose(arguments.scratch_url.as_deref(), &folder, &place).await?;
    let exported = export(&database, &folder.archive(), None, false).await;
    database.close().await;
    let manifest = match exported? {
        Exported::Done(manifest) => *manifest,
        Exported::Damaged { partition, position, what } => {
            return Ok(show_damaged(context, &format!("partition {partition} position {position}: {what}")));
        }
    };
    let exported_in = began.elapsed().as_secs_f64();
    let archive_id = scratch::archive_id(&manifest);
    let tried = restore_into(&scratch, &folder, manifest).await;
    let removed = if arguments.keep { Ok(()) } else { scratch.remove(&archive_id).await };
    let (manifest, opened_in, summary, rebuilt) = tried?;
    removed?;
    let rate = |step, seconds: f64| Step { step, seconds, events_per_second: rate(summary.events, seconds) };
    let drilled = Drilled {
        passed: summary.digest == manifest.digest && rebuilt.digest == manifest.digest,
        database: place,
        scratch: scratch.place().to_owned(),
        events: summary.events,
        accounts: summary.accounts,
        archive_bytes: manifest.files.iter().map(|file| file.bytes).sum(),
        digest: manifest.digest,
        restored_digest: if summary.digest == manifest.digest { rebuilt.digest } else { summary.digest },
        steps: vec![
            rate("export", exported_in),
            rate("check the archive", opened_in),
            rate("write everything", summary.wrote_in.as_secs_f64()),
            rate("compare the read models", summary.compared_in.as_secs_f64()),
            rate("rebuild the read models", rebuilt.took.as_secs_f64()),
        ],
        seconds: began.elapsed().as_secs_f64(),
        kept: arguments.keep.then(|| folder.keep()),
    };
    if context.json {
        say!("{}", serde_json::to_string(&drilled).unwrap_or_default());
    } else {
        show(&drilled);
    }
    page.write(|| report(&drilled))?;
    Ok(Outcome::of(drilled.passed))
}

/// Restores the archive, as it is read back from the disk, into the scratch database, and makes the read models anew from
/// the log as that gives it back.
async fn restore_into(
    scratch: &Scratch,
    folder: &WorkFolder,
    exported: Manifest,
) -> Result<(Manifest, f64, Summary, Rebuilt), Failure> {
    let began = Instant::now();
    let archive = Archive::open(&folder.archive()).await?;
    let opened_in = began.elapsed().as_secs_f64();
    if archive.manifest != exported {
        return Err(Failure::new(
            "the archive is not the one that was written: the temporary folder's disk does not keep files",
        ));
    }
    let events = archive.clone();
    let restored = Restored {
        archive_id: scratch::archive_id(&exported),
        epoch: next_epoch(exported.epoch),
        heads: exported.heads,
        events: Box::new(move |partition| Box::new(events.events(partition))),
        appends_are_held: false,
        standing: None,
    };
    let summary = restore(scratch.url(), Target::Empty, restored).await?;
    let database = Database::open_existing(scratch.url()).await?;
    let rebuilt = make_read_models(&database).await;
    database.close().await;
    Ok((exported, opened_in, summary, rebuilt?))
}

fn rate(events: u64, seconds: f64) -> f64 {
    // Rates are shown to people: a count is exact enough as a float.
    #[expect(clippy::cast_precision_loss, reason = "a rate is shown to people")]
    let events = events as f64;
    if seconds > 0.0 { events / seconds } else { 0.0 }
}

fn show_damaged(context: &Context, what: &str) -> Outcome {
    if context.json {
        say!("{}", serde_json::json!({ "passed": false, "what": what, "remedy": "run replay-tool verify" }));
    } else {
        say!("{what}\nFAILED: the log is damaged; run replay-tool verify, which names all that is damaged");
    }
    Outcome::Inconsistent
}

fn show(drilled: &Drilled) {
    say!("database  {}\nscratch   {}", drilled.database, drilled.scratch);
    say!("events    {}\naccounts  {}\narchive   {} bytes", drilled.events, drilled.accounts, drilled.archive_bytes);
    for step in &drilled.steps {
        say!("{:<24} {:>8.2} s  {:>10.0} events/s", step.step, step.seconds, step.events_per_second);
    }
    say!("digest    {}\nrestored  {}", drilled.digest, drilled.restored_digest);
    if let Some(kept) = &drilled.kept {
        say!("kept      {}", kept.display());
    }
    if drilled.passed {
        say!("passed in {:.1} s: what is in the backup is what is in the ledger", drilled.seconds);
    } else {
        say!("FAILED: the restored ledger is not the same");
    }
}

fn report(drilled: &Drilled) -> Report {
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut report = Report::new("Drill: backup and restore");
    report
        .verdict(
            drilled.passed,
            if drilled.passed {
                "The ledger came back from its backup exactly as it was."
            } else {
                "The ledger that came back from the backup is not the same."
            },
        )
        .facts(
            "What was tried",
            [
                fact("Database", drilled.database.clone()),
                fact("Scratch database", drilled.scratch.clone()),
                fact("Events", drilled.events.to_string()),
                fact("Accounts", drilled.accounts.to_string()),
                fact("Archive in bytes", drilled.archive_bytes.to_string()),
                fact("Digest", drilled.digest.to_string()),
                fact("Digest after the restore", drilled.restored_digest.to_string()),
                fact("Seconds in all", format!("{:.2}", drilled.seconds)),
            ],
        )
        .bars("How long each step took", "s", drilled.steps.iter().map(|step| (step.step.to_owned(), step.seconds)))
        .table(
            "Steps",
            &["Step", "Seconds", "Events a second"],
            drilled.steps.iter().map(|step| {
                vec![step.step.to_owned(), format!("{:.2}", step.seconds), format!("{:.0}", step.events_per_second)]
            }),
        );
    report
}
