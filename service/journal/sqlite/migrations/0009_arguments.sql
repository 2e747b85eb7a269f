-- What a step was called with: a digest of its arguments (`?` where there is no telling) and the call in
-- words; NULL in steps of earlier versions, with which nothing is compared.
ALTER TABLE steps ADD COLUMN digest TEXT;
ALTER TABLE steps ADD COLUMN called TEXT;
