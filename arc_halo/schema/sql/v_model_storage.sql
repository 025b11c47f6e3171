SELECT m.id AS model_id,
       m.name,
       m.version,
       coalesce(w.raw_nbytes, 0)::bigint AS raw_nbytes,
       coalesce(c.chunk_count, 0) AS chunk_count,
       coalesce(c.distinct_nbytes, 0)::bigint AS distinct_nbytes,
       coalesce(c.stored_nbytes, 0)::bigint AS stored_nbytes,
       coalesce(c.shared_nbytes, 0)::bigint AS shared_nbytes,
       (coalesce(c.stored_nbytes, 0) - coalesce(c.shared_nbytes, 0))::bigint AS own_nbytes,
       coalesce(c.blob_nbytes, 0)::bigint AS blob_nbytes,
       coalesce(c.delta_nbytes, 0)::bigint AS delta_nbytes,
       coalesce(c.max_depth, 0) AS max_depth
  FROM arc_halo.models AS m
  LEFT JOIN LATERAL (
        SELECT sum(t.nbytes) AS raw_nbytes
          FROM arc_halo.model_weights AS w
          JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
         WHERE w.model_id = m.id) AS w ON true
  LEFT JOIN LATERAL (
        SELECT count(*) AS chunk_count,
               sum(d.raw_nbytes) AS distinct_nbytes,
               sum(d.stored_nbytes) AS stored_nbytes,
               sum(d.stored_nbytes) FILTER (WHERE EXISTS (
                    SELECT
                      FROM arc_halo.tensor_chunks AS c
                      JOIN arc_halo.model_weights AS o ON o.tensor_id = c.tensor_id
                     WHERE c.tenant_id = d.tenant_id
                       AND c.digest = d.digest
                       AND o.model_id <> m.id)) AS shared_nbytes,
               sum(d.stored_nbytes) FILTER (WHERE d.blob_location IS NOT NULL) AS blob_nbytes,
               sum(d.stored_nbytes) FILTER (WHERE d.base_digest IS NOT NULL) AS delta_nbytes,
               max(d.depth) AS max_depth
          FROM (SELECT DISTINCT c.tenant_id, c.digest
                  FROM arc_halo.model_weights AS w
                  JOIN arc_halo.tensor_chunks AS c ON c.tensor_id = w.tensor_id
                 WHERE w.model_id = m.id) AS used
          JOIN arc_halo.tensor_data AS d ON d.tenant_id = used.tenant_id AND d.digest = used.digest) AS c ON true
