//! When which partition was proved, kept in the database: a service that starts anew, or another one, goes on with the
//! round where it was.

use std::time::Duration;

use chrono::{DateTime, Utc};
use foldhash::HashMap;
use ledger_core::{PARTITIONS, Partition, Position, Timestamp};
use ledger_store::{Database, StoreError};
use serde_json::json;
use sqlx::Row;

/// What a proof of a partition came to, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Sound,
    /// Rows differ from what the log makes.
    Drift,
    /// The log or a checkpoint is damaged.
    Damaged,
    /// It could not be read.
    Failed,
}

impl Outcome {
    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Drift => "drift",
            Self::Damaged => "damaged",
            Self::Failed => "failed",
        }
    }
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    pub partition: Partition,
    /// How long that has time.
    pub wait: Duration,
    /// Its projector stopped: it does not wait for its turn.
    pub is_urgent: bool,
    /// How long ago the partition was proved that has waited longest; none while some were never proved.
    pub oldest: Option<Duration>,
}

/// Which partition is proved next: at once one whose projector stopped since it was proved, else the one that has waited
/// longest, one in each 64th of a round.
///
/// # Errors
///
/// When the database cannot be read.
pub async fn next_due(database: &Database, round: Duration, now: Timestamp) -> Result<Due, StoreError> {
    let (proved, stopped) = match database {
        Database::Postgres(database) => {
            let rows: Vec<(i16, DateTime<Utc>)> =
                sqlx::query_as("select partition, began_at from proofs").fetch_all(database.pool()).await?;
            let proved = rows.iter().map(|(partition, at)| (i64::from(*partition), at.timestamp_micros())).collect();
            let stopped = sqlx::query_scalar::<_, i16>(STOPPED).fetch_optional(database.pool()).await?;
            (proved, stopped.map(i64::from))
        }
        Database::Sqlite(database) => {
            let mut proved = HashMap::default();
            for row in sqlx::query("select partition, began_at from proofs").fetch_all(database.readers()).await? {
                // A time that cannot be read is as good as none.
                let micros = Timestamp::parse(row.try_get(1)?).map_or(0, Timestamp::micros);
                proved.insert(row.try_get(0)?, micros);
            }
            (proved, sqlx::query_scalar(STOPPED).fetch_optional(database.readers()).await?)
        }
    };
    Ok(decide(&proved, stopped, round, now))
}

/// A partition where something was found since it was proved.
const STOPPED: &str = "select i.partition from inconsistencies i left join proofs p on p.partition = i.partition \
     where i.resolved_at is null and i.user_id is null and i.projection <> 'events' \
     and (p.began_at is null or p.began_at < i.found_at) order by i.partition limit 1";

fn decide(proved: &HashMap<i64, i64>, stopped: Option<i64>, round: Duration, now: Timestamp) -> Due {
    let age = |micros: i64| Duration::from_micros(u64::try_from(now.micros() - micros).unwrap_or(0));
    let began = |partition: Partition| proved.get(&i64::from(partition.number())).copied();
    let oldest = Partition::all().min_by_key(|partition| began(*partition).unwrap_or(i64::MIN));
    let partition = oldest.expect("there are partitions");
    let oldest = (proved.len() >= PARTITIONS).then(|| began(partition).map(age)).flatten();
    if let Some(stopped) = stopped.and_then(|number| u8::try_from(number).ok()).and_then(Partition::new) {
        return Due { partition: stopped, wait: Duration::ZERO, is_urgent: true, oldest };
    }
    let wait = proved.values().max().map_or(Duration::ZERO, |newest| slot(round).saturating_sub(age(*newest)));
    Due { partition, wait, is_urgent: false, oldest }
}

/// The time that a partition has in a round. A twentieth of the round is left for what comes between.
#[must_use]
pub fn slot(round: Duration) -> Duration {
    (round - round / 20) / u32::try_from(PARTITIONS).expect("few")
}

/// Writes down that a partition was proved.
///
/// # Errors
///
/// When the database failed.
pub async fn write_down(
    database: &Database,
    partition: Partition,
    began: Timestamp,
    ended: Timestamp,
    position: Position,
    outcome: Outcome,
) -> Result<(), StoreError> {
    let position = crate::row::stored(position.0);
    match database {
        Database::Postgres(database) => {
            sqlx::query(
                "insert into proofs (partition, began_at, ended_at, position, outcome) values ($1, $2, $3, $4, $5) \
                 on conflict (partition) do update set began_at = excluded.began_at, ended_at = excluded.ended_at, \
                     position = excluded.position, outcome = excluded.outcome",
            )
            .bind(i16::from(partition.number()))
            .bind(DateTime::<Utc>::from(began))
            .bind(DateTime::<Utc>::from(ended))
            .bind(position)
            .bind(outcome.name())
            .execute(database.pool())
            .await?;
        }
        Database::Sqlite(database) => {
            let row = json!([partition.number(), began, ended, position, outcome.name()]);
            let mut turn = database.relaxed_turn().await?;
            sqlx::query(
                "insert or replace into proofs (partition, began_at, ended_at, position, outcome) \
                 select ?1 ->> 0, ?1 ->> 1, ?1 ->> 2, ?1 ->> 3, ?1 ->> 4",
            )
            .bind(row.to_string())
            .execute(turn.connection())
            .await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * SECOND).expect("in range")
    }

    #[test]
    fn every_partition_is_proved_once_in_a_round_whenever_it_is_asked() {
        let round = Duration::from_secs(6_400);
        let mut proved = HashMap::default();
        let mut now = 1_000_000;
        let begin = now;
        for number in 0..64 {
            let due = decide(&proved, None, round, at(now));
            assert_eq!((i64::from(due.partition.number()), due.oldest), (number, None));
            now += i64::try_from(due.wait.as_secs()).expect("small");
            proved.insert(number, now * SECOND);
        }
        assert!(now - begin <= 6_400, "{}", now - begin);
        let due = decide(&proved, None, round, at(now));
        assert_eq!(due.partition.number(), 0, "the one that waited longest");
        assert_eq!(due.wait, Duration::from_secs(95));
        // A service that was away goes on one by one, and a clock that was set back holds nobody up for more than a turn.
        assert_eq!(decide(&proved, None, round, at(now + 100_000)).wait, Duration::ZERO);
        assert_eq!(decide(&proved, None, round, at(begin)).wait, Duration::from_secs(95));
    }

    #[test]
    fn a_partition_that_stopped_is_proved_at_once() {
        let proved = HashMap::from_iter([(3, 5 * SECOND)]);
        let due = decide(&proved, Some(9), Duration::from_secs(86_400), at(5));
        assert_eq!((due.partition.number(), due.wait), (9, Duration::ZERO));
    }
}
