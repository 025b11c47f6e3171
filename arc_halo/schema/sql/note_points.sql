-- Trigger function: written points need a series and a step that is not sealed; what they amount to goes into its summary.
CREATE FUNCTION arc_halo.note_points() RETURNS trigger
LANGUAGE plpgsql
-- The plan is made for the first statement of a session, of one point perhaps, and kept for one of a million.
SET enable_hashjoin TO on
SET enable_nestloop TO off
SET enable_mergejoin TO off
AS $$
DECLARE
    written arc_halo.metric_summaries[];
    changed integer[];
    replaced arc_halo.metric_summaries[];
    refused record;
BEGIN
    WITH gathered AS MATERIALIZED (
        SELECT p.series_id,
               count(*) AS point_count,
               count(*) FILTER (WHERE p.value = 'NaN') AS nan_count,
               min(p.step) AS first_step,
               max(p.step) AS last_step,
               NULLIF(min(p.value), 'NaN') AS min_value,
               max(p.value) FILTER (WHERE p.value <> 'NaN') AS max_value
          FROM new_points AS p
         GROUP BY p.series_id
    ), placed AS (
        SELECT g.series_id,
               min(p.step) FILTER (WHERE p.value = g.min_value) AS min_at_step,
               min(p.step) FILTER (WHERE p.value = g.max_value) AS max_at_step,
               max(p.value) FILTER (WHERE p.step = g.last_step) AS last_value,
               max(p.recorded_at) FILTER (WHERE p.step = g.last_step) AS last_recorded_at
          FROM gathered AS g
          JOIN new_points AS p ON p.series_id = g.series_id
         WHERE p.value = g.min_value OR p.value = g.max_value OR p.step = g.last_step
         GROUP BY g.series_id
    )
    SELECT array_agg(
               ROW(g.series_id, g.point_count, g.nan_count, g.first_step, g.last_step, p.last_value, p.last_recorded_at,
                   g.min_value, p.min_at_step, g.max_value, p.max_at_step)::arc_halo.metric_summaries
               ORDER BY g.series_id)
      INTO written
      FROM gathered AS g
      JOIN placed AS p ON p.series_id = g.series_id;

    IF written IS NULL THEN
        RETURN NULL;
    END IF;

    SELECT w.series_id, w.first_step, series.id, series.sealed_through_step
      INTO refused
      FROM unnest(written) AS w
      LEFT JOIN LATERAL (
        SELECT s.id, s.sealed_through_step FROM arc_halo.metric_series AS s WHERE s.id = w.series_id FOR KEY SHARE
      ) AS series ON true
     WHERE series.id IS NULL OR w.first_step <= series.sealed_through_step
     LIMIT 1;
    IF refused.series_id IS NOT NULL AND refused.id IS NULL THEN
        RAISE EXCEPTION 'there is no metric series %', refused.series_id
            USING ERRCODE = 'foreign_key_violation', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME,
                  CONSTRAINT = 'fk_training_metrics_series_id';
    ELSIF refused.series_id IS NOT NULL THEN
        RAISE EXCEPTION 'metric series % is sealed through step %, and step % is not above it',
                        refused.series_id, refused.sealed_through_step, refused.first_step
            USING ERRCODE = 'check_violation', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME,
                  CONSTRAINT = 'training_metrics_sealed',
                  HINT = 'Write it by arc_halo.write_points(), or unseal the series by arc_halo.unseal_series().';
    END IF;

    IF TG_OP = 'UPDATE' THEN
        changed := ARRAY(SELECT DISTINCT o.series_id FROM old_points AS o);
        PERFORM FROM arc_halo.metric_summaries AS m
          WHERE m.series_id = ANY (changed)
          ORDER BY m.series_id
            FOR NO KEY UPDATE;
        replaced := ARRAY(
            SELECT ROW(o.series_id, count(*), count(*) FILTER (WHERE o.value = 'NaN'),
                       max(o.step) FILTER (WHERE o.step = m.first_step),
                       max(o.step) FILTER (WHERE o.step = m.last_step), NULL, NULL,
                       NULL, max(o.step) FILTER (WHERE o.step = m.min_at_step),
                       NULL, max(o.step) FILTER (WHERE o.step = m.max_at_step))::arc_halo.metric_summaries
              FROM old_points AS o
              JOIN arc_halo.metric_summaries AS m ON m.series_id = o.series_id
             WHERE m.series_id = ANY (changed)
             GROUP BY o.series_id);
    END IF;
    PERFORM arc_halo.change_metric_summaries(written, replaced);
    RETURN NULL;
END
$$
