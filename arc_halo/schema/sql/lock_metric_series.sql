-- Locks series for a writer, in their order; returns how far each is sealed and its last step.
CREATE FUNCTION arc_halo.lock_metric_series(series_ids integer[])
RETURNS TABLE (series_id integer, sealed_through_step bigint, last_step bigint)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM arc_halo.metric_series AS s WHERE s.id = ANY (series_ids) ORDER BY s.id FOR NO KEY UPDATE;
    -- A statement of its own: its snapshot has what was committed while the first one waited.
    RETURN QUERY
    SELECT s.id, s.sealed_through_step, m.last_step
      FROM arc_halo.metric_series AS s
      LEFT JOIN arc_halo.metric_summaries AS m ON m.series_id = s.id
     WHERE s.id = ANY (series_ids);
END
$$
