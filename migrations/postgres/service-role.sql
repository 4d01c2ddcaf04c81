-- What the service's role needs, and no more: run this as the role that owns the schema, after the first start or after
-- `api` has migrated it once as the owner:
--
--     psql … -v service=ledger_service -f migrations/postgres/service-role.sql
--
-- Events can be inserted and read, never changed. Rows of read models can be deleted, because the continuous proof mends
-- them. Rebuilding whole read models and migrating stay with the owner, and so does pruning the audit, unless you also
-- `grant delete on audit`.

grant usage on schema public to :service;
grant select on _sqlx_migrations, restores to :service;
grant select, insert on events, refusals, compensations, operation_records, audit to :service;
grant select on api_keys to :service;
grant select, update on partition_heads, index_checkpoints, projection_checkpoints to :service;
grant select, insert, update on
    account_positions, key_positions, related_positions, history_positions,
    balances, freezes, publisher_checkpoints, inconsistencies, proofs
    to :service;
grant delete on balances, freezes to :service;
