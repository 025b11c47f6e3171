-- Weights in which two models differ, in their order: tensor, type and shape before and after, and how far the norm moved.
CREATE FUNCTION arc_halo.compare_weights(before_id uuid, after_id uuid)
RETURNS TABLE (name text, layer_path text, change text, tensor_before uuid, tensor_after uuid,
               dtype_before text, dtype_after text, shape_before bigint[], shape_after bigint[],
               nbytes_before bigint, nbytes_after bigint, norm_before double precision, norm_after double precision,
               norm_moved double precision, norm_moved_relative double precision)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    WITH weights AS (
        SELECT w.model_id, w.name, w.position, w.tensor_id, l.path, t.dtype, t.shape, t.nbytes, t.l2_norm
          FROM arc_halo.model_weights AS w
          JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
          LEFT JOIN arc_halo.transformer_layers AS l ON l.id = w.layer_id
         WHERE w.model_id IN (compare_weights.before_id, compare_weights.after_id)),
    before AS (SELECT * FROM weights WHERE weights.model_id = compare_weights.before_id),
    after AS (SELECT * FROM weights WHERE weights.model_id = compare_weights.after_id)
    SELECT coalesce(a.name, b.name),
           coalesce(a.path, b.path),
           CASE WHEN b.name IS NULL THEN 'added'
                WHEN a.name IS NULL THEN 'removed'
                WHEN b.shape <> a.shape AND b.shape[2:] = a.shape[2:] AND cardinality(b.shape) = cardinality(a.shape)
                THEN 'resized'
                WHEN b.shape <> a.shape THEN 'reshaped'
                WHEN b.dtype <> a.dtype THEN 'cast'
                ELSE 'changed' END,
           b.tensor_id,
           a.tensor_id,
           b.dtype,
           a.dtype,
           b.shape,
           a.shape,
           b.nbytes,
           a.nbytes,
           b.l2_norm,
           a.l2_norm,
           abs(a.l2_norm - b.l2_norm),
           abs(a.l2_norm - b.l2_norm) / NULLIF(b.l2_norm, 0)
      FROM before AS b
      FULL JOIN after AS a ON a.name = b.name
     WHERE a.tensor_id IS DISTINCT FROM b.tensor_id
     ORDER BY coalesce(a.position, b.position), coalesce(a.name, b.name);
END
