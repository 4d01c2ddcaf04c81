-- The event table, its heads, the indexes that are written behind it, the read models and their checkpoints.
-- Every key is led by `partition`, so that the whole schema can be distributed by it.

create table events (
    position          bigint      not null,
    previous_position bigint      not null,
    epoch             bigint      not null,
    version           bigint      not null,
    amount            bigint      check (amount > 0),
    released          bigint      not null check (released >= 0),
    remaining         bigint      check (remaining >= 0),
    balance           bigint      not null check (balance >= 0),
    frozen            bigint      not null check (frozen >= 0),
    available         bigint      not null,
    expires_at        timestamptz,
    recorded_at       timestamptz not null,
    transaction_id    uuid        not null,
    account_id        uuid        not null,
    related_id        uuid,
    operation_id      uuid        not null,
    batch_id          uuid,
    batch_size        integer,
    batch_index       integer,
    partition         smallint    not null check (partition between 0 and 63),
    schema_version    smallint    not null,
    locked            boolean     not null,
    type              text        not null,
    user_id           text        not null,
    credit_type       text        not null,
    business_code     text        not null,
    business_id       text        not null,
    request_id        text        not null,
    actor             text        not null,
    description       text,
    metadata          text,
    hash              bytea       not null,
    primary key (partition, position)
);

-- The newest event of each partition: an append advances it by predicate, which is the fence against a second writer.
create table partition_heads (
    partition smallint primary key check (partition between 0 and 63),
    epoch     bigint   not null,
    position  bigint   not null,
    hash      bytea    not null
) with (fillfactor = 10);

insert into partition_heads (partition, epoch, position, hash)
select n, 1, 0, decode(repeat('00', 32), 'hex') from generate_series(0, 63) as n;

-- Operations that were reversed as a whole. An append asks this table, under its lock, whether the operation of one of its
-- events is in it: once it is, nothing more is recorded under that operation. `partition` is the operation's, not an
-- account's.
create table compensations (
    partition      smallint    not null check (partition between 0 and 63),
    operation_id   uuid        not null,
    compensated_at timestamptz not null,
    request_id     text        not null,
    actor          text        not null,
    reason         text        not null,
    reversals      integer     not null check (reversals >= 0),
    primary key (partition, operation_id)
);

-- Advances heads by predicate: $1-$6 are partition, epoch, position and hash of the heads to advance, and their next
-- position and hash; $7-$10 the heads that were only judged by; $11-$12 the operations of the events. When some head is not
-- what the writer believed, or an operation was compensated, it fails with LG001 and nothing is written.
--
-- One advisory lock ("ledger", 7) lets one append pass at a time: nearly every batch touches nearly every head, and to
-- lock thirty rows in order, so that two writers cannot block each other, would cost more than all else here.
create function advance_heads(
    smallint[], bigint[], bigint[], bytea[], bigint[], bytea[], smallint[], bigint[], bigint[], bytea[],
    smallint[], uuid[]
) returns void language plpgsql as $$
declare
    n bigint;
begin
    perform pg_advisory_xact_lock(x'6c656467657207'::bigint);
    update partition_heads h set position = next.next_position, hash = next.next_hash
    from unnest($1, $2, $3, $4, $5, $6) as next (partition, epoch, position, hash, next_position, next_hash)
    where (h.partition, h.epoch, h.position, h.hash) = (next.partition, next.epoch, next.position, next.hash);
    get diagnostics n = row_count;
    if n = cardinality($1) and cardinality($7) > 0 then
        -- Locked as well, so that they stay what they are until the commit.
        select count(*) + cardinality($1) - cardinality($7) into n
        from (
            select 1 from partition_heads h
            join unnest($7, $8, $9, $10) as believed (partition, epoch, position, hash)
                using (partition, epoch, position, hash)
            for share of h
        ) as agreeing;
    end if;
    if n <> cardinality($1) then
        raise exception 'a head is not what the writer believed' using errcode = 'LG001';
    end if;
    if cardinality($11) > 0 and exists (
        select from unnest($11, $12) as named (partition, operation_id)
        join compensations using (partition, operation_id)
    ) then
        raise exception 'an operation was compensated' using errcode = 'LG001';
    end if;
end
$$;

-- An append of few events: the whole commit of a batch in one statement and one round trip. $1-$12 are those of
-- advance_heads, from $13 on come the events, column by column. (Many events are copied instead, which costs half as much
-- for each but four round trips more.)
create function append_events(
    smallint[], bigint[], bigint[], bytea[], bigint[], bytea[], smallint[], bigint[], bigint[], bytea[],
    smallint[], uuid[],
    smallint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[],
    timestamptz[], timestamptz[], uuid[], uuid[], uuid[], uuid[], uuid[], integer[], integer[], smallint[],
    boolean[], text[], text[], text[], text[], text[], text[], text[], text[], text[], bytea[], bigint[]
) returns void language plpgsql as $$
begin
    perform advance_heads($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);
    insert into events (
        partition, position, previous_position, epoch, version, amount, released, remaining, balance, frozen,
        expires_at, recorded_at, transaction_id, account_id, related_id, operation_id, batch_id, batch_size,
        batch_index, schema_version, locked, type, user_id, credit_type, business_code, business_id, request_id,
        actor, description, metadata, hash, available
    )
    select * from unnest(
        $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33,
        $34, $35, $36, $37, $38, $39, $40, $41, $42, $43, $44
    );
end
$$;

-- Events are append-only, whoever asks.
create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'events are append-only: % on % is refused', tg_op, tg_table_name using errcode = 'restrict_violation';
end
$$;

create trigger events_are_append_only before update or delete on events
    for each row execute function refuse_change();
create trigger events_are_never_truncated before truncate on events
    for each statement execute function refuse_change();
alter table events enable always trigger events_are_append_only;
alter table events enable always trigger events_are_never_truncated;

-- The indexes behind the log: they say where an event is, the event says what is true. What an account's row says besides
-- is believed only as long as its seal is whole; it spares reading the event.
create table account_positions (
    partition  smallint not null,
    locked     boolean  not null default false,
    account_id uuid     not null,
    position   bigint   not null,
    balance    bigint   not null default 0,
    frozen     bigint   not null default 0,
    version    bigint   not null default 0,
    seal       bigint   not null default 0,
    primary key (partition, account_id)
) with (fillfactor = 80);

-- Runs of successive positions: a run is small enough to stay at hand while it is written, and is never touched again.
create table key_positions (
    partition     smallint not null,
    business_hash bigint   not null,
    account_short bigint   not null,
    position      bigint   not null,
    run           integer  not null,
    primary key (partition, run, business_hash, account_short, position)
);

create table related_positions (
    partition         smallint not null,
    original_position bigint   not null,
    position          bigint   not null,
    primary key (partition, original_position)
) with (fillfactor = 90);

-- One entry for each 256th version of an account: from there a walk back along previous_position finds the rest.
create table history_positions (
    partition  smallint not null,
    account_id uuid     not null,
    version    bigint   not null,
    position   bigint   not null,
    primary key (partition, account_id, version)
);

-- Up to where the indexes hold the log.
create table index_checkpoints (
    partition smallint primary key,
    epoch     bigint   not null,
    position  bigint   not null,
    hash      bytea    not null
) with (fillfactor = 10);

insert into index_checkpoints (partition, epoch, position, hash)
select partition, epoch, position, hash from partition_heads;

-- The read models.
create table balances (
    partition   smallint    not null,
    account_id  uuid        not null,
    position    bigint      not null,
    version     bigint      not null,
    balance     bigint      not null,
    frozen      bigint      not null,
    available   bigint      not null,
    updated_at  timestamptz not null,
    status      text        not null,
    user_id     text        not null,
    credit_type text        not null,
    primary key (partition, account_id)
) with (fillfactor = 80);

create table freezes (
    partition     smallint    not null,
    position      bigint      not null,
    amount        bigint      not null,
    remaining     bigint      not null,
    captured      bigint      not null,
    released      bigint      not null,
    expires_at    timestamptz,
    created_at    timestamptz not null,
    freeze_id     uuid        not null,
    account_id    uuid        not null,
    status        text        not null,
    user_id       text        not null,
    credit_type   text        not null,
    business_code text        not null,
    business_id   text        not null,
    primary key (partition, position)
) with (fillfactor = 80);

create index freezes_of_account on freezes (partition, account_id, position);

-- Up to where each read model holds the log; moved by compare-and-set in the transaction that writes its rows.
create table projection_checkpoints (
    projection text     not null,
    partition  smallint not null,
    epoch      bigint   not null,
    position   bigint   not null,
    hash       bytea    not null,
    primary key (partition, projection)
) with (fillfactor = 10);

insert into projection_checkpoints (projection, partition, epoch, position, hash)
select projection, partition, epoch, position, hash
from partition_heads, (values ('balances'), ('freezes')) as names (projection);

-- What the projectors and verification found that cannot be.
create table inconsistencies (
    partition   smallint    not null,
    position    bigint      not null,
    projection  text        not null,
    kind        text        not null,
    expected    text        not null,
    found       text        not null,
    found_at    timestamptz not null,
    resolved_at timestamptz,
    primary key (partition, position, projection, kind)
);

-- How far the log was published, and at which sequence of the stream.
create table publisher_checkpoints (
    stream          text     not null,
    partition       smallint not null,
    epoch           bigint   not null,
    position        bigint   not null,
    hash            bytea    not null,
    stream_sequence bigint   not null,
    primary key (partition, stream)
) with (fillfactor = 10);

-- Each restore: where the log of each partition stood when it began a new epoch. Later events of older epochs, wherever a
-- stream or a reader still has them, are void.
create table restores (
    partition   smallint    not null,
    epoch       bigint      not null,
    position    bigint      not null,
    hash        bytea       not null,
    restored_at timestamptz not null,
    archive_id  text        not null,
    primary key (partition, epoch)
);
