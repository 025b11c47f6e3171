-- Trigger function: points go with their series; refused where a snapshot could hide points that came since.
CREATE FUNCTION arc_halo.delete_metric_points() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    deleted_id integer;
BEGIN
    IF pg_catalog.current_setting('transaction_isolation') <> 'read committed'
       AND EXISTS (SELECT FROM old_series) THEN
        RAISE EXCEPTION 'metric series can be deleted in a READ COMMITTED transaction only'
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Delete the run in a transaction of its own, without isolation_level.';
    END IF;
    -- One by one: each finds its points by the index, where a join with all would read those of everybody.
    FOR deleted_id IN SELECT o.id FROM old_series AS o ORDER BY o.id LOOP
        DELETE FROM arc_halo.training_metrics AS t WHERE t.series_id = deleted_id;
    END LOOP;
    RETURN NULL;
END
$$
