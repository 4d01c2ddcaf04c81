-- Freezes in the order in which they are due; by position besides, because many may be due at one instant.
create index freezes_due on freezes (partition, expires_at, position) where expires_at is not null;
