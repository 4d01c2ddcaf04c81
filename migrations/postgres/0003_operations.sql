-- What is recorded beside the events, append-only: refusals, and the steps of flows.

-- Why commands were refused. A refusal binds nothing; it is kept so that a caller who never heard the answer finds it.
create table refusals (
    partition     smallint    not null check (partition between 0 and 63),
    refused_at    timestamptz not null,
    refusal_id    uuid        not null,
    account_id    uuid,
    operation_id  uuid,
    related_id    uuid,
    amount        bigint,
    type          text        not null,
    user_id       text,
    credit_type   text,
    business_code text        not null,
    business_id   text        not null,
    code          text        not null,
    message       text        not null,
    figures       text        not null,
    request_id    text        not null,
    actor         text        not null,
    primary key (partition, refusal_id)
);

create index refusals_of_operation on refusals (partition, operation_id) where operation_id is not null;
create index refusals_of_key on refusals (partition, business_code, business_id);

-- The flows that callers describe: number 0 opens one, each further row is what became of a step.
create table operation_records (
    partition    smallint    not null check (partition between 0 and 63),
    number       integer     not null check (number >= 0),
    operation_id uuid        not null,
    recorded_at  timestamptz not null,
    name         text        not null,
    status       text        not null,
    data         text,
    request_id   text        not null,
    actor        text        not null,
    primary key (partition, operation_id, number)
);
