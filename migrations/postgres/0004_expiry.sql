-- Freezes in the order in which they are due.
create index freezes_due on freezes (partition, expires_at) where expires_at is not null;
