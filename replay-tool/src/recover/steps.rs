//! The record of a recovery: what was done, as it is done, so that a run that was killed is found and begun again.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::Instant,
};

use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::{backup, facts::Facts};
use crate::{context::Failure, report::write_whole};

const RECORD: &str = "steps.json";
const LOCK: &str = "recover.lock";

/// How a recovery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Running,
    /// A person must decide, or something could not be done; `why` says what.
    Stopped,
    Done,
}

/// A step that was begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) step: String,
    pub(super) began_at: String,
    /// Absent while it runs, and when it was killed.
    pub(super) seconds: Option<f64>,
    pub(super) outcome: Value,
}

/// What is put into the database, written down before it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) archive_id: String,
    pub(super) epoch: u32,
    /// The position and the hash of each partition's newest event.
    pub(super) heads: Vec<(u64, String)>,
}

/// The record, as it stands in `steps.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) recovery_id: Uuid,
    pub(super) began_at: String,
    pub(super) state: State,
    pub(super) why: Option<String>,
    pub(super) database: String,
    /// How often it was begun.
    pub(super) attempts: u32,
    pub(super) steps: Vec<Step>,
    pub(super) plan: Option<Plan>,
    /// Where what was there is kept.
    pub(super) backup: Option<Value>,
    pub(super) facts: Facts,
    #[serde(skip)]
    folder: PathBuf,
    #[serde(skip)]
    began: Option<Instant>,
    #[serde(skip)]
    lock: Option<File>,
}

impl Record {
    /// Opens the folder, alone, and finds what an earlier run left there.
    pub(super) fn open(folder: &Path, database: &str) -> Result<Self, Failure> {
        let failed = |path: &Path, error: &std::io::Error| {
            Failure::new(format!("{}: {error}; give a folder that can be written to with --report", path.display()))
        };
        fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
        let lock = File::create(folder.join(LOCK)).map_err(|error| failed(folder, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let place = folder.display();
                return Err(Failure::new(format!("another recovery uses the folder {place}: wait for it")));
            }
            Err(TryLockError::Error(error)) => return Err(failed(folder, &error)),
        }
        let path = folder.join(RECORD);
        let left: Option<Self> = match fs::read(&path) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes).map_err(|error| {
                let place = path.display();
                Failure::new(format!("{place} is no record of a recovery ({error}): give another folder with --report"))
            })?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(&path, &error)),
        };
        if let Some(left) = &left
            && left.database != database
        {
            return Err(Failure::new(format!(
                "{} is the record of a recovery of {}: give another folder with --report",
                path.display(),
                left.database
            )));
        }
        let mut record = match left {
            Some(left) if left.state != State::Done => Self { state: State::Running, why: None, ..left },
            Some(done) => {
                done.put_away(folder).map_err(|error| failed(folder, &error))?;
                Self::new(database)
            }
            None => Self::new(database),
        };
        record.attempts += 1;
        record.folder = folder.to_owned();
        record.lock = Some(lock);
        record.keep()?;
        Ok(record)
    }

    fn new(database: &str) -> Self {
        Self {
            recovery_id: Uuid::new_v4(),
            began_at: now(),
            state: State::Running,
            why: None,
            database: database.to_owned(),
            attempts: 0,
            steps: Vec::new(),
            plan: None,
            backup: None,
            facts: Facts::default(),
            folder: PathBuf::new(),
            began: None,
            lock: None,
        }
    }

    /// Makes room for a new recovery: what a finished one left stays, in a folder of its own.
    fn put_away(&self, folder: &Path) -> std::io::Result<()> {
        let aside = folder.join(format!("finished-{}", self.recovery_id));
        fs::create_dir_all(&aside)?;
        let backups = fs::read_dir(folder)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(backup::FOLDER));
        // The record last: until it is gone, this is done again.
        for name in backups.chain(["report.html", "report.json", RECORD].map(str::to_owned)) {
            match fs::rename(folder.join(&name), aside.join(&name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where events wait until they are judged.
    pub(super) fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    pub(super) fn begin(&mut self, step: &str) -> Result<(), Failure> {
        self.steps.push(Step { step: step.to_owned(), began_at: now(), seconds: None, outcome: Value::Null });
        self.began = Some(Instant::now());
        self.keep()
    }

    pub(super) fn end(&mut self, outcome: Value) -> Result<(), Failure> {
        if let (Some(step), Some(began)) = (self.steps.last_mut(), self.began.take()) {
            step.seconds = Some(began.elapsed().as_secs_f64());
            step.outcome = outcome;
        }
        self.keep()
    }

    /// Writes down why it went no further.
    pub(super) fn stop(&mut self, why: &str) -> Result<(), Failure> {
        self.state = State::Stopped;
        self.why = Some(why.to_owned());
        if let (Some(step), Some(began)) = (self.steps.last_mut(), self.began.take()) {
            step.seconds = Some(began.elapsed().as_secs_f64());
            step.outcome = serde_json::json!({ "stopped": why });
        }
        self.keep()
    }

    /// Goes on after it stopped by itself.
    pub(super) fn go_on(&mut self) -> Result<(), Failure> {
        self.state = State::Running;
        self.why = None;
        self.attempts += 1;
        self.keep()
    }

    /// Whether a step was done to its end, in this run or an earlier one.
    pub(super) fn has_ended(&self, step: &str) -> bool {
        let is_done = |known: &Step| known.seconds.is_some() && known.outcome.get("stopped").is_none();
        self.steps.iter().any(|known| known.step == step && is_done(known))
    }

    /// Whether a step was begun, in this run or an earlier one.
    pub(super) fn has_begun(&self, step: &str) -> bool {
        self.steps.iter().any(|known| known.step == step)
    }

    /// Rewrites the record, so that at every moment one whole record is there.
    pub(super) fn keep(&self) -> Result<(), Failure> {
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| Failure::new(error.to_string()))?;
        write_whole(&self.folder.join(RECORD), &bytes)
    }
}

/// The time, as reports give it.
pub(super) fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}
