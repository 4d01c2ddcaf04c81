-- The event table, its heads, the indexes that are written behind it, the read models and their checkpoints.
-- Times are RFC 3339 texts in UTC with six digits, which sort as they pass; ids are texts as in JSON; hashes are 32 bytes.

-- Rows stand in the order in which they were committed, at the end of the file's tree, and the primary key is an index of
-- small entries beside it: kept in the order of the key itself, rows would go to 64 places in the middle of the tree, and
-- each would shift its neighbours.
create table events (
    position          integer not null,
    previous_position integer not null,
    epoch             integer not null,
    version           integer not null,
    amount            integer check (amount > 0),
    released          integer not null check (released >= 0),
    remaining         integer check (remaining >= 0),
    balance           integer not null check (balance >= 0),
    frozen            integer not null check (frozen >= 0),
    available         integer not null,
    expires_at        text,
    recorded_at       text    not null,
    transaction_id    text    not null,
    account_id        text    not null,
    related_id        text,
    operation_id      text    not null,
    batch_id          text,
    batch_size        integer,
    batch_index       integer,
    partition         integer not null check (partition between 0 and 63),
    schema_version    integer not null,
    locked            integer not null,
    type              text    not null,
    user_id           text    not null,
    credit_type       text    not null,
    business_code     text    not null,
    business_id       text    not null,
    request_id        text    not null,
    actor             text    not null,
    description       text,
    metadata          text,
    hash              blob    not null,
    primary key (partition, position)
) strict;

-- The newest event of each partition: an append advances it by predicate, which is the fence against a second writer.
create table partition_heads (
    partition integer primary key check (partition between 0 and 63),
    epoch     integer not null,
    position  integer not null,
    hash      blob    not null
) strict, without rowid;

insert into partition_heads (partition, epoch, position, hash)
with recursive numbers (n) as (select 0 union all select n + 1 from numbers where n < 63)
select n, 1, 0, zeroblob(32) from numbers;

-- Operations that were reversed as a whole. An append asks this table, in its own transaction, whether a command's
-- operation is in it: once it is, no further command of that operation is recorded. `partition` is the operation's, not an
-- account's.
create table compensations (
    partition      integer not null check (partition between 0 and 63),
    operation_id   text    not null,
    compensated_at text    not null,
    request_id     text    not null,
    actor          text    not null,
    reason         text    not null,
    reversals      integer not null check (reversals >= 0),
    primary key (partition, operation_id)
) strict, without rowid;

-- Events are append-only, whoever asks.
create trigger events_are_not_updated before update on events
begin
    select raise(abort, 'events are append-only: update is refused');
end;

create trigger events_are_not_deleted before delete on events
begin
    select raise(abort, 'events are append-only: delete is refused');
end;

-- An `insert or replace` deletes without firing the trigger above; this one stands before it.
create trigger events_are_not_replaced before insert on events
when exists (select 1 from events where partition = new.partition and position = new.position)
begin
    select raise(abort, 'events are append-only: replace is refused');
end;

-- The indexes behind the log: they say where an event is, the event says what is true. What an account's row says besides
-- is believed only as long as its seal is whole; it spares reading the event.
create table account_positions (
    partition  integer not null,
    account_id text    not null,
    position   integer not null,
    balance    integer not null default 0,
    frozen     integer not null default 0,
    version    integer not null default 0,
    locked     integer not null default 0,
    seal       integer not null default 0,
    primary key (partition, account_id)
) strict, without rowid;

-- Runs of successive positions: a run is small enough to stay at hand while it is written, and is never touched again.
create table key_positions (
    partition     integer not null,
    run           integer not null,
    business_hash integer not null,
    account_short integer not null,
    position      integer not null,
    primary key (partition, run, business_hash, account_short, position)
) strict, without rowid;

create table related_positions (
    partition         integer not null,
    original_position integer not null,
    position          integer not null,
    primary key (partition, original_position)
) strict, without rowid;

-- One entry for each 256th version of an account: from there a walk back along previous_position finds the rest.
create table history_positions (
    partition  integer not null,
    account_id text    not null,
    version    integer not null,
    position   integer not null,
    primary key (partition, account_id, version)
) strict, without rowid;

-- Up to where the indexes hold the log.
create table index_checkpoints (
    partition integer primary key,
    epoch     integer not null,
    position  integer not null,
    hash      blob    not null
) strict, without rowid;

insert into index_checkpoints (partition, epoch, position, hash)
select partition, epoch, position, hash from partition_heads;

-- The read models.
create table balances (
    partition   integer not null,
    account_id  text    not null,
    position    integer not null,
    version     integer not null,
    balance     integer not null,
    frozen      integer not null,
    available   integer not null,
    updated_at  text    not null,
    status      text    not null,
    user_id     text    not null,
    credit_type text    not null,
    primary key (partition, account_id)
) strict, without rowid;

create table freezes (
    partition     integer not null,
    position      integer not null,
    amount        integer not null,
    remaining     integer not null,
    captured      integer not null,
    released      integer not null,
    expires_at    text,
    created_at    text    not null,
    freeze_id     text    not null,
    account_id    text    not null,
    status        text    not null,
    user_id       text    not null,
    credit_type   text    not null,
    business_code text    not null,
    business_id   text    not null,
    primary key (partition, position)
) strict, without rowid;

create index freezes_of_account on freezes (partition, account_id, position);

-- Up to where each read model holds the log; moved by compare-and-set in the transaction that writes its rows.
create table projection_checkpoints (
    projection text    not null,
    partition  integer not null,
    epoch      integer not null,
    position   integer not null,
    hash       blob    not null,
    primary key (partition, projection)
) strict, without rowid;

insert into projection_checkpoints (projection, partition, epoch, position, hash)
select projection, partition, epoch, position, hash
from partition_heads, (select 'balances' as projection union all select 'freezes');

-- What the projectors and verification found that cannot be.
create table inconsistencies (
    partition   integer not null,
    position    integer not null,
    projection  text    not null,
    kind        text    not null,
    expected    text    not null,
    found       text    not null,
    found_at    text    not null,
    resolved_at text,
    primary key (partition, position, projection, kind)
) strict, without rowid;

-- How far the log was published, and at which sequence of the stream.
create table publisher_checkpoints (
    stream          text    not null,
    partition       integer not null,
    epoch           integer not null,
    position        integer not null,
    hash            blob    not null,
    stream_sequence integer not null,
    primary key (partition, stream)
) strict, without rowid;

-- Each restore: where the log of each partition stood when it began a new epoch. Later events of older epochs, wherever a
-- stream or a reader still has them, are void.
create table restores (
    partition   integer not null,
    epoch       integer not null,
    position    integer not null,
    hash        blob    not null,
    restored_at text    not null,
    archive_id  text    not null,
    primary key (partition, epoch)
) strict, without rowid;
