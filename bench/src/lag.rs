//! How far the read models are behind the log, by the database itself.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use ledger_store::Database;
use projector::checkpoint::{self, ReadModel};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

/// How often the positions of log and read models are compared.
pub(crate) const LOOK: Duration = Duration::from_millis(50);

/// The number of events, and how many of them both read models have.
pub(crate) async fn positions(database: &Database) -> (u64, u64) {
    let mut applied = u64::MAX;
    for model in ReadModel::ALL {
        let checkpoints = checkpoint::read(database, model).await.expect("checkpoints");
        applied = applied.min(checkpoints.iter().map(|head| head.position.0).sum());
    }
    let heads = database.heads().await.expect("heads");
    (heads.iter().map(|head| head.position.0).sum(), applied)
}

/// Watches while a load runs; given up when it is dropped.
pub(crate) struct LagWatch {
    stop: watch::Sender<bool>,
    task: JoinHandle<f64>,
}

impl LagWatch {
    pub(crate) async fn start(database_url: &str) -> Self {
        let database = Database::open_existing(database_url).await.expect("the ledger's database");
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            // When which head was seen first.
            let mut seen: VecDeque<(Instant, u64)> = VecDeque::new();
            let mut longest = 0.0_f64;
            while !*stopped.borrow() {
                let asked = Instant::now();
                let (head, applied) = positions(&database).await;
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
        Self { stop, task }
    }

    /// The longest lag, in seconds.
    pub(crate) async fn end(mut self) -> f64 {
        self.stop.send_replace(true);
        (&mut self.task).await.expect("the watch does not panic")
    }
}

impl Drop for LagWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
