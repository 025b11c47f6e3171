SELECT w.model_id,
       m.name AS model_name,
       m.version AS model_version,
       COALESCE(l.layer_type, 'none') AS layer_type,
       w.category,
       count(*) AS tensor_count,
       sum(t.element_count)::bigint AS element_count,
       sum(t.nbytes)::bigint AS nbytes,
       min(t.min_value) AS min_value,
       max(t.max_value) AS max_value,
       -- In numeric: one tensor of huge values must not make the whole refresh overflow.
       (sum(t.mean::numeric * t.element_count)
        / NULLIF(sum(t.element_count) FILTER (WHERE t.mean IS NOT NULL), 0))::double precision AS mean,
       LEAST(sqrt(sum(t.l2_norm::numeric * t.l2_norm::numeric)), 1e308)::double precision AS l2_norm,
       sum(t.zero_fraction * t.element_count)
       / NULLIF(sum(t.element_count) FILTER (WHERE t.zero_fraction IS NOT NULL), 0)::double precision AS zero_fraction,
       COALESCE(sum(t.nan_count), 0)::bigint AS nan_count,
       COALESCE(sum(t.inf_count), 0)::bigint AS inf_count
  FROM arc_halo.model_weights AS w
  JOIN arc_halo.models AS m ON m.id = w.model_id
  JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
  LEFT JOIN arc_halo.transformer_layers AS l ON l.id = w.layer_id
 WHERE w.tied_to_id IS NULL
 GROUP BY w.model_id, m.name, m.version, COALESCE(l.layer_type, 'none'), w.category
