//! `recover`: the whole drill of a bad day, step by step, each written down as it is done.

mod account;
mod backup;
mod base;
mod batches;
mod candidates;
mod examine;
mod facts;
mod gather;
mod loss;
mod pause;
mod readable;
mod steps;
mod stream;
mod tail;
mod unlock;

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use ledger_core::{Epoch, Partition};
use ledger_store::{Database, restore::Target};
use projector::{
    checkpoint::{self, ReadModel},
    publisher::restored,
};
use serde_json::{Value, json};

use crate::{
    anchor::Anchor,
    archive::{self, Restored},
    context::{Context, Failure, Outcome, say},
    progress::Progress,
    reconcile::{self, Question},
    verify,
};
use base::Base;
use examine::{Examined, State};
use facts::{Action, Digests, Facts};
use gather::Gathered;
use loss::Loss;
use pause::Pause;
use steps::{Plan, Record};

/// Brings a ledger back after a disaster: looks, keeps what is there, restores what can be proved, and reports.
///
/// The events come from an archive (`replay-tool export`), then from the stream on NATS, then from the damaged database
/// itself; each is taken only if it continues the hash chain, and of an atomic batch all events or none. A sound log is
/// not restored: damaged read models are made anew, and where nothing is wrong nothing is done.
///
///     replay-tool --database-url sqlite://ledger.db recover --from backup/2026-11-21 --nats-url nats://127.0.0.1:4222 --report recovery
///
/// What is there is kept: a copy in DIR/backup before anything is touched, and beside that the whole old ledger, on
/// PostgreSQL in the schema ledger_before_EPOCH, on SQLite in FILE.before-EPOCH. It stops with exit code 2 and says what
/// a person must decide where two things could be right. On SQLite stop the service first when a log is to be restored;
/// on PostgreSQL services may run: commands are answered `503 store_unavailable` meanwhile, and after a restore each
/// service must be started anew. It may be killed at any moment and run again with the same arguments.
///
/// Exit codes: 0 the ledger is consistent and nothing is known to be lost; 1 events are known to be lost, or something is
/// still wrong: the report names it; 2 nothing was done, or it went no further: one line says why.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The archive, a folder that `export` wrote. Archives that go on from it (`export --since-manifest`) follow, in order,
    /// each with --from.
    #[arg(long, value_name = "ARCHIVE", required = true, num_args = 1..)]
    from: Vec<PathBuf>,
    /// The NATS server whose stream CREDIT holds what happened after the archive was taken.
    #[arg(long, value_name = "URL")]
    nats_url: Option<String>,
    /// Heads that were kept elsewhere (`replay-tool heads`): they tell exactly which positions are lost.
    #[arg(long, value_name = "FILE")]
    anchor: Option<PathBuf>,
    /// Orders to compare the recovered ledger with, as for `reconcile`. Nothing is settled.
    #[arg(long, value_name = "FILE|URL")]
    orders: Option<String>,
    /// Go on although the database holds events that cannot be connected with the archive. They stay in what is kept.
    #[arg(long)]
    replace: bool,
    /// The folder for the record of the steps, the backup and the report. To go on after a recovery was killed, give the
    /// same one.
    #[arg(long, value_name = "DIR")]
    report: PathBuf,
}

/// How often all of it is begun anew after a connection was lost or others were in the way, and the first pause before that;
/// each next one is twice as long.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether a projector catches up, and the pause between.
const CATCH_UP_LOOKS: u32 = 15;
const CATCH_UP_PAUSE: Duration = Duration::from_millis(200);

pub(crate) async fn run(context: &Context, arguments: &Arguments) -> Result<Outcome, Failure> {
    if let Some(orders) = &arguments.orders {
        reconcile::check_orders(orders)?;
    }
    let anchor = arguments.anchor.as_deref().map(Anchor::read).transpose()?;
    let mut record = Record::open(&arguments.report, &place(&context.database_url))?;
    let mut drill = Drill { context, arguments, anchor, record: &mut record, pause: None };
    let recovered = drill.run_patiently().await;
    // However it came out, commands go on.
    drill.resume().await;
    match recovered {
        Ok(document) => {
            let ok = document["recovered"] == true;
            if context.json {
                say!("{document}");
            } else {
                say!("{}", account::sentence(&document));
                say!("report  {}", account::place(record.folder()));
                for next in document["next"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    say!("next    {next}");
                }
                if document["action"] == "restored" && archive::import::lacks_keys(context).await {
                    say!("next    {}", archive::import::MAKE_KEYS);
                }
            }
            Ok(Outcome::of(ok))
        }
        Err(failure) => {
            record.stop(&failure.to_string())?;
            Err(failure)
        }
    }
}

/// The address without what only its owner may know.
fn place(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
            format!("{scheme}://{}", rest.split('?').next().unwrap_or(rest))
        }
        None => "a database".to_owned(),
    }
}

struct Drill<'a> {
    context: &'a Context,
    arguments: &'a Arguments,
    anchor: Option<Anchor>,
    record: &'a mut Record,
    pause: Option<Pause>,
}

impl Drill<'_> {
    /// Begins anew when the database or the stream was lost on the way: as after a kill, what was done is found again.
    async fn run_patiently(&mut self) -> Result<Value, Failure> {
        let mut pause = PAUSE;
        for _ in 1..ATTEMPTS {
            let failure = match self.run().await {
                Err(failure) if failure.is_passing() => failure,
                done => return done,
            };
            // The session that holds appends may be the one that was lost.
            self.resume().await;
            self.record.stop(&failure.to_string())?;
            eprintln!("{failure}; beginning anew");
            tokio::time::sleep(pause).await;
            pause *= 2;
            self.record.go_on()?;
        }
        self.run().await
    }

    async fn run(&mut self) -> Result<Value, Failure> {
        let database = match self.restored_before().await? {
            Some(database) => self.finish_restore(database).await?,
            None => self.mend().await?,
        };
        let consistent = self.verify(&database).await?;
        self.resume().await;
        if consistent {
            self.unlock(&database).await?;
        } else {
            // What a lock protects may be what is wrong, and nothing is to be recorded on top of that.
            self.record.facts.locks = Value::Null;
        }
        let agrees = self.reconcile(&database).await?;
        database.close().await;
        let ok = consistent && agrees && self.record.facts.lost.as_ref().is_some_and(Loss::is_none_known);
        let document = account::document(self.record, ok);
        account::write(self.record, &document)?;
        // What waited to be judged is of no more use; what cannot be removed does no harm.
        let _ = std::fs::remove_dir_all(self.record.work());
        Ok(document)
    }

    /// The database, when an earlier run of this recovery restored it and was killed before it said so.
    async fn restored_before(&self) -> Result<Option<Database>, Failure> {
        let Some(plan) = self.record.plan.as_ref().filter(|_| self.record.has_begun("restore")) else {
            return Ok(None);
        };
        archive::wait_for_other_restores(&self.context.database_url).await?;
        let database = match Database::open_existing(&self.context.database_url).await {
            Ok(database) => database,
            Err(error) if error.is_passing() => return Err(error.into()),
            // What is there instead is looked at next.
            Err(_) => return Ok(None),
        };
        let told = match restored::read_all(&database).await {
            Err(error) if !error.is_damage() => return Err(error.into()),
            told => told.unwrap_or_default(),
        };
        let is_it = told.last().is_some_and(|restored| {
            restored.epoch == Epoch(plan.epoch)
                && restored.archive_id == plan.archive_id
                && restored
                    .heads
                    .iter()
                    .zip(&plan.heads)
                    .all(|(head, (position, hash))| head.position.0 == *position && head.hash.to_string() == *hash)
        });
        if is_it {
            return Ok(Some(database));
        }
        database.close().await;
        Ok(None)
    }

    /// The log is there; the read models may not be.
    async fn finish_restore(&mut self, database: Database) -> Result<Database, Failure> {
        if matches!(database, Database::Postgres(_)) {
            // On SQLite the rebuild itself is the one writer that there can be.
            self.pause(&database).await?;
        }
        self.record.begin("rebuild")?;
        let rebuilt = archive::make_read_models(&database).await?;
        self.record.end(json!({ "events": rebuilt.events, "digest": rebuilt.digest }))?;
        let epoch = self.record.plan.as_ref().map_or(0, |plan| plan.epoch);
        let found = self.record.facts.found.as_ref();
        let kept = match &database {
            _ if found.is_some_and(|found| found.state.target() == Target::Empty) => None,
            Database::Postgres(_) => Some(format!("ledger_before_{epoch}")),
            Database::Sqlite(sqlite) => Some(format!("{}.before-{epoch}", sqlite.file())),
        };
        let why = found.map(|found| found.why.clone()).unwrap_or_default();
        // What an earlier run could not take along it did not write down.
        self.record.facts.restored(Epoch(epoch), (kept, Vec::new()), why, self.arguments.nats_url.is_some());
        Ok(database)
    }

    /// Looks, decides, keeps what is there, and mends it.
    async fn mend(&mut self) -> Result<Database, Failure> {
        self.record.plan = None;
        self.record.facts = Facts::default();
        self.record.begin("open the archive")?;
        let base = Base::open(&self.arguments.from).await?;
        let manifest = base.manifest();
        let archive = json!({
            "archive_id": manifest.archive_id, "created_at": manifest.created_at, "epoch": manifest.epoch,
            "events": base.events_count(), "accounts": manifest.accounts, "digest": manifest.digest,
            "folders": self.arguments.from,
        });
        self.record.end(archive.clone())?;
        self.record.facts.archive = archive;

        self.record.begin("look at the database")?;
        let mut examined = examine::examine(&self.context.database_url, self.arguments.replace).await?;
        if matches!(examined.state, State::LogDamaged | State::ReadModelsDamaged) {
            self.hold(&mut examined).await?;
        }
        let found = examined.found();
        self.record.end(json!(found))?;
        self.record.facts.found = Some(found);

        self.record.begin("gather events")?;
        let nats_url = self.arguments.nats_url.as_deref();
        let mut gathered = gather::gather(base.clone(), nats_url, self.anchor.as_ref(), &examined, self.record).await?;
        if examined.state == State::Sound && !examined.heads.is_some_and(|heads| gathered.is_in(&heads)) {
            // Either the ledger goes on, or it lacks what others have: that is seen when it stands still.
            self.hold(&mut examined).await?;
            gathered = gather::gather(base, nats_url, self.anchor.as_ref(), &examined, self.record).await?;
        }
        self.record.end(gathered.to_json())?;
        self.plan(&gathered, &examined);
        if let Some(decision) = gathered.decision(&examined, self.arguments.replace) {
            return Err(Failure::new(decision));
        }
        let is_complete = examined.heads.is_some_and(|heads| gathered.is_in(&heads));
        match (examined.state, is_complete) {
            (State::Sound, true) => self.leave(examined).await,
            (State::ReadModelsDamaged, true) => self.rebuild(examined).await,
            _ => self.restore(gathered, examined).await,
        }
    }

    /// From here on the log stays as it is looked at.
    async fn hold(&mut self, examined: &mut Examined) -> Result<(), Failure> {
        if let Some(database) = &examined.database {
            self.pause(database).await?;
            examined.standing = ledger_store::restore::standing(database).await?;
            examined.heads = examine::read_heads(database).await?;
        }
        Ok(())
    }

    /// Writes down what is going to be there, and what is lost.
    fn plan(&mut self, gathered: &Gathered, examined: &Examined) {
        let heads = gathered.tail.heads();
        self.record.plan = Some(Plan {
            archive_id: gathered.base.manifest().archive_id.to_string(),
            epoch: gathered.epoch.0,
            heads: heads.iter().map(|head| (head.position.0, head.hash.to_string())).collect(),
        });
        let events: u64 = heads.iter().map(|head| head.position.0).sum();
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = match events.saturating_add(gathered.loss.positions) {
            0 => 1.0,
            known => events as f64 / known as f64,
        };
        let facts = &mut self.record.facts;
        facts.events = gathered.to_json();
        facts.lost = Some(gathered.loss.clone());
        facts.success_rate = Some(rate);
        facts.digest = Digests {
            before: examined.digest.clone(),
            archive: Some(gathered.base.manifest().digest.to_string()),
            after: None,
        };
    }

    /// Nothing is wrong.
    async fn leave(&mut self, examined: Examined) -> Result<Database, Failure> {
        let database = match examined.database {
            Some(database) => database,
            None => self.context.open().await?,
        };
        self.resume().await;
        let was_rebuilt = self.record.has_ended("rebuild");
        let is_behind = self.is_behind(&database).await?;
        if is_behind {
            // No projector follows the log: what comes next needs the balances.
            self.record.begin("rebuild")?;
            let rebuilt = archive::make_read_models(&database).await?;
            self.record.end(json!({ "events": rebuilt.events, "digest": rebuilt.digest }))?;
        }
        let mended = match (was_rebuilt, is_behind) {
            (true, _) => Some("an earlier attempt of this recovery made the read models anew"),
            (false, true) => Some("the read models were behind the log"),
            (false, false) => None,
        };
        let facts = &mut self.record.facts;
        facts.action = Some(if mended.is_some() { Action::Rebuilt } else { Action::Nothing });
        facts.mended = mended.map(str::to_owned).into_iter().collect();
        Ok(database)
    }

    /// Whether the balances are behind the log, and stay so.
    async fn is_behind(&self, database: &Database) -> Result<bool, Failure> {
        let heads = database.heads().await?;
        for _ in 0..CATCH_UP_LOOKS {
            let at = checkpoint::read(database, ReadModel::Balances).await?;
            if at.iter().zip(&heads).all(|(at, head)| at.position >= head.position) {
                return Ok(false);
            }
            tokio::time::sleep(CATCH_UP_PAUSE).await;
        }
        Ok(true)
    }

    /// Only what is made from the log is wrong.
    async fn rebuild(&mut self, examined: Examined) -> Result<Database, Failure> {
        self.backup(&examined).await?;
        let database = match examined.database {
            Some(database) => database,
            None => self.context.open().await?,
        };
        if matches!(database, Database::Sqlite(_)) {
            // There is one writer at a time, and the rebuild is the next one. It is made beside what is served.
            self.resume().await;
        }
        self.record.begin("rebuild")?;
        let rebuilt = archive::make_read_models(&database).await?;
        if examined.compensations_differ {
            database.mend_compensations().await?;
        }
        self.record.end(json!({ "events": rebuilt.events, "digest": rebuilt.digest }))?;
        self.record.facts.action = Some(Action::Rebuilt);
        self.record.facts.mended = vec![examined.why];
        Ok(database)
    }

    /// The log itself is put in place.
    async fn restore(&mut self, gathered: Gathered, mut examined: Examined) -> Result<Database, Failure> {
        self.backup(&examined).await?;
        if let Some(database) = examined.database.take() {
            // Not only its pool: on SQLite nobody may have the file open, this process neither.
            database.close().await;
        }
        let target = examined.state.target();
        if self.context.database_url.starts_with("sqlite:") {
            // The file changes its place, and whoever has it open is refused.
            self.resume().await;
        }
        self.record.begin("restore")?;
        let heads = gathered.tail.heads();
        let (epoch, archive_id) = (gathered.epoch, gathered.base.manifest().archive_id.to_string());
        let gathered = Arc::new(gathered);
        let events = gathered.clone();
        let restored = Restored {
            archive_id,
            epoch,
            heads,
            events: Box::new(move |partition: Partition| events.events(partition)),
            appends_are_held: matches!(self.pause, Some(Pause::Postgres(_))),
            standing: examined.standing,
        };
        let summary = archive::restore(&self.context.database_url, target, restored).await?;
        self.record.end(json!({ "events": summary.events, "accounts": summary.accounts, "digest": summary.digest,
            "kept": summary.kept, "left_out": summary.left_out, "wrote_seconds": summary.wrote_in.as_secs_f64(),
            "compared_seconds": summary.compared_in.as_secs_f64() }))?;
        let from_there = (summary.kept, summary.left_out);
        self.record.facts.restored(epoch, from_there, examined.why, self.arguments.nats_url.is_some());
        self.record.keep()?;
        self.context.open().await
    }

    /// Keeps what is there, once.
    async fn backup(&mut self, examined: &Examined) -> Result<(), Failure> {
        let url = &self.context.database_url;
        if !examined.state.has_something() && !backup::has_leftovers(url)? {
            return Ok(());
        }
        // The service may have gone on since an earlier attempt.
        let standing =
            examined.standing.as_deref().map(|standing| blake3::hash(standing.as_bytes()).to_hex().to_string());
        if self.record.backup.as_ref().is_some_and(|kept| kept["standing"] == json!(standing)) {
            return Ok(());
        }
        self.record.begin("back up")?;
        let kept = backup::backup(url, self.record.folder(), standing).await?;
        self.record.backup = Some(kept.clone());
        self.record.end(kept)
    }

    async fn verify(&mut self, database: &Database) -> Result<bool, Failure> {
        self.record.begin("verify")?;
        let progress = Progress::new("verifying");
        let verified = verify::verify(database, &progress).await?;
        progress.finish();
        let consistent = verified.is_consistent();
        let found = json!({ "consistent": consistent, "events": verified.events, "accounts": verified.accounts,
            "digest": verified.digest, "findings": examine::findings_json(&verified.findings) });
        self.record.end(json!({ "consistent": consistent, "digest": verified.digest }))?;
        self.record.facts.verified = found;
        self.record.facts.digest.after = Some(verified.digest.to_string());
        Ok(consistent)
    }

    async fn unlock(&mut self, database: &Database) -> Result<(), Failure> {
        self.record.begin("unlock")?;
        let unlocked = unlock::unlock(database).await?;
        let unlocked = json!(unlocked);
        self.record.end(unlocked.clone())?;
        self.record.facts.locks = unlocked;
        Ok(())
    }

    /// Whether the orders agree; true when none were given.
    async fn reconcile(&mut self, database: &Database) -> Result<bool, Failure> {
        let Some(orders) = &self.arguments.orders else {
            self.record.facts.reconciliation = Value::Null;
            return Ok(true);
        };
        self.record.begin("reconcile")?;
        let progress = Progress::new("reconciling");
        let reconciled = reconcile::reconcile(database, &Question::about(orders), &progress).await;
        progress.finish();
        let reconciled = reconciled?;
        let agrees = reconciled.is_consistent();
        self.record
            .end(json!({ "consistent": agrees, "orders": reconciled.orders, "mismatches": reconciled.mismatches }))?;
        self.record.facts.reconciliation = reconciled.json();
        Ok(agrees)
    }

    async fn pause(&mut self, database: &Database) -> Result<(), Failure> {
        if self.pause.is_none() {
            self.pause = Some(Pause::begin(database, &self.context.database_url).await?);
        }
        Ok(())
    }

    async fn resume(&mut self) {
        if let Some(pause) = self.pause.take() {
            pause.end().await;
        }
    }
}
