//! The ledger that is measured: a service on a new database, and what is watched while it works.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use ledger_store::Database;
use projector::checkpoint::{self, ReadModel};
use tempfile::TempDir;
use tests::{Postgres, Service};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use crate::{
    client::{self, Outcome, Source},
    figures::{Cpu, Figures, Latency},
    load::Opening,
    process::{self, Use},
};

/// How often the positions of log and read models are compared.
const LOOK: Duration = Duration::from_millis(50);

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Postgres,
    Sqlite,
}

/// A running service, its database, and where that is kept.
pub(crate) struct Subject<'p> {
    pub(crate) service: Service,
    pub(crate) database_url: String,
    cluster: Option<&'p Postgres>,
    folder: Option<TempDir>,
}

impl<'p> Subject<'p> {
    /// A service on a new ledger: on the cluster, or in a file in `folder` when there is none.
    pub(crate) fn start(cluster: Option<&'p Postgres>, folder: &std::path::Path) -> Self {
        let (database_url, folder) = match cluster {
            Some(cluster) => (cluster.database(), None),
            None => {
                let folder = tempfile::tempdir_in(folder).expect("a temporary folder");
                (format!("sqlite://{}/ledger.db", folder.path().display()), Some(folder))
            }
        };
        let service = Service::start(&database_url, &[]);
        Self { service, database_url, cluster, folder }
    }

    /// The SQLite file, where that is what the ledger is in.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.path().join("ledger.db"))
    }

    /// Ends the service the hard way, starts it again, and gives how long it took until a command was answered.
    pub(crate) async fn crash_and_start(&mut self) -> Duration {
        self.service.kill9();
        let began = Instant::now();
        self.service = Service::start(&self.database_url, &[]);
        let body = br#"{"user_id":"user-0000000","credit_type":"points","amount":1,"business_code":"shop.start","business_id":"1"}"#;
        let (status, _) = client::once(&self.service.url, |request| {
            request.post("/v1/credits", |to| to.extend_from_slice(body));
        })
        .await
        .expect("the service answers");
        assert!(status == 200 || status == 201, "the first command after a start: {status}");
        began.elapsed()
    }

    /// Opens accounts up to `count`, and waits until the read models have them.
    pub(crate) async fn open_accounts(&self, from: u32, count: u32) {
        // In steps, because a source goes on for as long as the time is, not until it has no more.
        let mut opening = [Opening { next: from, until: count, size: 5_000 }];
        while opening[0].next < count {
            client::requests(&self.service.url, &mut opening, 1).await;
        }
        self.settle().await;
    }

    /// Waits until the read models have caught up.
    pub(crate) async fn settle(&self) {
        let database = Database::open_existing(&self.database_url).await.expect("the ledger's database");
        loop {
            let (head, applied) = positions(&database).await;
            if head == applied {
                database.close().await;
                return;
            }
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

    fn used(&self) -> (Use, Use, Use) {
        let service = process::of(self.service.pid());
        let database = self.cluster.map(|cluster| process::of_family(cluster.pid())).unwrap_or_default();
        (service, database, process::of(std::process::id()))
    }

    /// Runs a load in a closed loop and gives what it came to.
    pub(crate) async fn closed<S: Source>(&self, sources: &mut [S], warm_up: Duration, length: Duration) -> Figures {
        self.watch(warm_up, client::closed_loop(&self.service.url, sources, warm_up, length)).await
    }

    /// Runs a load at a given rate.
    pub(crate) async fn open<S: Source>(
        &self,
        sources: &mut [S],
        per_second: f64,
        warm_up: Duration,
        length: Duration,
    ) -> Figures {
        self.watch(warm_up, client::open_loop(&self.service.url, sources, per_second, warm_up, length)).await
    }

    /// What is used while a load runs; it is read after the warm-up and at the end.
    pub(crate) async fn watch(&self, warm_up: Duration, load: impl Future<Output = Outcome>) -> Figures {
        let lag = LagWatch::start(&self.database_url).await;
        let began = async {
            sleep(warm_up).await;
            (self.used(), Instant::now(), lag.head.borrow().to_owned())
        };
        let (outcome, (before, from, head_before)) = futures::join!(load, began);
        let seconds = from.elapsed().as_secs_f64();
        let after = self.used();
        let head = *lag.head.borrow();
        let lag_seconds = lag.end().await;
        let cores = |before: Use, after: Use| (after.cpu_seconds - before.cpu_seconds) / seconds;
        let written = after.0.written_bytes + after.1.written_bytes - before.0.written_bytes - before.1.written_bytes;
        let events = head.saturating_sub(head_before);
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let bytes_per_event = (events > 0).then(|| written as f64 / events as f64);
        Figures {
            rate: outcome.commands_per_second(),
            latency: Some(Latency::of(&outcome.latencies)),
            cpu: Some(Cpu {
                service: cores(before.0, after.0),
                database: cores(before.1, after.1),
                client: cores(before.2, after.2),
            }),
            bytes_per_event,
            lag_seconds: Some(lag_seconds),
            memory_mib: Some(process::memory_peak_mib(self.service.pid())),
        }
    }

    /// What the ledger takes up on the disk, in bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        match (self.cluster, &self.folder) {
            (Some(cluster), _) => {
                let name = self.database_url.rsplit('/').next().expect("an address ends with the database's name");
                let bytes = cluster.psql("postgres", &format!("select pg_database_size('{name}')"));
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
        self.service.kill9();
        if let Some(cluster) = self.cluster {
            // A year's ledger is large: the room is for the next.
            let name = self.database_url.rsplit('/').next().expect("an address ends with the database's name");
            cluster.psql("postgres", &format!("drop database {name} with (force)"));
        }
    }
}

/// The sums of the log's positions and of what both read models have of them.
async fn positions(database: &Database) -> (u64, u64) {
    let mut applied = u64::MAX;
    for model in ReadModel::ALL {
        let checkpoints = checkpoint::read(database, model).await.expect("checkpoints");
        applied = applied.min(checkpoints.iter().map(|head| head.position.0).sum());
    }
    let heads = database.heads().await.expect("heads");
    (heads.iter().map(|head| head.position.0).sum(), applied)
}

/// Watches how far the read models are behind the log, from the database itself.
struct LagWatch {
    head: watch::Receiver<u64>,
    stop: watch::Sender<bool>,
    task: JoinHandle<f64>,
}

impl LagWatch {
    async fn start(database_url: &str) -> Self {
        let database = Database::open_existing(database_url).await.expect("the ledger's database");
        let (tell, head) = watch::channel(positions(&database).await.0);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            // When which head was seen first.
            let mut seen: std::collections::VecDeque<(Instant, u64)> = std::collections::VecDeque::new();
            let mut longest = 0.0_f64;
            while !*stopped.borrow() {
                let asked = Instant::now();
                let (head, applied) = positions(&database).await;
                tell.send_replace(head);
                seen.push_back((asked, head));
                // What was at the head when it was applied by now was not behind.
                while seen.front().is_some_and(|(_, head)| *head <= applied) {
                    seen.pop_front();
                }
                if let Some((since, _)) = seen.front() {
                    longest = longest.max((asked - *since).as_secs_f64());
                }
                sleep(LOOK).await;
            }
            database.close().await;
            longest
        });
        Self { head, stop, task }
    }

    async fn end(self) -> f64 {
        self.stop.send_replace(true);
        self.task.await.expect("the watch does not panic")
    }
}
