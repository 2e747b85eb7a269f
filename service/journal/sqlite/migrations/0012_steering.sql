-- A pause may end by itself, and says who paused and why.
ALTER TABLE paused ADD COLUMN until INTEGER;
ALTER TABLE paused ADD COLUMN note TEXT NOT NULL DEFAULT '';
ALTER TABLE paused ADD COLUMN by TEXT NOT NULL DEFAULT '';
