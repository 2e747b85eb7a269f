-- What a called run returned, as a pickle, where its `result` (JSON) would not give it back the same.
ALTER TABLE runs ADD COLUMN returned BLOB;
