-- Locks series for a writer; returns how far each is sealed, above which step points may be copied, and where to.
CREATE FUNCTION arc_halo.lock_metric_series(series_ids integer[])
RETURNS TABLE (series_id integer, sealed_through_step bigint, copy_above bigint, partition integer)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM arc_halo.metric_series AS s WHERE s.id = ANY (series_ids) ORDER BY s.id FOR NO KEY UPDATE;
    -- A statement of its own: its snapshot has what was committed while the first one waited. Where a snapshot lasts for
    -- the whole transaction a step may be there that it does not show, row-level security forbids COPY, and a partition may
    -- be closed to who may write to the table: null.
    RETURN QUERY
    SELECT s.id,
           COALESCE(s.sealed_through_step, -1),
           CASE WHEN pg_catalog.current_setting('transaction_isolation') = 'read committed'
                 AND NOT pg_catalog.row_security_active('arc_halo.training_metrics'::pg_catalog.regclass)
                 AND pg_catalog.has_table_privilege(format('arc_halo.training_metrics_%s', p.remainder), 'INSERT')
                THEN COALESCE(m.last_step, -1) END,
           p.remainder
      FROM arc_halo.metric_series AS s
      LEFT JOIN arc_halo.metric_summaries AS m ON m.series_id = s.id
      JOIN generate_series(0, 3) AS p (remainder)
        ON pg_catalog.satisfies_hash_partition('arc_halo.training_metrics'::pg_catalog.regclass, 4, p.remainder, s.id)
     WHERE s.id = ANY (series_ids);
END
$$
