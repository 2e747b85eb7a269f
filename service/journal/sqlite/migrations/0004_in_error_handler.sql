-- 1 on a step that was called while an error was being handled: another attempt may never come to it.
ALTER TABLE steps ADD COLUMN aside INTEGER NOT NULL DEFAULT 0;
