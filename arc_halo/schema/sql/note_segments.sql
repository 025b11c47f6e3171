-- Trigger function: sealed points count in the summary of their series, too.
CREATE FUNCTION arc_halo.note_segments() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    added arc_halo.metric_summaries[] := '{}';
    removed arc_halo.metric_summaries[] := '{}';
BEGIN
    IF TG_OP <> 'DELETE' THEN
        added := ARRAY(
            SELECT ROW(g.series_id, g.point_count, g.nan_count, g.first_step, g.last_step, g.last_value,
                       g.recorded_times[g.point_count], g.min_value, g.min_at_step, g.max_value, g.max_at_step
                   )::arc_halo.metric_summaries
              FROM new_segments AS g);
    END IF;
    IF TG_OP <> 'INSERT' THEN
        removed := ARRAY(
            SELECT ROW(g.series_id, g.point_count, g.nan_count, g.first_step, g.last_step, NULL, NULL,
                       NULL, g.min_at_step, NULL, g.max_at_step)::arc_halo.metric_summaries
              FROM old_segments AS g);
    END IF;
    PERFORM arc_halo.change_metric_summaries(added, removed);
    RETURN NULL;
END
$$
