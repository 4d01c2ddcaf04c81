//! Does to a database what nobody may, and undoes it.

use ledger_core::{Event, Hash, Partition, Position, chain};
use ledger_store::Database;
use sqlx::{AssertSqlSafe, Connection, Row};

/// Everything that verification looks at.
pub const TABLES: [&str; 13] = [
    "events",
    "compensations",
    "partition_heads",
    "account_positions",
    "key_positions",
    "related_positions",
    "history_positions",
    "index_checkpoints",
    "balances",
    "freezes",
    "projection_checkpoints",
    "publisher_checkpoints",
    "restores",
];

/// A vandal in a database that no service has open.
#[derive(Debug)]
pub struct Vandal {
    url: String,
}

impl Vandal {
    /// Remembers every row as it is.
    pub async fn arrive(url: &str) -> Self {
        let vandal = Self { url: url.to_owned() };
        vandal.run(&TABLES.map(|table| format!("create table kept_{table} as select * from {table}"))).await;
        vandal
    }

    /// One who puts nothing back.
    #[must_use]
    pub fn in_place(url: &str) -> Self {
        Self { url: url.to_owned() }
    }

    /// Runs SQL on the table of events alone, which it calls `EVENTS`: the index of the primary key stays as it is.
    pub async fn behind_the_key(&self, statements: &[String]) {
        if self.is_sqlite() {
            let table = "(select replace(replace(sql, 'TABLE events', 'TABLE imposter'), \
                         'primary key (partition, position)', 'check (true)') from sqlite_master where name = 'events')";
            let statements = statements.iter().map(|sql| sql.replace("EVENTS", "imposter"));
            self.as_imposter("events", table, statements.collect()).await;
            return;
        }
        // Each in a session of its own, which knows the index as it is by then. Rows have room beside them, so that one that is
        // edited stays where the index points to.
        let live = |is_live: bool| {
            format!("update pg_index set indislive = {is_live} where indexrelid = 'events_pkey'::regclass")
        };
        let room = [
            "alter table events drop constraint events_partition_check",
            "alter table events set (fillfactor = 10)",
            "create table moved as select * from events",
            "delete from events",
            "vacuum events",
            "insert into events select * from moved",
            "drop table moved",
        ];
        self.run(&room).await;
        self.run(&[live(false)]).await;
        self.run(&statements.iter().map(|sql| sql.replace("EVENTS", "events")).collect::<Vec<_>>()).await;
        self.run(&[live(true)]).await;
        let check = "alter table events add constraint events_partition_check \
                     check (partition between 0 and 63) not valid";
        self.run(&[check]).await;
    }

    /// Lets the primary key's index point to other rows, and leaves the table as it is. False where that cannot be done.
    pub async fn flip_key_cells(&self, which: &str) -> bool {
        if !self.is_sqlite() {
            return false;
        }
        let index = "'create table imposter (partition, position, place, primary key (partition, position, place)) \
                     without rowid'";
        let flip = format!("update imposter set place = place + 1 where {which}");
        self.as_imposter("sqlite_autoindex_events_1", index, vec![flip]).await;
        true
    }

    /// Runs statements on a second table with the pages of something else.
    async fn as_imposter(&self, of: &str, table: &str, statements: Vec<String>) {
        let insert = format!(
            "insert into sqlite_master (type, name, tbl_name, rootpage, sql) select 'table', 'imposter', 'imposter', \
             rootpage, {table} from sqlite_master where name = '{of}'"
        );
        let before = ["pragma ignore_check_constraints = on", "pragma writable_schema = on", &insert];
        let before = before.into_iter().chain(["pragma writable_schema = reset"]).map(str::to_owned);
        let after = [
            "pragma writable_schema = on",
            "delete from sqlite_master where name = 'imposter'",
            "pragma writable_schema = reset",
        ];
        self.run(&before.chain(statements).chain(after.map(str::to_owned)).collect::<Vec<_>>()).await;
    }

    /// Puts every row back.
    pub async fn undo(&self) {
        let statements = TABLES.iter().flat_map(|table| {
            [format!("delete from {table}"), format!("insert into {table} select * from kept_{table}")]
        });
        self.run(&statements.collect::<Vec<_>>()).await;
    }

    /// Runs SQL with the triggers switched off, and on again.
    ///
    /// # Panics
    ///
    /// When the SQL fails.
    pub async fn run(&self, statements: &[impl AsRef<str>]) {
        if self.is_sqlite() {
            let mut connection = sqlx::SqliteConnection::connect(&self.url).await.expect("the file opens");
            let triggers = sqlx::query("select name, sql from sqlite_master where type = 'trigger'")
                .fetch_all(&mut connection)
                .await
                .expect("triggers are listed");
            let dropped = triggers.iter().map(|trigger| format!("drop trigger {}", trigger.get::<String, _>(0)));
            let made = triggers.iter().map(|trigger| trigger.get::<String, _>(1));
            let statements = statements.iter().map(|statement| statement.as_ref().to_owned());
            for statement in dropped.chain(statements).chain(made) {
                let done = sqlx::query(AssertSqlSafe(statement.clone())).execute(&mut connection).await;
                done.unwrap_or_else(|error| panic!("{statement}: {error}"));
            }
            connection.close().await.expect("closed");
        } else {
            let mut connection = sqlx::PgConnection::connect(&self.url).await.expect("the database opens");
            let off = "alter table events disable trigger all".to_owned();
            let on = "alter table events enable always trigger all".to_owned();
            let statements = statements.iter().map(|statement| statement.as_ref().to_owned());
            for statement in std::iter::once(off).chain(statements) {
                let done = sqlx::query(AssertSqlSafe(statement.clone())).execute(&mut connection).await;
                done.unwrap_or_else(|error| panic!("{statement}: {error}"));
            }
            sqlx::query(AssertSqlSafe(on)).execute(&mut connection).await.ok();
        }
    }

    /// Edits the events of a partition from `from` on, and makes all hashes follow: those of the events, of the head and of
    /// the checkpoints. Only an anchor, or what the amounts come to, can tell.
    ///
    /// # Panics
    ///
    /// When the database cannot be read.
    pub async fn lie(&self, partition: Partition, from: u64, edit: &(dyn Fn(&mut Event, &[Event]) + Sync)) {
        let database = Database::open_existing(&self.url).await.expect("a ledger");
        let events = database.events_after(partition, Position::ZERO, 10_000).await.expect("sound events");
        database.close().await;
        let mut statements = Vec::new();
        let mut before = Hash::ZERO;
        for event in &events {
            let mut event = event.clone();
            if event.position.0 >= from {
                edit(&mut event, &events);
                event.hash = chain::link(&before, &event);
                statements.push(self.update(&event));
            }
            before = event.hash;
        }
        for table in ["partition_heads", "index_checkpoints", "projection_checkpoints"] {
            statements.push(format!(
                "update {table} set hash = (select e.hash from events e where e.partition = {table}.partition \
                 and e.position = {table}.position) where partition = {partition} and position > 0"
            ));
        }
        self.run(&statements).await;
    }

    /// The tables of the schema.
    ///
    /// # Panics
    ///
    /// When the database cannot be read.
    pub async fn tables(&self) -> Vec<String> {
        let sql = if self.is_sqlite() {
            "select name, '' from sqlite_master where type = 'table'"
        } else {
            "select table_name::text, '' from information_schema.tables where table_schema = current_schema()"
        };
        let tables = self.pairs(sql.to_owned()).await.into_iter().map(|(name, _)| name);
        tables.filter(|name| !["kept_", "_sqlx_", "sqlite_"].iter().any(|prefix| name.starts_with(prefix))).collect()
    }

    /// A table's columns and their types, in small letters.
    ///
    /// # Panics
    ///
    /// When the database cannot be read.
    pub async fn columns(&self, table: &str) -> Vec<(String, String)> {
        self.pairs(if self.is_sqlite() {
            format!("select name, lower(type) from pragma_table_info('{table}')")
        } else {
            format!(
                "select column_name::text, data_type::text from information_schema.columns \
                 where table_schema = current_schema() and table_name = '{table}' order by ordinal_position"
            )
        })
        .await
    }

    /// How many rows of a table are not as they were.
    ///
    /// # Panics
    ///
    /// When the database cannot be read.
    pub async fn changed_rows(&self, table: &str) -> usize {
        let sql = format!("select 'row', '' from (select * from {table} except select * from kept_{table}) as changed");
        self.pairs(sql).await.len()
    }

    async fn pairs(&self, sql: String) -> Vec<(String, String)> {
        let read = if self.is_sqlite() {
            let mut connection = sqlx::SqliteConnection::connect(&self.url).await.expect("the file opens");
            let read = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut connection).await;
            connection.close().await.expect("closed");
            read
        } else {
            let mut connection = sqlx::PgConnection::connect(&self.url).await.expect("the database opens");
            sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut connection).await
        };
        read.expect("it is read")
    }

    /// Bytes as the database writes them.
    #[must_use]
    pub fn blob(&self, bytes: &[u8]) -> String {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if self.is_sqlite() { format!("x'{digits}'") } else { format!("decode('{digits}', 'hex')") }
    }

    fn is_sqlite(&self) -> bool {
        self.url.starts_with("sqlite")
    }

    fn update(&self, event: &Event) -> String {
        let number = |number: Option<u64>| number.map_or("null".to_owned(), |number| number.to_string());
        let text = |text: Option<String>| text.map_or("null".to_owned(), |text| format!("'{text}'"));
        let mark = event.batch;
        let columns = [
            ("previous_position", event.previous_position.to_string()),
            ("epoch", event.epoch.0.to_string()),
            ("version", event.after.version.to_string()),
            ("amount", number(event.amount.map(ledger_core::Amount::units))),
            ("released", event.released.to_string()),
            ("remaining", number(event.remaining)),
            ("balance", event.after.balance.to_string()),
            ("frozen", event.after.frozen.to_string()),
            ("available", event.after.available().to_string()),
            ("recorded_at", text(Some(event.recorded_at.to_string()))),
            ("transaction_id", text(Some(event.transaction_id.to_string()))),
            ("operation_id", text(Some(event.operation_id.to_string()))),
            ("related_id", text(event.related_id.map(|id| id.to_string()))),
            ("batch_id", text(mark.map(|mark| mark.id.to_string()))),
            ("batch_size", number(mark.map(|mark| mark.size.into()))),
            ("batch_index", number(mark.map(|mark| mark.index.into()))),
            ("business_code", text(Some(event.key.code().to_string()))),
            ("business_id", text(Some(event.key.id().to_string()))),
            ("metadata", text(event.metadata.as_ref().map(ToString::to_string))),
            ("hash", self.blob(&event.hash.0)),
        ];
        let set: Vec<_> = columns.iter().map(|(column, value)| format!("{column} = {value}")).collect();
        let (set, partition, position) = (set.join(", "), event.partition, event.position);
        format!("update events set {set} where partition = {partition} and position = {position}")
    }
}
