//! The two databases behind one seam.

use ledger_core::{AccountId, Event, Head, PARTITIONS, Partition, Position, Timestamp, TransactionId};

use tokio::task::AbortHandle;

use crate::{
    DamagedRow, StoreError,
    append::{Append, Appended},
    index::{IndexEntries, IndexedAccount, KeyHash, stored_hash},
    postgres::{self, Postgres},
    sqlite::{self, Sqlite},
};

/// A database that holds a ledger. Cloning is cheap.
#[derive(Debug, Clone)]
pub enum Database {
    Postgres(Postgres),
    Sqlite(Sqlite),
}

/// How far back a walk along an account's history goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    /// To the newest event at or before this position.
    Position(Position),
    /// To the newest event of at most this version.
    Version(u64),
}

impl Bound {
    pub(crate) const fn value(self) -> u64 {
        match self {
            Self::Position(position) => position.0,
            Self::Version(version) => version,
        }
    }
}

/// A transaction that holds the heads' locks.
#[derive(Debug)]
pub(crate) enum LockedHeads {
    Postgres(postgres::LockedHeads),
    Sqlite(sqlite::LockedHeads),
}

/// Runs the same call on whichever database it is.
macro_rules! on_either {
    ($self:expr, $database:ident => $call:expr) => {
        match $self {
            Self::Postgres($database) => $call,
            Self::Sqlite($database) => $call,
        }
    };
}

impl Database {
    /// Opens the database at `url` (`sqlite://FILE` or `postgres://…`), creates what is missing of the schema, and
    /// refuses one that would lose acknowledged commands.
    ///
    /// # Errors
    ///
    /// [`StoreError::Address`], [`StoreError::NotDurable`], [`StoreError::Schema`] say what to do; the others come from
    /// the database.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Self::connect(url, true).await
    }

    /// Opens a database that already holds a ledger, and changes nothing about it.
    ///
    /// # Errors
    ///
    /// As [`Database::open`]; [`StoreError::Schema`] when there is no ledger.
    pub async fn open_existing(url: &str) -> Result<Self, StoreError> {
        Self::connect(url, false).await
    }

    async fn connect(url: &str, create: bool) -> Result<Self, StoreError> {
        match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") => Ok(Self::Sqlite(Sqlite::open(url, create).await?)),
            Some("postgres" | "postgresql") => Ok(Self::Postgres(Postgres::open(url, create).await?)),
            // The address may hold a password: it is not repeated.
            _ => Err(StoreError::Address(
                "the database's address must begin with sqlite:// or postgres://, such as sqlite://ledger.db"
                    .to_owned(),
            )),
        }
    }

    /// Which database, and where, without secrets: for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Postgres(postgres) => postgres.place(),
            Self::Sqlite(sqlite) => format!("sqlite://{}", sqlite.file()),
        }
    }

    /// The same database for a writer: see [`Postgres::for_the_writer`]. A file has one writer in any case.
    pub(crate) async fn for_the_writer(&self) -> Self {
        match self {
            Self::Postgres(postgres) => Self::Postgres(postgres.for_the_writer().await),
            Self::Sqlite(sqlite) => Self::Sqlite(sqlite.clone()),
        }
    }

    /// Starts what the database needs done beside the commits, until the handle aborts it. A server does it by itself.
    pub(crate) fn start_upkeep(&self) -> Option<AbortHandle> {
        match self {
            Self::Postgres(_) => None,
            Self::Sqlite(sqlite) => Some(sqlite.start_checkpoints()),
        }
    }

    /// Whether there was no ledger at the address before it was opened.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        match self {
            Self::Postgres(postgres) => postgres.is_new(),
            Self::Sqlite(sqlite) => sqlite.is_new(),
        }
    }

    /// Closes the connections, those of clones as well. On SQLite the file alone is the ledger then, if nobody else uses it.
    pub async fn close(&self) {
        on_either!(self, database => database.close().await);
    }

    /// The newest place of every partition, by partition number.
    pub async fn heads(&self) -> Result<[Head; PARTITIONS], StoreError> {
        on_either!(self, database => database.heads().await)
    }

    /// At most `limit` events of a partition after a position, in order. Fails on the first row that is no event.
    pub async fn events_after(
        &self,
        partition: Partition,
        after: Position,
        limit: usize,
    ) -> Result<Vec<Event>, StoreError> {
        self.rows_after(partition, after, limit).await?.into_iter().map(|row| row.map_err(StoreError::from)).collect()
    }

    /// Like [`Database::events_after`], but gives a damaged row its place instead of failing: for verification.
    pub async fn rows_after(
        &self,
        partition: Partition,
        after: Position,
        limit: usize,
    ) -> Result<Vec<Result<Event, DamagedRow>>, StoreError> {
        on_either!(self, database => database.rows_after(partition, after, limit).await)
    }

    /// The positions of a partition's rows that stand before the first place, at most 1,000: the ledger writes none there.
    pub async fn positions_before_first(&self, partition: Partition) -> Result<Vec<i64>, StoreError> {
        on_either!(self, database => database.positions_before_first(partition).await)
    }

    /// The event at a place, if there is one.
    pub async fn event_at(&self, partition: Partition, position: Position) -> Result<Option<Event>, StoreError> {
        Ok(self.events_at(&[(partition, position)]).await?.pop())
    }

    /// The events at some places, in any order; places without an event are left out.
    pub async fn events_at(&self, places: &[(Partition, Position)]) -> Result<Vec<Event>, StoreError> {
        self.rows_at(places).await?.into_iter().map(|row| row.map_err(StoreError::from)).collect()
    }

    /// Like [`Database::events_at`], but a damaged row does not fail the others.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub async fn rows_at(
        &self,
        places: &[(Partition, Position)],
    ) -> Result<Vec<Result<Event, DamagedRow>>, StoreError> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        on_either!(self, database => database.rows_at(places).await)
    }

    /// The event of that id, if there is one: its id says where it is, and all of the id must agree.
    pub async fn transaction(&self, id: TransactionId) -> Result<Option<Event>, StoreError> {
        let (partition, _, position) = id.locate();
        Ok(self.event_at(partition, position).await?.filter(|event| event.transaction_id == id))
    }

    /// At most `limit` keys of a run of a partition's key index, after the one that is given, in the index's order: the hashes of the
    /// business key and of the account.
    pub(crate) async fn keys_after(
        &self,
        partition: Partition,
        run: u32,
        after: Option<(u64, u64)>,
        limit: usize,
    ) -> Result<Vec<(u64, u64)>, StoreError> {
        // The smallest that is stored cannot be a key's: both halves would have to be the same one number of 2^64.
        let (business, account) = after.map_or((i64::MIN, i64::MIN), |(a, b)| (stored_hash(a), stored_hash(b)));
        on_either!(self, database => database.keys_after(partition, run, (business, account), limit).await)
    }

    pub(crate) async fn append(&self, append: &Append) -> Result<Appended, StoreError> {
        on_either!(self, database => database.append(append).await)
    }

    pub(crate) async fn lock_heads(&self) -> Result<(LockedHeads, [Head; PARTITIONS]), StoreError> {
        Ok(match self {
            Self::Postgres(postgres) => {
                let (locked, heads) = postgres.lock_heads().await?;
                (LockedHeads::Postgres(locked), heads)
            }
            Self::Sqlite(sqlite) => {
                let (locked, heads) = sqlite.lock_heads().await?;
                (LockedHeads::Sqlite(locked), heads)
            }
        })
    }

    pub(crate) async fn walk_back(
        &self,
        partition: Partition,
        from: Position,
        bound: Bound,
        limit: usize,
    ) -> Result<Vec<Event>, StoreError> {
        on_either!(self, database => database.walk_back(partition, from, bound, limit).await)
    }

    /// The newest position of a partition, up to `head`, that was recorded at or before an instant. Times never run
    /// backwards in a partition, so it is found by bisection over the primary key. A place without an event counts as
    /// later: where the one after the answer is such a place, the answer may be too old.
    ///
    /// # Errors
    ///
    /// When the database cannot be read, or a row is damaged.
    pub async fn newest_at_or_before(
        &self,
        partition: Partition,
        at: Timestamp,
        head: Position,
    ) -> Result<Position, StoreError> {
        let (mut low, mut high) = (0, head.0);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            let event = self.event_at(partition, Position(middle)).await?;
            if event.is_some_and(|event| event.recorded_at <= at) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        Ok(Position(low))
    }

    pub(crate) async fn index_checkpoints(&self) -> Result<[Head; PARTITIONS], StoreError> {
        on_either!(self, database => database.index_checkpoints().await)
    }

    /// Some accounts as the index knows them; those that it does not hold are left out.
    pub(crate) async fn indexed_accounts(&self, accounts: &[AccountId]) -> Result<Vec<IndexedAccount>, StoreError> {
        on_either!(self, database => database.indexed_accounts(accounts).await)
    }

    pub(crate) async fn key_positions(&self, keys: &[KeyHash]) -> Result<Vec<(Partition, Position)>, StoreError> {
        on_either!(self, database => database.key_positions(keys).await)
    }

    pub(crate) async fn business_positions(&self, business: u64) -> Result<Vec<(Partition, Position)>, StoreError> {
        self.some_business_positions(business, usize::MAX).await
    }

    /// At most `limit` of them, whichever are found first.
    pub(crate) async fn some_business_positions(
        &self,
        business: u64,
        limit: usize,
    ) -> Result<Vec<(Partition, Position)>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        on_either!(self, database => database.business_positions(business, limit).await)
    }

    pub(crate) async fn related_positions(
        &self,
        originals: &[(Partition, Position)],
    ) -> Result<Vec<(Partition, Position)>, StoreError> {
        on_either!(self, database => database.related_positions(originals).await)
    }

    pub(crate) async fn history_anchor(
        &self,
        account: AccountId,
        bound: Bound,
    ) -> Result<Option<Position>, StoreError> {
        on_either!(self, database => database.history_anchor(account, bound).await)
    }

    pub(crate) async fn flush_indexes(
        &self,
        entries: &IndexEntries,
        from: &[Head; PARTITIONS],
        to: &[Head; PARTITIONS],
    ) -> Result<(), StoreError> {
        match self {
            Self::Postgres(postgres) => postgres.flush_indexes(entries, from, to).await,
            // Rows are written in many small transactions, each of which may be done again.
            Self::Sqlite(sqlite) => sqlite.flush_indexes(entries, to).await,
        }
    }
}

impl LockedHeads {
    /// Whether the session that holds the locks began with them. Then it may be one of a server that has taken over.
    pub(crate) const fn is_of_new_session(&self) -> bool {
        match self {
            Self::Postgres(locked) => locked.is_of_new_session(),
            Self::Sqlite(_) => false,
        }
    }

    pub(crate) async fn append(self, append: &Append) -> Result<Appended, StoreError> {
        on_either!(self, locked => locked.append(append).await)
    }

    /// Commits something that changes nothing: that heads can be locked says nothing about whether anything can be written.
    pub(crate) async fn touch(self) -> Result<(), StoreError> {
        on_either!(self, locked => locked.touch().await)
    }

    pub(crate) async fn release(self) {
        on_either!(self, locked => locked.release().await);
    }
}
