-- Trigger function: points that were deleted leave the summaries of their series.
CREATE FUNCTION arc_halo.note_deleted_points() RETURNS trigger
LANGUAGE plpgsql
SET enable_hashjoin TO on
SET enable_nestloop TO off
SET enable_mergejoin TO off
AS $$
DECLARE
    changed integer[];
    gone arc_halo.metric_summaries[];
BEGIN
    -- By their ids, not joined: of the summaries of everybody only these are read.
    changed := ARRAY(SELECT DISTINCT o.series_id FROM old_points AS o);
    PERFORM FROM arc_halo.metric_summaries AS m
      WHERE m.series_id = ANY (changed)
      ORDER BY m.series_id
        FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;  -- the series themselves are gone, or will be
    END IF;
    gone := ARRAY(
        SELECT ROW(o.series_id, count(*), count(*) FILTER (WHERE o.value = 'NaN'),
                   max(o.step) FILTER (WHERE o.step = m.first_step), max(o.step) FILTER (WHERE o.step = m.last_step),
                   NULL, NULL,
                   NULL, max(o.step) FILTER (WHERE o.step = m.min_at_step),
                   NULL, max(o.step) FILTER (WHERE o.step = m.max_at_step))::arc_halo.metric_summaries
          FROM old_points AS o
          JOIN arc_halo.metric_summaries AS m ON m.series_id = o.series_id
         WHERE m.series_id = ANY (changed)
         GROUP BY o.series_id);
    PERFORM arc_halo.change_metric_summaries('{}', gone);
    RETURN NULL;
END
$$
