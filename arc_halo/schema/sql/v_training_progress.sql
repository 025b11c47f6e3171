SELECT s.id AS training_session_id,
       s.name,
       s.model_id,
       m.name AS model_name,
       m.version AS model_version,
       s.status,
       a.attempt_number,
       s.current_epoch,
       s.total_epochs,
       s.current_step,
       s.total_steps,
       progress.metrics,
       CASE a.status WHEN 'running' THEN extract(epoch FROM statement_timestamp() - a.heartbeat_at)::double precision
       END AS heartbeat_age_seconds,
       pace.steps_per_second,
       CASE s.status WHEN 'running' THEN GREATEST(s.total_steps - s.current_step, 0) / NULLIF(pace.steps_per_second, 0)
       END AS remaining_seconds
  FROM arc_halo.training_sessions AS s
  JOIN arc_halo.models AS m ON m.id = s.model_id
  LEFT JOIN LATERAL (
    SELECT t.attempt_number, t.fork_step, t.status, t.started_at, t.heartbeat_at
      FROM arc_halo.training_attempts AS t
     WHERE t.training_session_id = s.id
     ORDER BY t.attempt_number DESC
     LIMIT 1
  ) AS a ON true
 CROSS JOIN LATERAL (
    SELECT (s.current_step - COALESCE(a.fork_step, 0))
           / NULLIF(extract(epoch FROM a.heartbeat_at - a.started_at), 0)::double precision AS steps_per_second
 ) AS pace
 CROSS JOIN LATERAL (
    WITH series AS (
        -- Of a series that counts as a whole its summary is enough; of one that a fork cuts, points are read.
        SELECT n.id, n.name, n.scope, n.context, n.goal, line.after_step, line.through_step, m.last_step, m.last_value,
               m.min_value, m.min_at_step, m.max_value, m.max_at_step,
               m.first_step > line.after_step AND m.last_step <= line.through_step AS counts_whole
          FROM arc_halo.attempt_line(s.id) AS line
          JOIN arc_halo.metric_series AS n ON n.attempt_id = line.attempt_id AND n.goal IS NOT NULL
          JOIN arc_halo.metric_summaries AS m ON m.series_id = n.id
         WHERE m.last_step > line.after_step AND m.first_step <= line.through_step
    ), points AS (
        SELECT n.name, n.scope, n.context, n.goal, p.step, p.value
          FROM series AS n
         CROSS JOIN LATERAL (VALUES (n.last_step, n.last_value), (n.min_at_step, n.min_value),
                                    (n.max_at_step, n.max_value)) AS p (step, value)
         WHERE n.counts_whole AND p.step IS NOT NULL
        UNION ALL
        SELECT n.name, n.scope, n.context, n.goal, p.step, p.value
          FROM series AS n
          JOIN arc_halo.training_metrics AS p ON p.series_id = n.id
         WHERE NOT n.counts_whole AND p.step > n.after_step AND p.step <= n.through_step
        UNION ALL
        SELECT n.name, n.scope, n.context, n.goal, p.step, p.value
          FROM series AS n
          JOIN arc_halo.metric_segments AS g ON g.series_id = n.id
         CROSS JOIN LATERAL (SELECT g.first_step > n.after_step AND g.last_step <= n.through_step AS counts_whole) AS cut
         CROSS JOIN LATERAL unnest(
            CASE WHEN cut.counts_whole THEN ARRAY[g.min_at_step, g.max_at_step, g.last_step] ELSE g.steps END,
            CASE WHEN cut.counts_whole THEN ARRAY[g.min_value, g.max_value, g.last_value] ELSE g.point_values END
         ) AS p (step, value)
         WHERE NOT n.counts_whole AND g.last_step > n.after_step AND g.first_step <= n.through_step
           AND p.step > n.after_step AND p.step <= n.through_step
    ), summaries AS (
        -- Arrays compare element by element, so min and max find the step along with the value; the earliest of equals.
        SELECT points.scope || '/' || points.name || COALESCE(' ' || NULLIF(points.context, '{}')::text, '') AS metric,
               points.goal,
               max(ARRAY[points.step, points.value]) AS newest,
               min(ARRAY[CASE points.goal WHEN 'minimize' THEN points.value ELSE -points.value END, points.step])
                   FILTER (WHERE points.value <> 'NaN') AS best
          FROM points
         GROUP BY points.name, points.scope, points.context, points.goal
    )
    SELECT COALESCE(
               jsonb_object_agg(
                   summaries.metric,
                   jsonb_build_object(
                       'goal', summaries.goal,
                       'last', summaries.newest[2],
                       'last_step', summaries.newest[1]::bigint,
                       'best', CASE summaries.goal WHEN 'minimize' THEN summaries.best[1] ELSE -summaries.best[1] END,
                       'best_step', summaries.best[2]::bigint
                   )
               ),
               '{}'
           ) AS metrics
      FROM summaries
 ) AS progress
