//! The schema's versions.

use sqlx::{
    SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};

use crate::{StoreError, error::is_missing};

/// The migrations, embedded in the program: version, name, statements.
pub(crate) fn migrator(migrations: &[(i64, &'static str, &'static str)]) -> Migrator {
    Migrator::with_migrations(
        migrations
            .iter()
            .map(|&(version, name, sql)| {
                Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
            })
            .collect(),
    )
}

/// Whether there is nothing to migrate.
pub(crate) fn is_current(
    version: Result<Option<i64>, sqlx::Error>,
    migrations: &[(i64, &'static str, &'static str)],
) -> bool {
    version.is_ok_and(|version| version == migrations.last().map(|(version, ..)| *version))
}

/// Refuses a database without a ledger, or with one that another version of this program made.
pub(crate) fn check(
    version: Result<Option<i64>, sqlx::Error>,
    migrations: &[(i64, &'static str, &'static str)],
    place: &str,
) -> Result<(), StoreError> {
    let known = migrations.last().map_or(0, |(version, _, _)| *version);
    match version {
        Ok(Some(version)) if version == known => Ok(()),
        Ok(Some(version)) if version > known => Err(StoreError::Version(format!(
            "{place} has schema version {version}, this program knows {known}: run a newer program"
        ))),
        Ok(Some(version)) => Err(StoreError::Version(format!(
            "{place} has schema version {version}, this program needs {known}: start `api` once to bring it up to date"
        ))),
        Err(error) if !is_missing(&error) => Err(error.into()),
        Ok(None) | Err(_) => Err(StoreError::Schema(format!("{place} holds no ledger"))),
    }
}
