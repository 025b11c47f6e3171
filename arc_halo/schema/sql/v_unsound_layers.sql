SELECT w.model_id,
       l.id AS layer_id,
       m.name AS model_name,
       m.version,
       l.path,
       l.layer_type,
       sum(t.nan_count)::bigint AS nan_count,
       sum(t.inf_count)::bigint AS inf_count,
       array_agg(w.name ORDER BY w.name) AS weights
  FROM arc_halo.tensor_metadata AS t
  JOIN arc_halo.model_weights AS w ON w.tensor_id = t.id
  JOIN arc_halo.models AS m ON m.id = w.model_id
  LEFT JOIN arc_halo.transformer_layers AS l ON l.id = w.layer_id
 WHERE t.nan_count > 0 OR t.inf_count > 0
 GROUP BY w.model_id, m.id, l.id
