-- The step that awaits the first of several waits, in each of them.
ALTER TABLE waits ADD COLUMN race TEXT;
