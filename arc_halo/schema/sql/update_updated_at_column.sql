-- Trigger function: sets updated_at to the time of the transaction, whatever the statement says.
CREATE FUNCTION arc_halo.update_updated_at_column() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := pg_catalog.now();
    RETURN NEW;
END
$$
