-- Summaries of what series have: of each its unsealed points, and each of its segments.
CREATE FUNCTION arc_halo.summarize_metric_parts(series_ids integer[]) RETURNS SETOF arc_halo.metric_summaries
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT s.id, p.point_count, p.nan_count, p.first_step, p.last_step, newest.value, newest.recorded_at,
           p.min_value, place.min_at_step, p.max_value, place.max_at_step
      FROM arc_halo.metric_series AS s
     CROSS JOIN LATERAL (
        SELECT count(*) AS point_count,
               count(*) FILTER (WHERE t.value = 'NaN') AS nan_count,
               min(t.step) AS first_step,
               max(t.step) AS last_step,
               NULLIF(min(t.value), 'NaN') AS min_value,
               max(t.value) FILTER (WHERE t.value <> 'NaN') AS max_value
          FROM arc_halo.training_metrics AS t
         WHERE t.series_id = s.id
     ) AS p
      JOIN arc_halo.training_metrics AS newest ON newest.series_id = s.id AND newest.step = p.last_step
     CROSS JOIN LATERAL (
        SELECT min(t.step) FILTER (WHERE t.value = p.min_value) AS min_at_step,
               min(t.step) FILTER (WHERE t.value = p.max_value) AS max_at_step
          FROM arc_halo.training_metrics AS t
         WHERE t.series_id = s.id AND (t.value = p.min_value OR t.value = p.max_value)
     ) AS place
     WHERE s.id = ANY (series_ids)
     UNION ALL
    SELECT g.series_id, g.point_count, g.nan_count, g.first_step, g.last_step, g.last_value,
           -- Of the last segment alone, so that the others' arrays stay where they are.
           CASE WHEN g.last_step = max(g.last_step) OVER (PARTITION BY g.series_id)
                THEN g.recorded_times[g.point_count] END,
           g.min_value, g.min_at_step, g.max_value, g.max_at_step
      FROM arc_halo.metric_segments AS g
     WHERE g.series_id = ANY (series_ids);
END
