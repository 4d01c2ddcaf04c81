//! Limits for what waits for a database: a connection can die without a word, and TCP finds out after a quarter of an hour.

use std::{io, time::Duration};

use tokio::time::timeout;

use crate::{Database, StoreError};

/// Longer than any step takes whose database answers: locks are waited for 5 s, and a step is some thousand rows.
const STEP: Duration = Duration::from_secs(60);

/// Gives up after a while. Whether anything was done is not known then.
///
/// # Errors
///
/// What the work says, or that nothing came in time.
pub(crate) async fn within<T, E: From<StoreError>>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(StoreError::from(timed_out()).into()))
}

/// Nothing came in time.
pub(crate) fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(io::ErrorKind::TimedOut.into())
}

impl Database {
    /// One step of a task that works for ever, such as a round of the read models: given up after 60 seconds on PostgreSQL, so
    /// that a connection which died silently holds the task no longer. SQLite is in the process, where nothing gets lost.
    ///
    /// # Errors
    ///
    /// What the step says, or that nothing came in time; then it is not known whether it was done.
    pub async fn step<T, E: From<StoreError>>(&self, step: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        match self {
            Self::Postgres(_) => within(STEP, step).await,
            Self::Sqlite(_) => step.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_never_comes_is_given_up_and_may_be_tried_again() {
        let never = within(Duration::from_millis(1), std::future::pending::<Result<(), StoreError>>()).await;
        assert!(never.is_err_and(|error| error.is_passing()));
        assert_eq!(within(STEP, async { Ok::<_, StoreError>(5) }).await.ok(), Some(5));
    }
}
