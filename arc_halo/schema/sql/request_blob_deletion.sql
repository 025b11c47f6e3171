-- Trigger function: asks the sweeper to delete the object that a chunk's payload was in.
CREATE FUNCTION arc_halo.request_blob_deletion() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR NEW.blob_location IS DISTINCT FROM OLD.blob_location THEN
        INSERT INTO arc_halo.blob_deletions (blob_location) VALUES (OLD.blob_location);
    END IF;
    RETURN NULL;
END
$$
