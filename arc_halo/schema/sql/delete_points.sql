-- Deletes the points of stretches of steps that are not sealed, each found by the index; refused if they are not so many.
CREATE FUNCTION arc_halo.delete_points(
    series_ids integer[], first_steps bigint[], last_steps bigint[], expected_count bigint
) RETURNS void
LANGUAGE plpgsql
-- Joined by the series alone, each stretch would be compared with every point of its series.
SET enable_hashjoin TO off
SET enable_mergejoin TO off
AS $$
DECLARE
    deleted_count bigint;
BEGIN
    DELETE FROM arc_halo.training_metrics AS t
     USING unnest(series_ids, first_steps, last_steps) AS g (series_id, first_step, last_step)
     WHERE t.series_id = g.series_id AND t.step BETWEEN g.first_step AND g.last_step;
    GET DIAGNOSTICS deleted_count = ROW_COUNT;
    IF deleted_count <> expected_count THEN
        RAISE EXCEPTION 'of % points to replace there are %', expected_count, deleted_count
            USING ERRCODE = 'serialization_failure',
                  HINT = 'Somebody has written to the same series by a statement of its own: run the transaction again.';
    END IF;
END
$$
