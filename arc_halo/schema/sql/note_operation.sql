-- Note that the transaction carries out an operation, unless it has written nothing; returns its id, null then.
CREATE FUNCTION arc_halo.note_operation(operation_id uuid) RETURNS xid8
LANGUAGE plpgsql AS $$
BEGIN
    IF pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL THEN
        INSERT INTO arc_halo.operations (id) VALUES (operation_id);
    END IF;
    RETURN pg_catalog.pg_current_xact_id_if_assigned();
END
$$
