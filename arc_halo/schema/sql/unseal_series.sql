-- Unpacks the segments of a series that reach beyond a step into single points again; returns how many points.
CREATE FUNCTION arc_halo.unseal_series(series_id integer, from_step bigint DEFAULT 0) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    unpacked bigint;
BEGIN
    PERFORM FROM arc_halo.metric_series AS s WHERE s.id = unseal_series.series_id FOR UPDATE;
    UPDATE arc_halo.metric_series AS s
       SET sealed_through_step = (
            SELECT max(g.last_step) FROM arc_halo.metric_segments AS g
             WHERE g.series_id = unseal_series.series_id AND g.last_step < unseal_series.from_step)
     WHERE s.id = unseal_series.series_id;
    INSERT INTO arc_halo.training_metrics (series_id, step, epoch, value, recorded_at)
    SELECT g.series_id, p.step, p.epoch, p.value, p.recorded_at
      FROM arc_halo.metric_segments AS g
     CROSS JOIN LATERAL unnest(g.steps, g.epochs, g.point_values, g.recorded_times)
           AS p (step, epoch, value, recorded_at)
     WHERE g.series_id = unseal_series.series_id AND g.last_step >= unseal_series.from_step;
    GET DIAGNOSTICS unpacked = ROW_COUNT;
    DELETE FROM arc_halo.metric_segments AS g
     WHERE g.series_id = unseal_series.series_id AND g.last_step >= unseal_series.from_step;
    RETURN unpacked;
END
$$
