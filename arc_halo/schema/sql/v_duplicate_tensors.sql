SELECT t.id AS tensor_id,
       t.dtype,
       t.shape,
       t.nbytes,
       count(*) AS weight_count,
       count(DISTINCT w.model_id) AS model_count,
       (t.nbytes * (count(*) - 1))::bigint AS saved_nbytes,
       array_agg(m.name || '@' || m.version || ' ' || w.name ORDER BY m.name, m.version, w.name) AS used_as
  FROM arc_halo.tensor_metadata AS t
  JOIN arc_halo.model_weights AS w ON w.tensor_id = t.id
  JOIN arc_halo.models AS m ON m.id = w.model_id
 GROUP BY t.id
HAVING count(*) > 1
