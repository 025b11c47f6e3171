-- Trigger function: the foreign key of points to their series, checked once per statement instead of once per point.
CREATE FUNCTION arc_halo.check_metric_series() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    missing integer;
BEGIN
    SELECT used.series_id INTO missing
      FROM (SELECT DISTINCT p.series_id FROM new_points AS p) AS used
      LEFT JOIN LATERAL (
        SELECT s.id FROM arc_halo.metric_series AS s WHERE s.id = used.series_id FOR KEY SHARE
      ) AS series ON true
     WHERE series.id IS NULL
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'there is no metric series %', missing
            USING ERRCODE = 'foreign_key_violation', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME,
                  CONSTRAINT = 'fk_training_metrics_series_id';
    END IF;
    RETURN NULL;
END
$$
