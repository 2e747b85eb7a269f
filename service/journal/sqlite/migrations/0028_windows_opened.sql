-- Open windows by when they were opened: at a start those that a clock which was ahead has opened in
-- the future are looked for, whatever the number of the others.
CREATE INDEX windows_opened ON windows (opened_at) WHERE state = 'open';
