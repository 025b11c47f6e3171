SELECT l.id AS layer_id,
       l.model_id,
       m.name AS model_name,
       m.version,
       l.path,
       sum(t.nan_count)::bigint AS nan_count,
       sum(t.inf_count)::bigint AS inf_count,
       array_agg(w.name ORDER BY w.name) AS weights
  FROM arc_halo.transformer_layers AS l
  JOIN arc_halo.models AS m ON m.id = l.model_id
  JOIN arc_halo.model_weights AS w ON w.layer_id = l.id
  JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
 WHERE t.nan_count > 0 OR t.inf_count > 0
 GROUP BY l.id, m.id
