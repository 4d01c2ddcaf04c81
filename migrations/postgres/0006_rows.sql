-- Rows as parameters. An array of one composite type costs a third to a half of what one array for each column costs: `unnest`
-- keeps each array's elements by themselves before it puts rows together. These types hold nothing and never change; what
-- another version needs besides gets a type of its own, because a service of the version before may still run.

-- A head that an append judged by, and where it moves to, if it does.
create type head_step as (
    partition     smallint,
    epoch         bigint,
    position      bigint,
    hash          bytea,
    next_position bigint,
    next_hash     bytea
);

-- A row of `events`, with its columns in their order.
create type event_row as (
    position          bigint,
    previous_position bigint,
    epoch             bigint,
    version           bigint,
    amount            bigint,
    released          bigint,
    remaining         bigint,
    balance           bigint,
    frozen            bigint,
    available         bigint,
    expires_at        timestamptz,
    recorded_at       timestamptz,
    transaction_id    uuid,
    account_id        uuid,
    related_id        uuid,
    operation_id      uuid,
    batch_id          uuid,
    batch_size        integer,
    batch_index       integer,
    partition         smallint,
    schema_version    smallint,
    locked            boolean,
    type              text,
    user_id           text,
    credit_type       text,
    business_code     text,
    business_id       text,
    request_id        text,
    actor             text,
    description       text,
    metadata          text,
    hash              bytea
);

-- A row of `account_positions`.
create type account_row as (
    partition  smallint,
    account_id uuid,
    position   bigint,
    balance    bigint,
    frozen     bigint,
    version    bigint,
    locked     boolean,
    seal       bigint
);

-- A row of `balances`, and what is believed to be in its place.
create type balance_row as (
    partition    smallint,
    account_id   uuid,
    position     bigint,
    version      bigint,
    balance      bigint,
    frozen       bigint,
    available    bigint,
    updated_at   timestamptz,
    status       text,
    user_id      text,
    credit_type  text,
    old_position bigint,
    old_version  bigint,
    old_balance  bigint,
    old_frozen   bigint,
    old_status   text
);

-- A row of `freezes`.
create type freeze_row as (
    partition     smallint,
    position      bigint,
    amount        bigint,
    remaining     bigint,
    captured      bigint,
    released      bigint,
    expires_at    timestamptz,
    created_at    timestamptz,
    freeze_id     uuid,
    account_id    uuid,
    status        text,
    user_id       text,
    credit_type   text,
    business_code text,
    business_id   text
);

-- Moves heads by predicate: `heads` are `head_step`s, `operations` those of the events. When some head is not what the writer
-- believed, or an operation was compensated, it fails with LG001 and nothing is written. (The parameter is of no type by name,
-- so that a restore can put this function into another schema than the type's.)
--
-- One advisory lock ("ledger", 7) lets one append pass at a time: nearly every batch touches nearly every head, and to
-- lock thirty rows in order, so that two writers cannot block each other, would cost more than all else here.
create function advance_heads(heads anyarray, operation_partitions smallint[], operations uuid[])
returns void language plpgsql as $$
declare
    agreeing bigint;
    judged   bigint;
begin
    perform pg_advisory_xact_lock(x'6c656467657207'::bigint);
    update partition_heads h set position = step.next_position, hash = step.next_hash
    from unnest(heads) as step
    where (h.partition, h.epoch, h.position, h.hash) = (step.partition, step.epoch, step.position, step.hash)
        and step.next_position is not null;
    get diagnostics agreeing = row_count;
    if agreeing < cardinality(heads) then
        -- Those that were only judged by are locked as well, so that they stay what they are until the commit.
        select count(*) into judged
        from (
            select 1 from partition_heads h
            join unnest(heads) as step using (partition, epoch, position, hash)
            where step.next_position is null
            for share of h
        ) as unmoved;
        agreeing := agreeing + judged;
    end if;
    if agreeing <> cardinality(heads) then
        raise exception 'a head is not what the writer believed' using errcode = 'LG001';
    end if;
    -- Not in one condition: a condition with a query is a query, whatever its first half says.
    if cardinality(operations) > 0 then
        if exists (
            select from unnest(operation_partitions, operations) as named (partition, operation_id)
            join compensations using (partition, operation_id)
        ) then
            raise exception 'an operation was compensated' using errcode = 'LG001';
        end if;
    end if;
end
$$;

-- An append of few events: the whole commit of a batch in one statement and one round trip. `rows` are `event_row`s. (Many
-- events are copied instead, which costs less for each but four round trips more.)
create function append_events(
    heads anyarray, operation_partitions smallint[], operations uuid[], rows anycompatiblearray
) returns void language plpgsql as $$
begin
    perform advance_heads(heads, operation_partitions, operations);
    insert into events (
        position, previous_position, epoch, version, amount, released, remaining, balance, frozen, available,
        expires_at, recorded_at, transaction_id, account_id, related_id, operation_id, batch_id, batch_size,
        batch_index, partition, schema_version, locked, type, user_id, credit_type, business_code, business_id,
        request_id, actor, description, metadata, hash
    )
    select * from unnest(rows);
end
$$;
