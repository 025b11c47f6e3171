-- UNION without ALL in the first step: a model that many ways lead to is followed once, and hand-made circles end.
WITH RECURSIVE descent AS (
    SELECT m.id AS root_id, m.id AS model_id
      FROM arc_halo.models AS m
     WHERE NOT EXISTS (SELECT FROM arc_halo.model_lineage AS l WHERE l.child_id = m.id)
     UNION
    SELECT descent.root_id, l.child_id
      FROM descent
      JOIN arc_halo.model_lineage AS l ON l.parent_id = descent.model_id),
first_parent AS (
    SELECT DISTINCT ON (descent.root_id, l.child_id) descent.root_id, l.child_id, l.parent_id, l.kind
      FROM descent
      JOIN arc_halo.model_lineage AS l ON l.parent_id = descent.model_id
     ORDER BY descent.root_id, l.child_id, l.id),
tree AS (
    SELECT descent.root_id, descent.model_id, NULL::uuid AS parent_id, NULL::text AS kind, 0 AS depth,
           ARRAY[descent.model_id] AS path
      FROM descent
     WHERE descent.model_id = descent.root_id
     UNION ALL
    SELECT tree.root_id, f.child_id, f.parent_id, f.kind, tree.depth + 1, tree.path || f.child_id
      FROM tree
      JOIN first_parent AS f ON f.root_id = tree.root_id AND f.parent_id = tree.model_id)
SELECT tree.root_id,
       tree.model_id,
       tree.parent_id,
       tree.kind,
       tree.depth,
       tree.path,
       ARRAY(SELECT DISTINCT l.parent_id
               FROM arc_halo.model_lineage AS l
              WHERE l.child_id = tree.model_id
                AND l.parent_id <> tree.parent_id
              ORDER BY l.parent_id) AS other_parent_ids,
       s.name,
       s.version,
       s.raw_nbytes,
       s.stored_nbytes,
       added.nbytes AS added_nbytes,
       s.raw_nbytes - added.nbytes AS saved_nbytes
  FROM tree
  JOIN arc_halo.v_model_storage AS s ON s.model_id = tree.model_id
 CROSS JOIN LATERAL (
        SELECT array_agg(e.model_id) AS model_ids
          FROM tree AS e
         WHERE e.root_id = tree.root_id
           AND e.path < tree.path) AS earlier
 CROSS JOIN LATERAL (
        SELECT coalesce(sum(d.stored_nbytes), 0)::bigint AS nbytes
          FROM (SELECT DISTINCT c.tenant_id, c.digest
                  FROM arc_halo.model_weights AS w
                  JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
                  JOIN arc_halo.tensor_chunks AS c ON c.tenant_id = t.tenant_id AND c.tensor_id = t.id
                 WHERE w.model_id = tree.model_id) AS used
          JOIN arc_halo.tensor_data AS d ON d.tenant_id = used.tenant_id AND d.digest = used.digest
         WHERE NOT EXISTS (
               SELECT
                 FROM arc_halo.tensor_chunks AS c
                 JOIN arc_halo.model_weights AS w ON w.tensor_id = c.tensor_id
                WHERE c.tenant_id = d.tenant_id
                  AND c.digest = d.digest
                  AND w.model_id = ANY (earlier.model_ids))) AS added
