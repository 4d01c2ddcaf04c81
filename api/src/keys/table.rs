//! The keys in the database.

use chrono::{DateTime, Utc};
use ledger_store::{
    Database, StoreError,
    error::end_on_lost_sync,
    sqlite::{RelaxedTurn, Sqlite},
};

use super::StoredKey;

type Row =
    (String, Vec<u8>, String, String, Option<String>, DateTime<Utc>, Option<DateTime<Utc>>, Option<DateTime<Utc>>);

const ALL: &str = "select prefix, hash, label, scopes, rate_limit, created_at, expires_at, revoked_at from api_keys \
                   order by created_at, prefix";

/// Every key, oldest first. A row that no key can be opens nothing; `Err` is which one it is and why.
pub(crate) async fn all(database: &Database) -> Result<Vec<Result<StoredKey, String>>, StoreError> {
    let rows: Vec<Row> = match database {
        Database::Postgres(database) => sqlx::query_as(ALL).fetch_all(database.pool()).await?,
        Database::Sqlite(database) => sqlx::query_as(ALL).fetch_all(database.readers()).await?,
    };
    Ok(rows.into_iter().map(read).collect())
}

fn read(row: Row) -> Result<StoredKey, String> {
    let (prefix, hash, label, scopes, rate_limit, created_at, expires_at, revoked_at) = row;
    let damaged = |what: &str| format!("{prefix}: {what} cannot be read");
    let hash = <[u8; 32]>::try_from(hash).map_err(|_| damaged("hash"))?;
    let scopes = scopes.parse().map_err(|_| damaged("scopes"))?;
    let rate_limit = rate_limit.map(|rate| rate.parse()).transpose().map_err(|_| damaged("rate_limit"))?;
    Ok(StoredKey {
        hash: blake3::Hash::from_bytes(hash),
        prefix,
        label,
        scopes,
        rate_limit,
        created_at,
        expires_at,
        revoked_at,
    })
}

/// Keeps a new key.
pub(super) async fn insert(database: &Database, key: &StoredKey) -> Result<(), StoreError> {
    const INSERT: &str = "insert into api_keys (prefix, hash, label, scopes, rate_limit, created_at, expires_at) \
                          values ($1, $2, $3, $4, $5, $6, $7)";
    macro_rules! insert {
        ($executor:expr) => {
            sqlx::query(INSERT)
                .bind(&key.prefix)
                .bind(&key.hash.as_bytes()[..])
                .bind(&key.label)
                .bind(key.scopes.to_string())
                .bind(key.rate_limit.map(|rate| rate.to_string()))
                .bind(key.created_at)
                .bind(key.expires_at)
                .execute($executor)
                .await
                .map_err(|error| end_on_lost_sync(error.into()))?
        };
    }
    match database {
        Database::Postgres(database) => {
            insert!(database.pool());
        }
        Database::Sqlite(database) => {
            let mut turn = durable(database).await?;
            insert!(turn.connection());
        }
    }
    Ok(())
}

/// Revokes a key that is not revoked yet; whether there was one.
pub(super) async fn revoke(database: &Database, prefix: &str, now: DateTime<Utc>) -> Result<bool, StoreError> {
    const REVOKE: &str = "update api_keys set revoked_at = $2 where prefix = $1 and revoked_at is null";
    let rows = match database {
        Database::Postgres(database) => {
            sqlx::query(REVOKE).bind(prefix).bind(now).execute(database.pool()).await?.rows_affected()
        }
        Database::Sqlite(database) => {
            let mut turn = durable(database).await?;
            let revoked = sqlx::query(REVOKE).bind(prefix).bind(now).execute(turn.connection()).await;
            revoked.map_err(|error| end_on_lost_sync(error.into()))?.rows_affected()
        }
    };
    Ok(rows > 0)
}

/// The turn to write, in a way that waits for the disk: a key that was revoked must stay so whatever happens. Each turn
/// says anew how it commits.
async fn durable(database: &Sqlite) -> Result<RelaxedTurn<'_>, StoreError> {
    let mut turn = database.relaxed_turn().await?;
    sqlx::query("pragma synchronous = full").execute(turn.connection()).await?;
    Ok(turn)
}
