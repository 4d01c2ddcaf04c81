-- Who did what, from where. Written behind the answers, in bulk; `audit_id` is a UUID of version 7, so its order is that of time.
create table audit (
    partition      smallint    not null check (partition between 0 and 63),
    audit_id       uuid        not null,
    recorded_at    timestamptz not null,
    action         text        not null,
    outcome        text        not null,
    actor          text        not null,
    address        text,
    request_id     text,
    user_id        text,
    credit_type    text,
    transaction_id uuid,
    details        text,
    primary key (partition, audit_id)
);

-- An inconsistency has an id of its own; what is found again after it was resolved is another one. What it is about, its
-- subject, is open once.
alter table inconsistencies
    add column inconsistency_id uuid not null default gen_random_uuid(),
    add column subject          text,
    add column user_id          text,
    add column credit_type      text,
    add column size             bigint,
    add column outcome          text,
    add column resolved_by      text,
    add column note             text;
update inconsistencies set subject = position || ' ' || kind;
alter table inconsistencies
    alter column subject set not null,
    alter column inconsistency_id drop default,
    drop constraint inconsistencies_pkey,
    add primary key (partition, inconsistency_id);
create unique index inconsistencies_open on inconsistencies (partition, projection, subject) where resolved_at is null;

-- When each partition's read models were proved last, and up to where.
create table proofs (
    partition smallint    primary key check (partition between 0 and 63),
    began_at  timestamptz not null,
    ended_at  timestamptz not null,
    position  bigint      not null,
    outcome   text        not null
);
