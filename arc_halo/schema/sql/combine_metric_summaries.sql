-- One summary for each series, of summaries of disjoint parts of them.
CREATE FUNCTION arc_halo.combine_metric_summaries(parts arc_halo.metric_summaries[])
RETURNS SETOF arc_halo.metric_summaries
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT p.series_id,
           sum(p.point_count)::bigint,
           sum(p.nan_count)::bigint,
           min(p.first_step),
           max(p.last_step),
           (array_agg(p.last_value ORDER BY p.last_step DESC))[1],
           (array_agg(p.last_recorded_at ORDER BY p.last_step DESC))[1],
           min(p.min_value),
           (array_agg(p.min_at_step ORDER BY p.min_value, p.min_at_step))[1],
           max(p.max_value),
           (array_agg(p.max_at_step ORDER BY p.max_value DESC NULLS LAST, p.max_at_step))[1]
      FROM unnest(parts) AS p
     GROUP BY p.series_id;
END
