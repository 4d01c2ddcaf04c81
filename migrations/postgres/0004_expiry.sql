-- Freezes in the order in which they are due. By position besides, because many may be due at one instant, and not by
-- status: a column that a settlement changes would make each one write every index of its row.
create index freezes_due on freezes (partition, expires_at, position) where expires_at is not null;
