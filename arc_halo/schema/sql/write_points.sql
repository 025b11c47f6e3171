-- Writes points, each step of a series once: the later replaces the earlier, sealed or not. NaN as epoch is none.
CREATE FUNCTION arc_halo.write_points(
    series_ids integer[], steps bigint[], epochs double precision[], point_values double precision[],
    recorded_times timestamptz[]
) RETURNS bigint
LANGUAGE plpgsql AS $$
BEGIN
    -- In their order, and before any point: two writers never wait for one another, and nobody seals in between.
    PERFORM FROM arc_halo.metric_series AS s
      WHERE s.id = ANY (write_points.series_ids)
      ORDER BY s.id
        FOR NO KEY UPDATE;
    PERFORM arc_halo.merge_sealed_points(
                late.series_id, array_agg(late.step), array_agg(late.epoch), array_agg(late.value),
                array_agg(late.recorded_at))
       FROM (
        SELECT p.series_id, p.step, NULLIF(p.epoch, 'NaN') AS epoch, p.value, p.recorded_at
          FROM unnest(series_ids, steps, epochs, point_values, recorded_times)
               AS p (series_id, step, epoch, value, recorded_at)
          JOIN arc_halo.metric_series AS s ON s.id = p.series_id
         WHERE p.step <= s.sealed_through_step
       ) AS late
      GROUP BY late.series_id
      ORDER BY late.series_id;
    INSERT INTO arc_halo.training_metrics AS kept (series_id, step, epoch, value, recorded_at)
    SELECT p.series_id, p.step, NULLIF(p.epoch, 'NaN'), p.value, p.recorded_at
      FROM unnest(series_ids, steps, epochs, point_values, recorded_times)
           AS p (series_id, step, epoch, value, recorded_at)
      LEFT JOIN arc_halo.metric_series AS s ON s.id = p.series_id
     WHERE (p.step > s.sealed_through_step) IS NOT FALSE
     ORDER BY p.series_id, p.step
        ON CONFLICT (series_id, step) DO UPDATE
       SET epoch = excluded.epoch, value = excluded.value, recorded_at = excluded.recorded_at
     -- A replay writes nothing. Zeros have a sign that comparison does not see.
     WHERE (kept.epoch, kept.value, kept.recorded_at)
           IS DISTINCT FROM (excluded.epoch, excluded.value, excluded.recorded_at)
        OR kept.value = 0;
    RETURN cardinality(series_ids);
END
$$
