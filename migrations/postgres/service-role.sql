-- What the service's role needs, and no more: run this as the role that owns the schema, after the first start or after
-- `api` has migrated it once as the owner:
--
--     psql … -v service=ledger_service -f migrations/postgres/service-role.sql
--
-- Events can be inserted and read, never changed. Rebuilding read models and migrating stay with the owner.

grant usage on schema public to :service;
grant select on _sqlx_migrations, restores to :service;
grant select, insert on events, refusals, compensations, operation_records, audit to :service;
grant select on api_keys to :service;
grant select, update on partition_heads, index_checkpoints, projection_checkpoints to :service;
grant select, insert, update on
    account_positions, key_positions, related_positions, history_positions,
    balances, freezes, publisher_checkpoints, inconsistencies
    to :service;
