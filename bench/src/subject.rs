//! The ledger that is measured: a service on a new database, and what is watched while it works.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ledger_store::Database;
use serde_json::json;
use tempfile::TempDir;
use tests::{Postgres, Service};
use tokio::time::sleep;

use crate::{
    client::{self, Outcome, Source},
    disk::Disk,
    figures::{Cpu, Figures, Latency, float},
    lag::{LOOK, LagWatch, positions},
    load::Opening,
    process::{self, Busy},
};

/// Read models that do not move for so long will not.
const STILL: Duration = Duration::from_secs(30);

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Postgres,
    Sqlite,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Postgres => "PostgreSQL",
            Self::Sqlite => "SQLite",
        })
    }
}

/// What was watched while a load ran.
pub(crate) struct Watched {
    pub(crate) cpu: Cpu,
    pub(crate) bytes_per_event: Option<f64>,
    pub(crate) lag_seconds: f64,
    pub(crate) memory_mib: f64,
}

impl Watched {
    /// The figures of a load during which this was watched.
    pub(crate) fn figures(&self, outcome: &Outcome) -> Figures {
        Figures { latency: Some(Latency::of(&outcome.latencies)), ..self.figures_of(outcome.commands_per_second()) }
    }

    /// The same without single requests.
    pub(crate) fn figures_of(&self, rate: f64) -> Figures {
        Figures {
            rate,
            latency: None,
            cpu: Some(self.cpu),
            bytes_per_event: self.bytes_per_event,
            lag_seconds: Some(self.lag_seconds),
            memory_mib: Some(self.memory_mib),
        }
    }
}

/// A running service, its database, and where that is kept.
pub(crate) struct Subject<'p> {
    pub(crate) service: Service,
    pub(crate) database_url: String,
    cluster: Option<&'p Postgres>,
    folder: Option<TempDir>,
    starts: u32,
    /// Whether each load begins with a checkpoint and ends with one, so that all bytes that it causes are counted. A load
    /// of some seconds then pays for the first touch of every page, which a service pays for once between two
    /// checkpoints, minutes apart.
    pub(crate) checkpoints: bool,
}

impl<'p> Subject<'p> {
    /// A service on a new ledger: on the cluster, or in a file in `folder` when there is none.
    pub(crate) fn start(cluster: Option<&'p Postgres>, folder: &Path) -> Self {
        let (database_url, folder) = match cluster {
            Some(cluster) => (cluster.database(), None),
            None => {
                let folder = tempfile::Builder::new().prefix("ledger-bench").tempdir_in(folder);
                let folder = folder.expect("a temporary folder");
                (format!("sqlite://{}/ledger.db", folder.path().display()), Some(folder))
            }
        };
        let service = Service::start(&database_url, &[]);
        Self { service, database_url, cluster, folder, starts: 0, checkpoints: true }
    }

    /// A service on a ledger that is somebody else's, and stays.
    pub(crate) fn on(database_url: &str) -> Self {
        let service = Service::start(database_url, &[]);
        Self {
            service,
            database_url: database_url.to_owned(),
            cluster: None,
            folder: None,
            starts: 0,
            checkpoints: true,
        }
    }

    /// The SQLite file, where that is what the ledger is in.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.path().join("ledger.db"))
    }

    /// Ends the service the hard way, starts it again, and gives how long it took until a command was answered.
    pub(crate) async fn crash_and_start(&mut self) -> Duration {
        self.service.kill9();
        self.starts += 1;
        let command = json!({ "user_id": "user-0000000", "credit_type": "points", "amount": 1,
            "business_code": "shop.start", "business_id": self.starts.to_string() });
        let body = command.to_string();
        let began = Instant::now();
        self.service = Service::start(&self.database_url, &[]);
        let (status, answer) = client::once(&self.service.url, |request| {
            request.post("/v1/credits", |to| to.extend_from_slice(body.as_bytes()));
        })
        .await
        .expect("the service answers");
        let took = began.elapsed();
        assert_eq!(status, 201, "the first command after a start: {}", String::from_utf8_lossy(&answer));
        took
    }

    /// Opens accounts up to `count`, and waits until the read models have them.
    pub(crate) async fn open_accounts(&self, from: u32, count: u32) {
        let mut opening = [Opening { next: from, until: count, size: 10_000 }];
        client::while_wanted(&self.service.url, &mut opening, |opening| opening.next < opening.until).await;
        self.settle().await;
    }

    /// Waits until the read models have caught up.
    ///
    /// # Panics
    ///
    /// When they stand still.
    pub(crate) async fn settle(&self) {
        let database = Database::open_existing(&self.database_url).await.expect("the ledger's database");
        let mut newest = (0, Instant::now());
        loop {
            let (head, applied) = positions(&database).await;
            if head == applied {
                database.close().await;
                return;
            }
            if applied > newest.0 {
                newest = (applied, Instant::now());
            }
            assert!(newest.1.elapsed() < STILL, "the read models stand still at {applied} of {head} events");
            sleep(LOOK).await;
        }
    }

    /// How many events there are.
    pub(crate) async fn events(&self) -> u64 {
        let database = Database::open_existing(&self.database_url).await.expect("the ledger's database");
        let (head, _) = positions(&database).await;
        database.close().await;
        head
    }

    /// Writes what the server has not yet written, so that no load pays for the one before it.
    pub(crate) fn checkpoint(&self) {
        if let Some(cluster) = self.cluster {
            cluster.psql("postgres", "checkpoint");
        }
    }

    /// Runs a load in a closed loop and gives what it came to.
    pub(crate) async fn closed<S: Source>(&self, sources: &mut [S], warm_up: Duration, length: Duration) -> Figures {
        let load = client::closed_loop(&self.service.url, sources, warm_up, length);
        let (outcome, watched) = self.watch(warm_up, load).await;
        watched.figures(&outcome)
    }

    /// Runs a load at a given rate.
    pub(crate) async fn open<S: Source>(
        &self,
        sources: &mut [S],
        per_second: f64,
        warm_up: Duration,
        length: Duration,
    ) -> Figures {
        let load = client::open_loop(&self.service.url, sources, per_second, warm_up, length);
        let (outcome, watched) = self.watch(warm_up, load).await;
        watched.figures(&outcome)
    }

    /// What is used while a load runs. CPU time is counted from the warm-up on. The bytes are all that the events
    /// cause, so they are counted over the whole load and until read models, indexes and data files are written.
    pub(crate) async fn watch<T>(&self, warm_up: Duration, load: impl Future<Output = T>) -> (T, Watched) {
        let busy = Busy { service: Some(self.service.pid()), database: self.cluster.map(Postgres::pid) };
        let events_before = self.events().await;
        if self.checkpoints {
            self.checkpoint();
        }
        let disk = self.disk().filter(|_| self.checkpoints || self.cluster.is_none());
        let written = || disk.and_then(Disk::written_bytes);
        let written_before = written();
        let lag = LagWatch::start(&self.database_url).await;
        let (outcome, cpu) = busy.watch(warm_up, load).await;
        let lag_seconds = lag.end().await;
        self.settle().await;
        if self.checkpoints {
            self.checkpoint();
        }
        let written = written().zip(written_before).map(|(after, before)| after - before);
        let events = self.events().await - events_before;
        let watched = Watched {
            cpu,
            bytes_per_event: written.filter(|_| events > 0).map(|written| float(written) / float(events)),
            lag_seconds,
            memory_mib: process::memory_peak_mib(self.service.pid()),
        };
        (outcome, watched)
    }

    fn disk(&self) -> Option<Disk> {
        let of_file = self.folder.as_ref().and_then(|folder| Disk::under(folder.path()));
        of_file.or_else(|| Disk::under(&self.cluster?.data()))
    }

    /// What the ledger takes up on the disk, in bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        match (self.cluster, &self.folder) {
            (Some(cluster), _) => {
                let bytes =
                    cluster.psql("postgres", &format!("select pg_database_size('{}')", name(&self.database_url)));
                bytes.parse().expect("a number")
            }
            (None, Some(folder)) => std::fs::read_dir(folder.path())
                .expect("our folder")
                .flatten()
                .filter_map(|entry| Some(entry.metadata().ok()?.len()))
                .sum(),
            (None, None) => 0,
        }
    }

    /// Runs the replay-tool, which must find nothing, and gives how long it took.
    pub(crate) fn replay(&self, command: &str) -> Duration {
        let began = Instant::now();
        let (code, printed) = tests::replay_tool(&self.database_url, &[command]);
        assert_eq!(code, 0, "replay-tool {command}: {printed:#}");
        began.elapsed()
    }
}

impl Drop for Subject<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the service logged: {}", self.service.log());
        }
        self.service.kill9();
        if let Some(cluster) = self.cluster {
            drop_database(cluster, &self.database_url);
        }
    }
}

/// A year's ledger is large: the room is for the next. A scenario that failed may have lost the cluster.
pub(crate) fn drop_database(cluster: &Postgres, url: &str) {
    let drop = || cluster.psql("postgres", &format!("drop database {} with (force)", name(url)));
    if catch_unwind(AssertUnwindSafe(drop)).is_err() {
        eprintln!("{url} was not dropped");
    }
}

fn name(url: &str) -> &str {
    url.rsplit('/').next().expect("an address ends with the database's name")
}
