-- Trigger function: points go with their series; refused where a snapshot could hide points that came since.
CREATE FUNCTION arc_halo.delete_metric_points() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF pg_catalog.current_setting('transaction_isolation') <> 'read committed'
       AND EXISTS (SELECT FROM old_series) THEN
        RAISE EXCEPTION 'metric series can be deleted in a READ COMMITTED transaction only'
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Delete the run in a transaction of its own, without isolation_level.';
    END IF;
    DELETE FROM arc_halo.training_metrics WHERE series_id IN (SELECT id FROM old_series);
    RETURN NULL;
END
$$
