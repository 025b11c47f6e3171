WITH RECURSIVE tree AS (
    SELECT m.id AS root_id, m.id AS model_id, NULL::uuid AS parent_id, NULL::text AS kind, 0 AS depth,
           ARRAY[m.id] AS path
      FROM arc_halo.models AS m
     WHERE NOT EXISTS (SELECT FROM arc_halo.model_lineage AS l WHERE l.child_id = m.id)
    UNION ALL
    SELECT tree.root_id, l.child_id, l.parent_id, l.kind, tree.depth + 1, tree.path || l.child_id
      FROM tree
      JOIN arc_halo.model_lineage AS l ON l.parent_id = tree.model_id
     WHERE l.child_id <> ALL (tree.path))
SELECT tree.root_id,
       tree.model_id,
       tree.parent_id,
       tree.kind,
       tree.depth,
       tree.path,
       m.name,
       m.version,
       s.raw_nbytes,
       s.stored_nbytes,
       (SELECT coalesce(sum(d.stored_nbytes), 0)
          FROM (SELECT DISTINCT c.tenant_id, c.digest
                  FROM arc_halo.model_weights AS w
                  JOIN arc_halo.tensor_chunks AS c ON c.tensor_id = w.tensor_id
                 WHERE w.model_id = tree.model_id) AS used
          JOIN arc_halo.tensor_data AS d ON d.tenant_id = used.tenant_id AND d.digest = used.digest
         WHERE NOT EXISTS (
               SELECT
                 FROM arc_halo.tensor_chunks AS c
                 JOIN arc_halo.model_weights AS w ON w.tensor_id = c.tensor_id
                WHERE c.tenant_id = d.tenant_id
                  AND c.digest = d.digest
                  AND w.model_id = ANY (tree.path)
                  AND w.model_id <> tree.model_id))::bigint AS added_nbytes
  FROM tree
  JOIN arc_halo.models AS m ON m.id = tree.model_id
  JOIN arc_halo.v_model_storage AS s ON s.model_id = tree.model_id
