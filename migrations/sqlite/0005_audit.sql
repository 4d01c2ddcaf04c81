-- Who did what, from where. Written behind the answers, in bulk; `audit_id` is a UUID of version 7, so its order is that of time.
create table audit (
    partition      integer not null check (partition between 0 and 63),
    audit_id       text    not null,
    recorded_at    text    not null,
    action         text    not null,
    outcome        text    not null,
    actor          text    not null,
    address        text,
    request_id     text,
    user_id        text,
    credit_type    text,
    transaction_id text,
    details        text,
    primary key (partition, audit_id)
) strict, without rowid;

-- An inconsistency has an id of its own; what is found again after it was resolved is another one. What it is about, its
-- subject, is open once.
create table inconsistencies_next (
    partition        integer not null,
    inconsistency_id text    not null,
    position         integer not null,
    projection       text    not null,
    kind             text    not null,
    subject          text    not null,
    expected         text    not null,
    found            text    not null,
    user_id          text,
    credit_type      text,
    size             integer,
    outcome          text,
    found_at         text    not null,
    resolved_at      text,
    resolved_by      text,
    note             text,
    primary key (partition, inconsistency_id)
) strict, without rowid;
insert into inconsistencies_next
    (partition, inconsistency_id, position, projection, kind, subject, expected, found, found_at, resolved_at)
select partition,
       substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-4' || substr(h, 14, 3) || '-8' || substr(h, 18, 3) || '-' || substr(h, 21, 12),
       position, projection, kind, position || ' ' || kind, expected, found, found_at, resolved_at
from (select lower(hex(randomblob(16))) as h, * from inconsistencies);
drop table inconsistencies;
alter table inconsistencies_next rename to inconsistencies;
create unique index inconsistencies_open on inconsistencies (partition, projection, subject) where resolved_at is null;

-- When each partition's read models were proved last, and up to where.
create table proofs (
    partition integer primary key check (partition between 0 and 63),
    began_at  text    not null,
    ended_at  text    not null,
    position  integer not null,
    outcome   text    not null
) strict, without rowid;
