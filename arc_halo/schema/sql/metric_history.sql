-- A metric of a run along the line of its newest attempt or the one given: each step once, in order.
CREATE FUNCTION arc_halo.metric_history(
    training_session_id uuid, name text, scope text DEFAULT 'train', context jsonb DEFAULT '{}',
    from_attempt integer DEFAULT NULL
)
RETURNS TABLE (step bigint, epoch double precision, value double precision, recorded_at timestamptz,
               attempt_number integer)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT p.step, p.epoch, p.value, p.recorded_at, line.attempt_number
      FROM arc_halo.attempt_line(metric_history.training_session_id, metric_history.from_attempt) AS line
      JOIN arc_halo.metric_series AS s
        ON s.attempt_id = line.attempt_id
       AND s.name = metric_history.name
       AND s.scope = metric_history.scope
       AND s.context = metric_history.context
     CROSS JOIN LATERAL (
        SELECT t.step, t.epoch, t.value, t.recorded_at
          FROM arc_halo.training_metrics AS t
         WHERE t.series_id = s.id AND t.step > line.after_step AND t.step <= line.through_step
         UNION ALL
        SELECT u.step, u.epoch, u.value, u.recorded_at
          FROM arc_halo.metric_segments AS g
         CROSS JOIN LATERAL unnest(g.steps, g.epochs, g.point_values, g.recorded_times)
               AS u (step, epoch, value, recorded_at)
         -- Segments outside of the line are not unpacked.
         WHERE g.series_id = s.id AND g.last_step > line.after_step AND g.first_step <= line.through_step
           AND u.step > line.after_step AND u.step <= line.through_step
     ) AS p
     ORDER BY p.step;
END
