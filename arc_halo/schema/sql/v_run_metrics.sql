SELECT s.id AS training_session_id,
       n.scope || '/' || n.name || COALESCE(' ' || NULLIF(n.context, '{}')::text, '') AS metric,
       n.name,
       n.scope,
       n.context,
       max(n.goal) AS goal,
       sum(part.point_count)::bigint AS point_count,
       sum(part.nan_count)::bigint AS nan_count,
       min(part.first_step) AS first_step,
       max(part.last_step) AS last_step,
       -- Arrays compare element by element, so min and max find the step along with the value; the earliest of equals.
       (max(ARRAY[part.last_step, part.last_value]))[2] AS last_value,
       max(part.last_recorded_at) AS last_recorded_at,
       min(part.min_value) AS min_value,
       (min(ARRAY[part.min_value, part.min_at_step]) FILTER (WHERE part.min_at_step IS NOT NULL))[2]::bigint
           AS min_at_step,
       max(part.max_value) AS max_value,
       (min(ARRAY[-part.max_value, part.max_at_step]) FILTER (WHERE part.max_at_step IS NOT NULL))[2]::bigint
           AS max_at_step,
       CASE max(n.goal) WHEN 'minimize' THEN min(part.min_value) WHEN 'maximize' THEN max(part.max_value) END AS best_value
  FROM arc_halo.training_sessions AS s
 CROSS JOIN LATERAL arc_halo.attempt_line(s.id) AS line
  JOIN arc_halo.metric_series AS n ON n.attempt_id = line.attempt_id
  JOIN arc_halo.metric_summaries AS m
    ON m.series_id = n.id AND m.last_step > line.after_step AND m.first_step <= line.through_step
 CROSS JOIN LATERAL (
    -- Of a series that counts as a whole its summary is enough; of one that a fork cuts, points are read.
    SELECT m.point_count, m.nan_count, m.first_step, m.last_step, m.last_value, m.last_recorded_at, m.min_value,
           m.min_at_step, m.max_value, m.max_at_step
     WHERE m.first_step > line.after_step AND m.last_step <= line.through_step
     UNION ALL
    SELECT count(*),
           count(*) FILTER (WHERE p.value = 'NaN'),
           min(p.step),
           max(p.step),
           (max(ARRAY[p.step, p.value]))[2],
           max(p.recorded_at),
           NULLIF(min(p.value), 'NaN'),
           (min(ARRAY[p.value, p.step]) FILTER (WHERE p.value <> 'NaN'))[2]::bigint,
           max(p.value) FILTER (WHERE p.value <> 'NaN'),
           (min(ARRAY[-p.value, p.step]) FILTER (WHERE p.value <> 'NaN'))[2]::bigint
      FROM arc_halo.v_training_points AS p
     WHERE p.series_id = n.id AND p.step > line.after_step AND p.step <= line.through_step
       AND NOT (m.first_step > line.after_step AND m.last_step <= line.through_step)
    HAVING count(*) > 0
 ) AS part
 GROUP BY s.id, n.name, n.scope, n.context
