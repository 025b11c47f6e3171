SELECT m.id AS model_id,
       m.name,
       m.version,
       m.model_type,
       m.status,
       layers.layers_by_type,
       heads.head_count,
       weights.weight_count,
       parameters.total AS parameter_count,
       parameters.trainable AS trainable_parameter_count,
       weights.nbytes,
       stored.stored_nbytes
  FROM arc_halo.models AS m
 CROSS JOIN LATERAL (
    SELECT COALESCE(jsonb_object_agg(counted.layer_type, counted.layer_count), '{}') AS layers_by_type
      FROM (SELECT l.layer_type, count(*) AS layer_count
              FROM arc_halo.transformer_layers AS l
             WHERE l.model_id = m.id
             GROUP BY l.layer_type) AS counted
 ) AS layers
 CROSS JOIN LATERAL (
    SELECT count(*) AS head_count
      FROM arc_halo.transformer_layers AS l
      JOIN arc_halo.attention_heads AS h ON h.layer_id = l.id
     WHERE l.model_id = m.id
 ) AS heads
 CROSS JOIN LATERAL (
    SELECT count(*) AS weight_count,
           COALESCE(sum(t.nbytes) FILTER (WHERE w.tied_to_id IS NULL), 0)::bigint AS nbytes
      FROM arc_halo.model_weights AS w
      JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
     WHERE w.model_id = m.id
 ) AS weights
 CROSS JOIN LATERAL arc_halo.calculate_model_parameters(m.id) AS parameters
 CROSS JOIN LATERAL (
    SELECT COALESCE(sum(d.stored_nbytes), 0)::bigint AS stored_nbytes
      FROM arc_halo.tensor_data AS d
     WHERE (d.tenant_id, d.digest) IN (
            SELECT c.tenant_id, c.digest
              FROM arc_halo.model_weights AS w
              JOIN arc_halo.tensor_chunks AS c ON c.tensor_id = w.tensor_id
             WHERE w.model_id = m.id)
 ) AS stored
