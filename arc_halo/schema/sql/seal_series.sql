-- Packs the points of a series up to a step into segments of 4,096; returns how many, with those of a last short segment.
CREATE FUNCTION arc_halo.seal_series(series_id integer, through_step bigint DEFAULT 9223372036854775807) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    last_sealed bigint;
    short_from bigint;
    packed bigint := 0;
    segment record;
BEGIN
    IF pg_catalog.current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'metric series can be sealed in a READ COMMITTED transaction only'
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Seal in a transaction of its own, without isolation_level: a snapshot would hide points.';
    END IF;
    SELECT s.sealed_through_step INTO last_sealed
      FROM arc_halo.metric_series AS s WHERE s.id = seal_series.series_id FOR UPDATE;
    IF NOT EXISTS (SELECT FROM arc_halo.training_metrics AS t
                    WHERE t.series_id = seal_series.series_id AND t.step <= seal_series.through_step) THEN
        RETURN 0;
    END IF;
    SELECT g.first_step INTO short_from
      FROM arc_halo.metric_segments AS g
     WHERE g.series_id = seal_series.series_id AND g.last_step = last_sealed AND g.point_count < 4096;
    IF FOUND THEN
        PERFORM arc_halo.unseal_series(seal_series.series_id, short_from);
    END IF;

    last_sealed := -1;
    LOOP
        INSERT INTO arc_halo.metric_segments (series_id, steps, epochs, point_values, recorded_times, nan_count)
        SELECT seal_series.series_id, array_agg(p.step ORDER BY p.step), array_agg(p.epoch ORDER BY p.step),
               array_agg(p.value ORDER BY p.step), array_agg(p.recorded_at ORDER BY p.step), 0
          FROM (
            SELECT t.step, t.epoch, t.value, t.recorded_at
              FROM arc_halo.training_metrics AS t
             WHERE t.series_id = seal_series.series_id
               AND t.step > last_sealed
               AND t.step <= seal_series.through_step
             ORDER BY t.step
             LIMIT 4096
          ) AS p
        HAVING count(*) > 0
        RETURNING metric_segments.last_step, metric_segments.point_count INTO segment;
        EXIT WHEN NOT FOUND;
        last_sealed := segment.last_step;
        packed := packed + segment.point_count;
    END LOOP;
    UPDATE arc_halo.metric_series AS s SET sealed_through_step = last_sealed WHERE s.id = seal_series.series_id;
    DELETE FROM arc_halo.training_metrics AS t WHERE t.series_id = seal_series.series_id AND t.step <= last_sealed;
    RETURN packed;
END
$$
