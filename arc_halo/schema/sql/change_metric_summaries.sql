-- Brings summaries up to date with points that were added, and with points that were removed and where the landmarks were.
CREATE FUNCTION arc_halo.change_metric_summaries(
    added arc_halo.metric_summaries[], removed arc_halo.metric_summaries[] DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
-- Whoever calls it has turned this off for joins with many points; here few summaries are found among many.
SET enable_nestloop TO on
AS $$
DECLARE
    ended integer[];
    stale integer[];
BEGIN
    -- Counts go by differences, and landmarks by what is there: one statement may fire several triggers, and each of
    -- them sees the rows that all of them are told of.
    IF cardinality(removed) > 0 THEN
        -- Everybody takes the rows in this order, so nobody waits for one another.
        PERFORM FROM arc_halo.metric_summaries AS m
          WHERE m.series_id IN (SELECT r.series_id FROM unnest(removed) AS r
                                UNION ALL SELECT a.series_id FROM unnest(added) AS a)
          ORDER BY m.series_id
            FOR NO KEY UPDATE;
        UPDATE arc_halo.metric_summaries AS m
           SET point_count = m.point_count - r.point_count, nan_count = m.nan_count - r.nan_count
          FROM (SELECT d.series_id, sum(d.point_count) AS point_count, sum(d.nan_count) AS nan_count
                  FROM unnest(removed) AS d GROUP BY d.series_id) AS r
         WHERE m.series_id = r.series_id;
        -- A landmark that is gone is looked for, unless what was added is one as it was: the first and the last by
        -- the index, the least and the greatest among all points.
        ended := ARRAY(
            SELECT DISTINCT m.series_id
              FROM unnest(removed) AS r
              JOIN arc_halo.metric_summaries AS m ON m.series_id = r.series_id
              LEFT JOIN unnest(added) AS a ON a.series_id = m.series_id
             WHERE r.first_step = m.first_step AND (a.first_step <= m.first_step) IS NOT TRUE
                OR r.last_step = m.last_step AND (a.last_step >= m.last_step) IS NOT TRUE);
        stale := ARRAY(
            SELECT DISTINCT m.series_id
              FROM unnest(removed) AS r
              JOIN arc_halo.metric_summaries AS m ON m.series_id = r.series_id
              LEFT JOIN unnest(added) AS a ON a.series_id = m.series_id
             WHERE r.min_at_step = m.min_at_step
                   AND (a.min_value < m.min_value
                        OR a.min_value = m.min_value AND a.min_at_step <= m.min_at_step) IS NOT TRUE
                OR r.max_at_step = m.max_at_step
                   AND (a.max_value > m.max_value
                        OR a.max_value = m.max_value AND a.max_at_step <= m.max_at_step) IS NOT TRUE);
        IF cardinality(ended) > 0 THEN
            UPDATE arc_halo.metric_summaries AS m
               SET first_step = COALESCE(sealed_first.step, first.step),
                   last_step = COALESCE(last.step, sealed_last.step),
                   last_value = COALESCE(last.value, sealed_last.value),
                   last_recorded_at = COALESCE(last.recorded_at, sealed_last.recorded_at)
              FROM unnest(ended) AS series (id)
              -- What is sealed lies below what is not.
              LEFT JOIN LATERAL (
                SELECT g.first_step AS step
                  FROM arc_halo.metric_segments AS g
                 WHERE g.series_id = series.id ORDER BY g.first_step LIMIT 1
              ) AS sealed_first ON true
              LEFT JOIN LATERAL (
                SELECT g.last_step AS step, g.last_value AS value, g.recorded_times[g.point_count] AS recorded_at
                  FROM arc_halo.metric_segments AS g
                 WHERE g.series_id = series.id ORDER BY g.first_step DESC LIMIT 1
              ) AS sealed_last ON true
              LEFT JOIN LATERAL (
                SELECT t.step FROM arc_halo.training_metrics AS t
                 WHERE t.series_id = series.id ORDER BY t.step LIMIT 1
              ) AS first ON true
              LEFT JOIN LATERAL (
                SELECT t.step, t.value, t.recorded_at
                  FROM arc_halo.training_metrics AS t
                 WHERE t.series_id = series.id ORDER BY t.step DESC LIMIT 1
              ) AS last ON true
             WHERE m.series_id = series.id;
        END IF;
        IF cardinality(stale) > 0 THEN
            UPDATE arc_halo.metric_summaries AS m
               SET min_value = low.value, min_at_step = low.step, max_value = high.value, max_at_step = high.step
              FROM unnest(stale) AS series (id)
             CROSS JOIN LATERAL (
                SELECT min(t.value) AS min_value, max(t.value) FILTER (WHERE t.value <> 'NaN') AS max_value
                  FROM arc_halo.training_metrics AS t
                 WHERE t.series_id = series.id
             ) AS single
              LEFT JOIN LATERAL (
                SELECT every.value, every.step
                  FROM (
                    (SELECT t.value, t.step
                       FROM arc_halo.training_metrics AS t
                      WHERE t.series_id = series.id AND t.value = single.min_value ORDER BY t.step LIMIT 1)
                     UNION ALL
                    SELECT g.min_value, g.min_at_step FROM arc_halo.metric_segments AS g WHERE g.series_id = series.id
                  ) AS every (value, step)
                 WHERE every.value <> 'NaN'
                 ORDER BY every.value, every.step LIMIT 1
              ) AS low ON true
              LEFT JOIN LATERAL (
                SELECT every.value, every.step
                  FROM (
                    (SELECT t.value, t.step
                       FROM arc_halo.training_metrics AS t
                      WHERE t.series_id = series.id AND t.value = single.max_value ORDER BY t.step LIMIT 1)
                     UNION ALL
                    SELECT g.max_value, g.max_at_step FROM arc_halo.metric_segments AS g WHERE g.series_id = series.id
                  ) AS every (value, step)
                 WHERE every.value <> 'NaN'
                 ORDER BY every.value DESC, every.step LIMIT 1
              ) AS high ON true
             WHERE m.series_id = series.id;
        END IF;
    END IF;

    INSERT INTO arc_halo.metric_summaries AS kept
           (series_id, point_count, nan_count, first_step, last_step, last_value, last_recorded_at,
            min_value, min_at_step, max_value, max_at_step)
    SELECT c.series_id, c.point_count, c.nan_count, c.first_step, c.last_step, c.last_value, c.last_recorded_at,
           c.min_value, c.min_at_step, c.max_value, c.max_at_step
      FROM arc_halo.combine_metric_summaries(added) AS c
     ORDER BY c.series_id
        ON CONFLICT (series_id) DO UPDATE
       SET point_count = kept.point_count + excluded.point_count,
           nan_count = kept.nan_count + excluded.nan_count,
           first_step = LEAST(kept.first_step, excluded.first_step),
           last_step = GREATEST(kept.last_step, excluded.last_step),
           last_value = CASE WHEN kept.last_step > excluded.last_step THEN kept.last_value
                             ELSE excluded.last_value END,
           last_recorded_at = CASE WHEN kept.last_step > excluded.last_step THEN kept.last_recorded_at
                                   ELSE excluded.last_recorded_at END,
           min_value = LEAST(kept.min_value, excluded.min_value),
           min_at_step = CASE WHEN kept.min_value < excluded.min_value THEN kept.min_at_step
                              WHEN kept.min_value = excluded.min_value
                              THEN LEAST(kept.min_at_step, excluded.min_at_step)
                              ELSE COALESCE(excluded.min_at_step, kept.min_at_step) END,
           max_value = GREATEST(kept.max_value, excluded.max_value),
           max_at_step = CASE WHEN kept.max_value > excluded.max_value THEN kept.max_at_step
                              WHEN kept.max_value = excluded.max_value
                              THEN LEAST(kept.max_at_step, excluded.max_at_step)
                              ELSE COALESCE(excluded.max_at_step, kept.max_at_step) END;
END
$$
