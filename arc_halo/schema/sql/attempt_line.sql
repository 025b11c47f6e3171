-- The attempts of a run whose points count, from the newest or the one given to its oldest ancestor, and of each which steps.
CREATE FUNCTION arc_halo.attempt_line(training_session_id uuid, from_attempt integer DEFAULT NULL)
RETURNS TABLE (attempt_id uuid, attempt_number integer, after_step bigint, through_step bigint)
LANGUAGE sql STABLE PARALLEL SAFE ROWS 4
BEGIN ATOMIC
    WITH RECURSIVE line AS (
        SELECT a.id, a.attempt_number, a.parent_number, COALESCE(a.fork_step, -1) AS after_step,
               9223372036854775807 AS through_step
          FROM arc_halo.training_attempts AS a
         WHERE a.training_session_id = attempt_line.training_session_id
           AND a.attempt_number = COALESCE(
                attempt_line.from_attempt,
                (SELECT max(n.attempt_number) FROM arc_halo.training_attempts AS n
                  WHERE n.training_session_id = attempt_line.training_session_id))
         UNION ALL
        -- A fork may lie before that of its parent: then nothing of the parent counts.
        SELECT p.id, p.attempt_number, p.parent_number, COALESCE(p.fork_step, -1),
               LEAST(line.after_step, line.through_step)
          FROM line
          JOIN arc_halo.training_attempts AS p
            ON p.training_session_id = attempt_line.training_session_id AND p.attempt_number = line.parent_number
    )
    SELECT line.id, line.attempt_number, line.after_step, line.through_step FROM line;
END
