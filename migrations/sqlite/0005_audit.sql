-- Who did what, from where.
create table audit (
    partition   integer not null check (partition between 0 and 63),
    audit_id    text    not null,
    recorded_at text    not null,
    action      text    not null,
    actor       text    not null,
    address     text,
    request_id  text,
    user_id     text,
    credit_type text,
    details     text    not null,
    primary key (partition, audit_id)
) strict, without rowid;

-- What a person or the ledger did about an inconsistency.
alter table inconsistencies add column inconsistency_id text;
alter table inconsistencies add column user_id text;
alter table inconsistencies add column credit_type text;
alter table inconsistencies add column size integer;
alter table inconsistencies add column outcome text;
alter table inconsistencies add column resolved_by text;
alter table inconsistencies add column note text;
create unique index inconsistencies_by_id on inconsistencies (partition, inconsistency_id);
