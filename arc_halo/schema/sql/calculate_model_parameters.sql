-- Parameters of a model, all and trainable ones: tied weights count once, buffers not at all.
CREATE FUNCTION arc_halo.calculate_model_parameters(model_id uuid) RETURNS TABLE (total bigint, trainable bigint)
LANGUAGE sql STABLE PARALLEL SAFE ROWS 1
BEGIN ATOMIC
    SELECT COALESCE(sum(t.element_count), 0)::bigint,
           COALESCE(sum(t.element_count) FILTER (WHERE w.is_trainable), 0)::bigint
      FROM arc_halo.model_weights AS w
      JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
     WHERE w.model_id = calculate_model_parameters.model_id
       AND w.tied_to_id IS NULL
       AND w.category <> 'buffer';
END
