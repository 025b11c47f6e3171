-- Merges points into the segments of a series that they belong to; the series stays sealed as far as it was.
CREATE FUNCTION arc_halo.merge_sealed_points(
    series_id integer, steps bigint[], epochs double precision[], point_values double precision[],
    recorded_times timestamptz[]
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    WITH late AS (
        SELECT l.step, l.epoch, l.value, l.recorded_at, COALESCE(owner.first_step, oldest.first_step) AS segment
          FROM unnest(steps, epochs, point_values, recorded_times) AS l (step, epoch, value, recorded_at)
         CROSS JOIN LATERAL (
            SELECT min(g.first_step) AS first_step
              FROM arc_halo.metric_segments AS g
             WHERE g.series_id = merge_sealed_points.series_id
         ) AS oldest
          LEFT JOIN LATERAL (
            SELECT max(g.first_step) AS first_step
              FROM arc_halo.metric_segments AS g
             WHERE g.series_id = merge_sealed_points.series_id AND g.first_step <= l.step
         ) AS owner ON true
    ), opened AS (
        DELETE FROM arc_halo.metric_segments AS g
         WHERE g.series_id = merge_sealed_points.series_id AND g.first_step IN (SELECT late.segment FROM late)
        RETURNING g.first_step, g.steps, g.epochs, g.point_values, g.recorded_times
    ), merged AS (
        SELECT late.segment, late.step, late.epoch, late.value, late.recorded_at FROM late
         UNION ALL
        SELECT o.first_step, p.step, p.epoch, p.value, p.recorded_at
          FROM opened AS o
         CROSS JOIN LATERAL unnest(o.steps, o.epochs, o.point_values, o.recorded_times)
               AS p (step, epoch, value, recorded_at)
         WHERE NOT EXISTS (SELECT FROM late WHERE late.step = p.step)
    ), counted AS (
        SELECT m.segment, m.step, m.epoch, m.value, m.recorded_at,
               row_number() OVER (PARTITION BY m.segment ORDER BY m.step) - 1 AS place,
               (count(*) OVER (PARTITION BY m.segment) + 4095) / 4096 AS piece_count,
               count(*) OVER (PARTITION BY m.segment) AS point_count
          FROM merged AS m
    )
    INSERT INTO arc_halo.metric_segments (series_id, steps, epochs, point_values, recorded_times, nan_count)
    SELECT merge_sealed_points.series_id,
           array_agg(c.step ORDER BY c.step), array_agg(c.epoch ORDER BY c.step),
           array_agg(c.value ORDER BY c.step), array_agg(c.recorded_at ORDER BY c.step), 0
      FROM counted AS c
     GROUP BY c.segment, c.place * c.piece_count / c.point_count;
END
$$
