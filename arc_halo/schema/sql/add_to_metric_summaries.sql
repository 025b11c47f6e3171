-- Adds summaries of disjoint parts of series to those that are kept; several parts may be of one series.
CREATE FUNCTION arc_halo.add_to_metric_summaries(parts arc_halo.metric_summaries[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO arc_halo.metric_summaries AS kept
           (series_id, point_count, nan_count, first_step, last_step, last_value, last_recorded_at,
            min_value, min_at_step, max_value, max_at_step)
    SELECT p.series_id,
           sum(p.point_count),
           sum(p.nan_count),
           min(p.first_step),
           max(p.last_step),
           (array_agg(p.last_value ORDER BY p.last_step DESC))[1],
           (array_agg(p.last_recorded_at ORDER BY p.last_step DESC))[1],
           min(p.min_value),
           (array_agg(p.min_at_step ORDER BY p.min_value, p.min_at_step))[1],
           max(p.max_value),
           (array_agg(p.max_at_step ORDER BY p.max_value DESC NULLS LAST, p.max_at_step))[1]
      FROM unnest(parts) AS p
     GROUP BY p.series_id
     -- Everybody takes the rows in this order, so nobody waits for one another.
     ORDER BY p.series_id
        ON CONFLICT (series_id) DO UPDATE
       SET point_count = kept.point_count + excluded.point_count,
           nan_count = kept.nan_count + excluded.nan_count,
           first_step = LEAST(kept.first_step, excluded.first_step),
           last_step = GREATEST(kept.last_step, excluded.last_step),
           last_value = CASE WHEN kept.last_step >= excluded.last_step THEN kept.last_value
                             ELSE excluded.last_value END,
           last_recorded_at = CASE WHEN kept.last_step >= excluded.last_step THEN kept.last_recorded_at
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
