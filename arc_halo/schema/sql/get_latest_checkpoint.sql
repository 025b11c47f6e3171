-- The checkpoint of a model that was published last, in whichever of its runs; no row if there is none.
CREATE FUNCTION arc_halo.get_latest_checkpoint(model_id uuid) RETURNS SETOF arc_halo.model_checkpoints
LANGUAGE sql STABLE PARALLEL SAFE ROWS 1
BEGIN ATOMIC
    -- The whole row: a list of columns would be fixed here and disagree with the table once that gains one.
    SELECT c
      FROM arc_halo.model_checkpoints AS c
      JOIN arc_halo.training_sessions AS s ON s.id = c.training_session_id
     WHERE s.model_id = get_latest_checkpoint.model_id
       AND c.status = 'published'
     ORDER BY c.published_at DESC, c.id DESC
     LIMIT 1;
END
