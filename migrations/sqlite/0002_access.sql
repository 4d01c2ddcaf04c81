-- Who may call. The secret itself is never stored: `hash` is BLAKE3 over the whole key, which has 256 random bits.
create table api_keys (
    prefix     text primary key,
    hash       blob not null check (length(hash) = 32),
    label      text not null,
    scopes     text not null,
    rate_limit text,
    created_at text not null,
    expires_at text,
    revoked_at text
) strict, without rowid;
