-- Who did what, from where.
create table audit (
    partition   smallint    not null check (partition between 0 and 63),
    audit_id    uuid        not null,
    recorded_at timestamptz not null,
    action      text        not null,
    actor       text        not null,
    address     text,
    request_id  text,
    user_id     text,
    credit_type text,
    details     text        not null,
    primary key (partition, audit_id)
);

-- What a person or the ledger did about an inconsistency.
alter table inconsistencies
    add column inconsistency_id uuid,
    add column user_id          text,
    add column credit_type      text,
    add column size             bigint,
    add column outcome          text,
    add column resolved_by      text,
    add column note             text;
create unique index inconsistencies_by_id on inconsistencies (partition, inconsistency_id);
