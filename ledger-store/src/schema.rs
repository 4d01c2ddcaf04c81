//! The schema's versions.

use sqlx::{
    SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
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

/// Whether there is something to migrate. A newer schema than this program's is none of its business.
pub(crate) fn is_behind(
    version: &Result<Option<i64>, sqlx::Error>,
    migrations: &[(i64, &'static str, &'static str)],
) -> bool {
    match version {
        Ok(Some(version)) => *version < newest(migrations),
        _ => is_new(version),
    }
}

fn newest(migrations: &[(i64, &'static str, &'static str)]) -> i64 {
    migrations.last().map_or(0, |(version, ..)| *version)
}

/// Whether no migration was ever run: there is no ledger yet.
pub(crate) fn is_new(version: &Result<Option<i64>, sqlx::Error>) -> bool {
    match version {
        Ok(version) => version.is_none(),
        Err(error) => is_missing(error),
    }
}

/// Why the migrations could not be run.
pub(crate) fn failed(error: MigrateError, place: &str) -> StoreError {
    match error {
        MigrateError::VersionMismatch(_) | MigrateError::VersionMissing(_) => StoreError::Version(format!(
            "{place} was made by another version whose schema cannot be taken over: export it with that version's \
             replay-tool, and import the archive into a new database"
        )),
        error => StoreError::Migrate(error),
    }
}

/// How many tables of another program are named.
const NAMED_MAX: usize = 3;

/// Refuses a database in which another program keeps its tables: an address is easily taken from that program's settings.
pub(crate) fn refuse_tables(tables: &[impl AsRef<str>], place: &str, remedy: &str) -> Result<(), StoreError> {
    if tables.is_empty() {
        return Ok(());
    }
    let mut named: Vec<_> = tables.iter().take(NAMED_MAX).map(AsRef::as_ref).collect();
    if tables.len() > NAMED_MAX {
        named.push("…");
    }
    let named = named.join(", ");
    Err(StoreError::Schema(format!("{place} holds tables of another program ({named}): {remedy}")))
}

/// What to do where a ledger would be made, and where one would be restored.
pub(crate) const OWN_DATABASE: &str = "give the ledger a database of its own with --database-url";
pub(crate) const OTHER_DATABASE: &str = "name another database";

/// What a rebuild that was killed leaves beside a table.
const REBUILT: [&str; 2] = ["_next", "_old"];

/// Whether the table is one of the ledger's.
pub(crate) fn is_made(migrations: &[(i64, &'static str, &'static str)], table: &str) -> bool {
    let name = REBUILT.iter().find_map(|suffix| table.strip_suffix(suffix)).unwrap_or(table);
    let mut lines = migrations.iter().flat_map(|(.., sql)| sql.lines());
    lines.any(|line| line.strip_prefix("create table ").and_then(|rest| rest.strip_suffix(" (")) == Some(name))
}

/// Refuses a database without a ledger, or with one that another version of this program made.
pub(crate) fn check(
    version: Result<Option<i64>, sqlx::Error>,
    migrations: &[(i64, &'static str, &'static str)],
    place: &str,
) -> Result<(), StoreError> {
    let known = newest(migrations);
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIGRATIONS: [(i64, &str, &str); 2] = [
        (1, "one", "-- Two tables.\ncreate table events (\n    position integer\n);\ncreate table freezes (\n);"),
        (2, "two", "create index some on events (position);"),
    ];

    #[test]
    fn the_tables_of_the_ledger_are_told_from_all_others() {
        for table in ["events", "freezes", "freezes_next", "freezes_old"] {
            assert!(is_made(&MIGRATIONS, table), "{table}");
        }
        for table in ["users", "event", "some", "_next", "", "events (", "freezes_next_next"] {
            assert!(!is_made(&MIGRATIONS, table), "{table}");
        }
    }

    #[test]
    fn some_of_the_tables_of_another_program_are_named() {
        let none: [&str; 0] = [];
        refuse_tables(&none, "a.db", OWN_DATABASE).expect("nothing is there");
        let refused = |tables: &[&str]| refuse_tables(tables, "a.db", "go").expect_err("somebody's").to_string();
        assert_eq!(refused(&["users"]), "a.db holds tables of another program (users): go");
        assert_eq!(refused(&["a", "b", "c", "d"]), "a.db holds tables of another program (a, b, c, …): go");
    }

    #[test]
    fn what_is_older_is_brought_up_to_date_and_what_is_newer_is_left_alone() {
        for (version, behind, new) in
            [(None, true, true), (Some(1), true, false), (Some(2), false, false), (Some(3), false, false)]
        {
            assert_eq!((is_behind(&Ok(version), &MIGRATIONS), is_new(&Ok(version))), (behind, new), "{version:?}");
        }
        let newer = check(Ok(Some(3)), &MIGRATIONS, "a.db").expect_err("refused");
        assert_eq!(newer.to_string(), "a.db has schema version 3, this program knows 2: run a newer program");
        for error in [MigrateError::VersionMismatch(1), MigrateError::VersionMissing(1)] {
            let refused = failed(error, "a.db").to_string();
            assert!(refused.starts_with("a.db was made by another version") && refused.contains("export"), "{refused}");
        }
    }
}
