SELECT m.id AS model_id,
       m.name,
       m.version,
       w.raw_nbytes,
       c.chunk_count,
       c.distinct_nbytes,
       c.stored_nbytes,
       c.shared_nbytes,
       c.stored_nbytes - c.shared_nbytes AS own_nbytes,
       c.stored_nbytes - c.blob_nbytes AS database_nbytes,
       c.blob_nbytes,
       c.delta_count,
       c.delta_nbytes,
       c.base_nbytes,
       c.max_depth,
       c.stored_nbytes::double precision / NULLIF(w.raw_nbytes, 0) AS ratio
  FROM arc_halo.models AS m
 CROSS JOIN LATERAL (
        SELECT coalesce(sum(t.nbytes), 0)::bigint AS raw_nbytes
          FROM arc_halo.model_weights AS w
          JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
         WHERE w.model_id = m.id) AS w
 CROSS JOIN LATERAL (
        WITH RECURSIVE used AS MATERIALIZED (
            SELECT d.tenant_id, d.digest, d.raw_nbytes, d.stored_nbytes, d.base_digest, d.depth, d.blob_location
              FROM (SELECT DISTINCT c.tenant_id, c.digest
                      FROM arc_halo.model_weights AS w
                      JOIN arc_halo.tensor_metadata AS t ON t.id = w.tensor_id
                      JOIN arc_halo.tensor_chunks AS c ON c.tenant_id = t.tenant_id AND c.tensor_id = t.id
                     WHERE w.model_id = m.id) AS distinct_chunks
              JOIN arc_halo.tensor_data AS d
                ON d.tenant_id = distinct_chunks.tenant_id AND d.digest = distinct_chunks.digest),
        bases AS (
            SELECT used.tenant_id, used.base_digest AS digest
              FROM used
             WHERE used.base_digest IS NOT NULL
             UNION
            SELECT d.tenant_id, d.base_digest
              FROM bases
              JOIN arc_halo.tensor_data AS d ON d.tenant_id = bases.tenant_id AND d.digest = bases.digest
             WHERE d.base_digest IS NOT NULL)
        SELECT count(*) AS chunk_count,
               coalesce(sum(used.raw_nbytes), 0)::bigint AS distinct_nbytes,
               coalesce(sum(used.stored_nbytes), 0)::bigint AS stored_nbytes,
               coalesce(sum(used.stored_nbytes) FILTER (WHERE EXISTS (
                    SELECT
                      FROM arc_halo.tensor_chunks AS c
                      JOIN arc_halo.model_weights AS o ON o.tensor_id = c.tensor_id
                     WHERE c.tenant_id = used.tenant_id
                       AND c.digest = used.digest
                       AND o.model_id <> m.id)), 0)::bigint AS shared_nbytes,
               coalesce(sum(used.stored_nbytes) FILTER (WHERE used.blob_location IS NOT NULL), 0)::bigint
                   AS blob_nbytes,
               count(used.base_digest) AS delta_count,
               coalesce(sum(used.stored_nbytes) FILTER (WHERE used.base_digest IS NOT NULL), 0)::bigint
                   AS delta_nbytes,
               (SELECT coalesce(sum(d.stored_nbytes), 0)::bigint
                  FROM (SELECT bases.tenant_id, bases.digest FROM bases
                        EXCEPT SELECT used.tenant_id, used.digest FROM used) AS others
                  JOIN arc_halo.tensor_data AS d ON d.tenant_id = others.tenant_id AND d.digest = others.digest)
                    AS base_nbytes,
               coalesce(max(used.depth), 0)::integer AS max_depth
          FROM used) AS c
