-- Trigger function: sealed points count in the summary of their series, too.
CREATE FUNCTION arc_halo.note_segments() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        PERFORM arc_halo.add_to_metric_summaries(ARRAY(
            SELECT ROW(g.series_id, g.point_count, g.nan_count, g.first_step, g.last_step, g.last_value,
                       g.recorded_times[g.point_count], g.min_value, g.min_at_step, g.max_value, g.max_at_step
                   )::arc_halo.metric_summaries
              FROM new_segments AS g));
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM arc_halo.summarize_metric_series(ARRAY(SELECT DISTINCT g.series_id FROM old_segments AS g));
    ELSE
        PERFORM arc_halo.summarize_metric_series(ARRAY(
            SELECT g.series_id FROM old_segments AS g UNION SELECT g.series_id FROM new_segments AS g));
    END IF;
    RETURN NULL;
END
$$
