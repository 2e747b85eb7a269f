-- 1 on a run that an operator has started past the mode of its flow (`--force`).
ALTER TABLE runs ADD COLUMN forced INTEGER;
