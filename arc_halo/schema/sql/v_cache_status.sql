SELECT n.tenant_id, n.id AS namespace_id, n.kind, n.precision, n.dtype, n.layout, n.block_token_count, n.weights_digest,
       of.models, arc_halo.is_servable(n.tenant_id, n.weights_digest, n.is_registered) AS is_servable,
       kept.entry_count, kept.pinned_count, kept.stored_nbytes, kept.expired_count,
       coalesce(s.lookup_count, 0) AS lookup_count, coalesce(s.hit_count, 0) AS hit_count,
       coalesce(s.asked_token_count, 0) AS asked_token_count, coalesce(s.hit_token_count, 0) AS hit_token_count,
       s.read_nbytes / nullif(s.read_seconds, 0) AS read_nbytes_per_second,
       s.computed_token_count / nullif(s.computed_seconds, 0) AS computed_tokens_per_second,
       n.created_at
  FROM arc_halo.cache_namespaces AS n
  LEFT JOIN arc_halo.cache_statistics AS s ON s.tenant_id = n.tenant_id AND s.namespace_id = n.id
  CROSS JOIN LATERAL (
       SELECT coalesce(array_agg(m.name || '@' || m.version ORDER BY m.created_at, m.id), '{}'::text[]) AS models
         FROM arc_halo.models AS m
        WHERE m.tenant_id = n.tenant_id AND m.weights_digest = n.weights_digest AND m.status <> 'archived') AS of
  CROSS JOIN LATERAL (
       SELECT count(*) AS entry_count, count(*) FILTER (WHERE e.is_pinned) AS pinned_count,
              count(*) FILTER (WHERE e.expires_at <= now() AND NOT e.is_pinned) AS expired_count,
              coalesce(sum(e.stored_nbytes), 0)::bigint AS stored_nbytes
         FROM (SELECT b.is_pinned, b.expires_at, b.stored_nbytes
                 FROM arc_halo.kv_cache AS b
                WHERE b.tenant_id = n.tenant_id AND b.namespace_id = n.id
               UNION ALL
               SELECT a.is_pinned, a.expires_at, t.nbytes
                 FROM arc_halo.activation_cache AS a
                 JOIN arc_halo.tensor_metadata AS t ON t.tenant_id = a.tenant_id AND t.id = a.tensor_id
                WHERE a.tenant_id = n.tenant_id AND a.namespace_id = n.id
               UNION ALL
               SELECT p.is_pinned, p.expires_at, p.stored_nbytes
                 FROM arc_halo.response_cache AS p
                WHERE p.tenant_id = n.tenant_id AND p.namespace_id = n.id) AS e) AS kept
