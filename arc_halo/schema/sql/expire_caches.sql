-- Deletes expired entries, at most max_rows of each cache; pinned ones stay, ones that are in use wait for the next call.
CREATE FUNCTION arc_halo.expire_caches(max_rows integer DEFAULT 10000)
RETURNS TABLE (kv_cache_count bigint, activation_cache_count bigint)
LANGUAGE sql VOLATILE PARALLEL UNSAFE ROWS 1
BEGIN ATOMIC
    WITH expired_blocks AS (
        SELECT b.tenant_id, b.namespace_id, b.block_hash
          FROM arc_halo.kv_cache AS b
         WHERE b.expires_at <= now() AND NOT b.is_pinned
         ORDER BY b.expires_at
         LIMIT max_rows
           FOR UPDATE SKIP LOCKED
    ), deleted_blocks AS (
        DELETE FROM arc_halo.kv_cache AS b
         USING expired_blocks AS e
         WHERE b.tenant_id = e.tenant_id AND b.namespace_id = e.namespace_id AND b.block_hash = e.block_hash
        RETURNING b.block_hash
    ), expired_activations AS (
        SELECT a.tenant_id, a.weights_digest, a.hook_point, a.input_digest
          FROM arc_halo.activation_cache AS a
         WHERE a.expires_at <= now() AND NOT a.is_pinned
         ORDER BY a.expires_at
         LIMIT max_rows
           FOR UPDATE SKIP LOCKED
    ), deleted_activations AS (
        DELETE FROM arc_halo.activation_cache AS a
         USING expired_activations AS e
         WHERE a.tenant_id = e.tenant_id AND a.weights_digest = e.weights_digest
           AND a.hook_point = e.hook_point AND a.input_digest = e.input_digest
        RETURNING a.input_digest
    )
    SELECT (SELECT count(*) FROM deleted_blocks), (SELECT count(*) FROM deleted_activations);
END
