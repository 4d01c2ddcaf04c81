//! The ledger on PostgreSQL.

use sqlx::PgPool;

/// A PostgreSQL database that holds a ledger.
#[derive(Debug, Clone)]
pub struct Postgres {
    pool: PgPool,
}

impl Postgres {
    /// Connections for reading and for projectors' transactions; the writer has its own.
    #[must_use]
    pub const fn pool(&self) -> &PgPool {
        &self.pool
    }
}
