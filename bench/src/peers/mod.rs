//! What a team would do otherwise: the peers that the ledger is compared with, in the same run on the same machine.
//!
//! Each peer is given what makes it fast where that costs it nothing it promises, and none is asked for less than the
//! scenario beside which it stands:
//!
//! - [`pgbench`]: balances in a table that each command updates, the way most services do it today. The row is locked,
//!   the balance read and written and an entry inserted, on as many connections as there are clients: once with one
//!   statement a round trip, once with all of it in one function. A unique business key makes the commands idempotent,
//!   and every commit is durable, as the ledger's is. The driver is PostgreSQL's own, in C, with prepared statements,
//!   on the ledger's cluster. A durable insert of a single row is the third form: what one commit costs here when
//!   nothing is decided.
//! - [`copy`]: the ledger's rows loaded into the same table with the unique indexes that a table of events has for
//!   want of an index behind the log, by the fastest way PostgreSQL has: binary `COPY`, encoded before the clock
//!   starts, one transaction for a chunk about as large as the ledger's largest batch. Nothing is decided or hashed.
//! - [`sqlite`]: the same on SQLite, with multi-row inserts whose values are ready before the clock starts.
//! - [`echo`]: an axum server with the settings it comes with, which reads a command as JSON and answers it again: what
//!   HTTP and JSON cost when there is no ledger behind them.

pub(crate) mod copy;
pub(crate) mod echo;
pub(crate) mod pgbench;
pub(crate) mod sqlite;
