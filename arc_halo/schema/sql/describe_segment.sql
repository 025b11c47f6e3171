-- Trigger function: what is asked of a segment is computed from its arrays: for each 64 points, and for all where not given.
CREATE FUNCTION arc_halo.describe_segment() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    described record;
BEGIN
    SELECT ARRAY[array_agg(b.first_step ORDER BY b.n), array_agg(b.last_step ORDER BY b.n),
                 array_agg(COALESCE(b.min_at_step, b.first_step) ORDER BY b.n),
                 array_agg(COALESCE(b.max_at_step, b.first_step) ORDER BY b.n)] AS block_steps,
           ARRAY[array_agg(b.last_value ORDER BY b.n),
                 array_agg(COALESCE(b.min_value, 'NaN') ORDER BY b.n),
                 array_agg(COALESCE(b.max_value, 'NaN') ORDER BY b.n)] AS block_values,
           sum(b.point_count) AS point_count,
           sum(b.nan_count) AS nan_count,
           min(b.first_step) AS first_step,
           max(b.last_step) AS last_step,
           (array_agg(b.last_value ORDER BY b.n DESC))[1] AS last_value,
           min(b.min_value) AS min_value,
           (array_agg(b.min_at_step ORDER BY b.min_value, b.n))[1] AS min_at_step,
           max(b.max_value) AS max_value,
           (array_agg(b.max_at_step ORDER BY b.max_value DESC NULLS LAST, b.n))[1] AS max_at_step
      INTO described
      FROM (
        SELECT a.n, a.point_count, a.nan_count, a.first_step, a.last_step, a.min_value, a.max_value,
               a.block_values[a.point_count] AS last_value,
               a.block_steps[array_position(a.block_values, a.min_value)] AS min_at_step,
               a.block_steps[array_position(a.block_values, a.max_value)] AS max_at_step
          FROM (
            SELECT (p.place - 1) / 64 AS n,
                   count(*)::integer AS point_count,
                   count(*) FILTER (WHERE p.value = 'NaN') AS nan_count,
                   min(p.step) AS first_step,
                   max(p.step) AS last_step,
                   NULLIF(min(p.value), 'NaN') AS min_value,
                   max(p.value) FILTER (WHERE p.value <> 'NaN') AS max_value,
                   array_agg(p.step ORDER BY p.place) AS block_steps,
                   array_agg(p.value ORDER BY p.place) AS block_values
              FROM unnest(NEW.steps, NEW.point_values) WITH ORDINALITY AS p (step, value, place)
             GROUP BY (p.place - 1) / 64
          ) AS a
      ) AS b;
    NEW.block_steps := described.block_steps;
    NEW.block_values := described.block_values;
    IF NEW.point_count IS NULL THEN
        NEW.point_count := described.point_count;
        NEW.nan_count := described.nan_count;
        NEW.first_step := described.first_step;
        NEW.last_step := described.last_step;
        NEW.last_value := described.last_value;
        NEW.min_value := described.min_value;
        NEW.min_at_step := described.min_at_step;
        NEW.max_value := described.max_value;
        NEW.max_at_step := described.max_at_step;
    END IF;
    RETURN NEW;
END
$$
