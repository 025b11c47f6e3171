-- Deletes at most max_rows of each cache: what expired, and what nobody can be served any more; entries in use wait.
CREATE FUNCTION arc_halo.expire_caches(max_rows integer DEFAULT 10000)
RETURNS TABLE (kv_cache_count bigint, activation_cache_count bigint, response_cache_count bigint)
LANGUAGE sql VOLATILE PARALLEL UNSAFE ROWS 1
BEGIN ATOMIC
    -- The rest of a namespace goes with its row, once little enough is left of it.
    WITH retired AS MATERIALIZED (
        SELECT n.tenant_id, n.id
          FROM arc_halo.cache_namespaces AS n
         WHERE NOT arc_halo.is_servable(n.tenant_id, n.weights_digest, n.is_registered)
    ), expired_blocks AS (
        -- Tails before heads: what is deleted takes along all that follows it.
        SELECT b.tenant_id, b.namespace_id, b.block_hash
          FROM arc_halo.kv_cache AS b
         WHERE b.expires_at <= now() AND NOT b.is_pinned
           AND NOT EXISTS (SELECT FROM arc_halo.kv_cache AS c
                            WHERE c.tenant_id = b.tenant_id AND c.namespace_id = b.namespace_id
                              AND c.parent_hash = b.block_hash
                              AND (c.is_pinned OR c.expires_at IS NULL OR c.expires_at > now()))
         ORDER BY b.position DESC
         LIMIT max_rows
           FOR UPDATE SKIP LOCKED
    ), retired_blocks AS (
        SELECT b.tenant_id, b.namespace_id, b.block_hash
          FROM retired AS r
          JOIN arc_halo.kv_cache AS b ON b.tenant_id = r.tenant_id AND b.namespace_id = r.id
         ORDER BY b.position DESC
         LIMIT greatest(0, max_rows - (SELECT count(*) FROM expired_blocks))
           FOR UPDATE OF b SKIP LOCKED
    ), deleted_blocks AS (
        DELETE FROM arc_halo.kv_cache AS b
         USING (SELECT * FROM expired_blocks UNION SELECT * FROM retired_blocks) AS d
         WHERE b.tenant_id = d.tenant_id AND b.namespace_id = d.namespace_id AND b.block_hash = d.block_hash
        RETURNING b.block_hash
    ), expired_activations AS (
        SELECT a.tenant_id, a.namespace_id, a.hook_point, a.input_digest
          FROM arc_halo.activation_cache AS a
         WHERE a.expires_at <= now() AND NOT a.is_pinned
         LIMIT max_rows
           FOR UPDATE SKIP LOCKED
    ), retired_activations AS (
        SELECT a.tenant_id, a.namespace_id, a.hook_point, a.input_digest
          FROM retired AS r
          JOIN arc_halo.activation_cache AS a ON a.tenant_id = r.tenant_id AND a.namespace_id = r.id
         LIMIT greatest(0, max_rows - (SELECT count(*) FROM expired_activations))
           FOR UPDATE OF a SKIP LOCKED
    ), deleted_activations AS (
        DELETE FROM arc_halo.activation_cache AS a
         USING (SELECT * FROM expired_activations UNION SELECT * FROM retired_activations) AS d
         WHERE a.tenant_id = d.tenant_id AND a.namespace_id = d.namespace_id
           AND a.hook_point = d.hook_point AND a.input_digest = d.input_digest
        RETURNING a.input_digest
    ), expired_responses AS (
        SELECT p.id
          FROM arc_halo.response_cache AS p
         WHERE p.expires_at <= now() AND NOT p.is_pinned
         LIMIT max_rows
           FOR UPDATE SKIP LOCKED
    ), retired_responses AS (
        SELECT p.id
          FROM retired AS r
          JOIN arc_halo.response_cache AS p ON p.tenant_id = r.tenant_id AND p.namespace_id = r.id
         LIMIT greatest(0, max_rows - (SELECT count(*) FROM expired_responses))
           FOR UPDATE OF p SKIP LOCKED
    ), deleted_responses AS (
        DELETE FROM arc_halo.response_cache AS p
         USING (SELECT * FROM expired_responses UNION SELECT * FROM retired_responses) AS d
         WHERE p.id = d.id
        RETURNING p.id
    ), emptied AS (
        DELETE FROM arc_halo.cache_namespaces AS n
         USING retired AS r
         WHERE n.tenant_id = r.tenant_id AND n.id = r.id
           AND NOT EXISTS (SELECT FROM arc_halo.kv_cache AS b WHERE b.tenant_id = r.tenant_id AND b.namespace_id = r.id)
           AND NOT EXISTS (SELECT FROM arc_halo.activation_cache AS a
                            WHERE a.tenant_id = r.tenant_id AND a.namespace_id = r.id)
           AND NOT EXISTS (SELECT FROM arc_halo.response_cache AS p
                            WHERE p.tenant_id = r.tenant_id AND p.namespace_id = r.id)
    )
    SELECT (SELECT count(*) FROM deleted_blocks), (SELECT count(*) FROM deleted_activations),
           (SELECT count(*) FROM deleted_responses);
END
