-- When a delivery's own window ends (`dedupe=` of its trigger); NULL: when the setting says.
ALTER TABLE dedupe ADD COLUMN expires_at INTEGER;
CREATE INDEX dedupe_by_expiry ON dedupe (expires_at) WHERE expires_at IS NOT NULL;
