//! Private PostgreSQL clusters.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::children::{bound_to_this_process, free_port, spawn};

/// PostgreSQL refuses to run as root; this user runs it then.
const USER: &str = "ledgertest";

/// A cluster of one's own: on a free loopback port, durable as in production, gone with the value.
#[derive(Debug)]
pub struct Postgres {
    directory: TempDir,
    port: u16,
    settings: Vec<String>,
    postmaster: Option<Child>,
}

/// What the folders of clusters are called.
const PREFIX: &str = "ledger-pg";
/// The file in such a folder that names the process that made it.
const OWNER: &str = "owner";

static DATABASES: AtomicU32 = AtomicU32::new(0);

impl Postgres {
    /// Makes and starts a cluster.
    ///
    /// # Panics
    ///
    /// When PostgreSQL is not installed or does not start.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(Path::new("/tmp"), &["shared_buffers=128MB"])
    }

    /// Makes a cluster in a folder of its own within `parent` and starts it with these settings besides.
    ///
    /// # Panics
    ///
    /// When PostgreSQL is not installed or does not start.
    #[must_use]
    pub fn start_with(parent: &Path, settings: &[&str]) -> Self {
        sweep(parent);
        let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent).expect("a temporary folder");
        fs::write(directory.path().join(OWNER), std::process::id().to_string()).expect("own folder");
        let data = directory.path().join("data");
        fs::create_dir(&data).expect("a folder for the cluster");
        if let Some((uid, gid)) = other_user() {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("own folder");
            chown(directory.path(), Some(uid), Some(gid)).expect("root may chown");
            chown(&data, Some(uid), Some(gid)).expect("root may chown");
        }
        let made = as_server_user(&program("initdb"))
            .args(["-D", &text(&data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .stdout(Stdio::null())
            .status();
        assert!(made.is_ok_and(|status| status.success()), "initdb failed");
        let mut cluster = Self {
            directory,
            port: free_port(),
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
            postmaster: None,
        };
        cluster.run();
        cluster
    }

    /// The cluster that the tests of one process share, each with databases of its own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Starts the server over the data that is there, and waits until it takes connections.
    ///
    /// # Panics
    ///
    /// When it does not within a minute.
    pub fn run(&mut self) {
        let directory = text(self.directory.path());
        let log = fs::File::create(self.directory.path().join("log")).expect("a log file");
        let mut postmaster = as_server_user(&program("postgres"));
        postmaster
            .args(["-D", &text(&self.data()), "-p", &self.port.to_string(), "-k", &directory])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"])
            .args(self.settings.iter().flat_map(|setting| ["-c", setting.as_str()]))
            .stdout(Stdio::null())
            .stderr(log);
        self.postmaster = Some(spawn(postmaster));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.is_ready() {
            assert!(Instant::now() < deadline, "PostgreSQL did not start: see {directory}/log");
            std::thread::yield_now();
        }
    }

    fn is_ready(&self) -> bool {
        let ready =
            Command::new(program("pg_isready")).args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]).status();
        ready.is_ok_and(|status| status.success())
    }

    /// Stops the server the hard way: as after a power cut, but for the operating system's cache.
    ///
    /// # Panics
    ///
    /// When the server does not run.
    pub fn stop_immediately(&mut self) {
        let stopped = as_server_user(&program("pg_ctl"))
            .args(["-D", &text(&self.data()), "-m", "immediate", "-w", "stop"])
            .stdout(Stdio::null())
            .status();
        assert!(stopped.is_ok_and(|status| status.success()), "pg_ctl stop failed");
        if let Some(mut postmaster) = self.postmaster.take() {
            postmaster.wait().expect("our child");
        }
    }

    /// Keeps a copy of the files of a server that does not run.
    ///
    /// # Panics
    ///
    /// When they cannot be copied.
    pub fn keep(&self) {
        let copied = Command::new("cp").arg("-a").args([self.data(), self.kept()]).status();
        assert!(copied.is_ok_and(|status| status.success()), "the cluster was not copied");
    }

    /// Puts the copy in the place of the files of a server that does not run: whatever was committed since is lost, as with a
    /// server that takes over without it.
    ///
    /// # Panics
    ///
    /// When there is no copy.
    pub fn put_back(&self) {
        fs::remove_dir_all(self.data()).expect("own folder");
        fs::rename(self.kept(), self.data()).expect("it was kept");
    }

    fn kept(&self) -> PathBuf {
        self.directory.path().join("kept")
    }

    /// Makes a new, empty database and gives its address.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    #[must_use]
    pub fn database(&self) -> String {
        let name = format!("ledger{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("create database {name}"));
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }

    /// Runs SQL as the superuser and gives what psql prints, unadorned.
    ///
    /// # Panics
    ///
    /// When the SQL fails.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let output = Command::new(program("psql"))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", "-d", database])
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .output()
            .expect("psql is installed");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("psql prints UTF-8").trim_end().to_owned()
    }

    /// The number of the server's first process.
    ///
    /// # Panics
    ///
    /// When the server does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.postmaster.as_ref().expect("the server runs").id()
    }

    /// Where the cluster's files are.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.postmaster.is_some() {
            self.stop_immediately();
        }
    }
}

/// Removes the clusters of processes that are gone: the one that tests share lives until its process ends, and nobody is
/// left then to remove its folder.
fn sweep(parent: &Path) {
    let folders = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_cluster =
        |path: &PathBuf| path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(PREFIX));
    for folder in folders.filter(is_cluster) {
        let owner = fs::read_to_string(folder.join(OWNER)).ok().and_then(|owner| owner.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            // Another process may be sweeping, too.
            let _ = fs::remove_dir_all(folder);
        }
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("temporary folders have plain names").to_owned()
}

/// The server's programs stand outside the path on Debian.
fn program(name: &str) -> String {
    let found = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|version| version.path());
    let mut installed: Vec<_> =
        found.map(|version| version.join("bin").join(name)).filter(|path| path.exists()).collect();
    installed.sort();
    installed.pop().map_or_else(|| name.to_owned(), |path| text(&path))
}

fn as_server_user(program: &str) -> Command {
    let mut command = bound_to_this_process("env", "QUIT");
    if let Some((uid, gid)) = other_user() {
        command = Command::new("setpriv");
        let (uid, gid) = (uid.to_string(), gid.to_string());
        // The parent-death signal last: changing the user clears it.
        command.args(["--reuid", &uid, "--regid", &gid, "--clear-groups", "--pdeathsig", "QUIT", "--", "env"]);
    }
    command.arg(program).current_dir("/");
    command
}

/// Who runs the server when this process is root.
fn other_user() -> Option<(u32, u32)> {
    static OTHER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *OTHER.get_or_init(|| {
        let id = |arguments: &[&str]| {
            let output = Command::new("id").args(arguments).output().ok()?;
            String::from_utf8(output.stdout).ok()?.trim().parse::<u32>().ok()
        };
        if id(&["-u"]) != Some(0) {
            return None;
        }
        if id(&["-u", USER]).is_none() {
            // Several test processes may try at once; whoever comes second finds the user there.
            let _ = Command::new("useradd").args(["--system", "--no-create-home", USER]).status();
        }
        Some((id(&["-u", USER]).expect("the user was made"), id(&["-g", USER]).expect("the user was made")))
    })
}
