//! From where the stream has to be read to know what it holds.

use ledger_core::{Head, PARTITIONS, Partition};
use ledger_store::{Database, StoreError};
use serde_json::json;

use super::STREAM;
use crate::row::{self, stored};

/// What the stream held at one of its sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) sequence: u64,
    pub(super) published: [Head; PARTITIONS],
}

type Row = (i64, i64, i64, Vec<u8>, i64);

/// The newest checkpoint; at the beginning nothing is published.
pub(super) async fn read(database: &Database) -> Result<Checkpoint, StoreError> {
    let rows: Vec<Row> = match database {
        Database::Postgres(database) => {
            sqlx::query_as(
                "select partition::bigint, epoch, position, hash, stream_sequence from publisher_checkpoints \
                 where stream = $1 order by partition",
            )
            .bind(STREAM)
            .fetch_all(database.pool())
            .await?
        }
        Database::Sqlite(database) => {
            sqlx::query_as(
                "select partition, epoch, position, hash, stream_sequence from publisher_checkpoints \
                 where stream = ? order by partition",
            )
            .bind(STREAM)
            .fetch_all(database.readers())
            .await?
        }
    };
    let Some(sequence) = rows.first().map(|row| row.4) else {
        return Ok(Checkpoint { sequence: 0, published: [Head::EMPTY; PARTITIONS] });
    };
    let sequence = u64::try_from(sequence).unwrap_or(0);
    let heads = rows.into_iter().map(|(partition, epoch, position, hash, _)| (partition, epoch, position, hash));
    Ok(Checkpoint { sequence, published: row::heads("the publisher", heads.collect())? })
}

/// Keeps a checkpoint. One that is older than the one that is there, another publisher's, is passed over.
pub(super) async fn write(database: &Database, checkpoint: &Checkpoint) -> Result<(), StoreError> {
    let heads = || Partition::all().zip(&checkpoint.published);
    match database {
        Database::Postgres(database) => {
            sqlx::query(
                "insert into publisher_checkpoints as c (stream, partition, epoch, position, hash, stream_sequence) \
                 select $1, n.*, $6 from unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::bytea[]) as n \
                 on conflict (partition, stream) do update set epoch = excluded.epoch, position = excluded.position, \
                 hash = excluded.hash, stream_sequence = excluded.stream_sequence \
                 where c.stream_sequence <= excluded.stream_sequence",
            )
            .bind(STREAM)
            .bind(heads().map(|(partition, _)| i16::from(partition.number())).collect::<Vec<_>>())
            .bind(heads().map(|(_, head)| i64::from(head.epoch.0)).collect::<Vec<_>>())
            .bind(heads().map(|(_, head)| stored(head.position.0)).collect::<Vec<_>>())
            .bind(heads().map(|(_, head)| head.hash.0.to_vec()).collect::<Vec<_>>())
            .bind(stored(checkpoint.sequence))
            .execute(database.pool())
            .await?;
        }
        Database::Sqlite(database) => {
            let rows: Vec<_> = heads()
                .map(|(partition, head)| json!([partition.number(), head.epoch, head.position, head.hash]))
                .collect();
            let mut turn = database.relaxed_turn().await?;
            sqlx::query(
                "insert into publisher_checkpoints (stream, partition, epoch, position, hash, stream_sequence) \
                 select ?1, value ->> 0, value ->> 1, value ->> 2, unhex(value ->> 3), ?2 from json_each(?3) where true \
                 on conflict (partition, stream) do update set epoch = excluded.epoch, position = excluded.position, \
                 hash = excluded.hash, stream_sequence = excluded.stream_sequence \
                 where stream_sequence <= excluded.stream_sequence",
            )
            .bind(STREAM)
            .bind(stored(checkpoint.sequence))
            .bind(json!(rows).to_string())
            .execute(turn.connection())
            .await?;
        }
    }
    Ok(())
}
