SELECT r.id AS reactor_id,
       r.name,
       r.strategy,
       r.status,
       members.members_by_role,
       operations.operation_count,
       operations.error_rate,
       operations.latency_seconds[1] AS latency_p50_seconds,
       operations.latency_seconds[2] AS latency_p95_seconds,
       operations.latency_seconds[3] AS latency_p99_seconds,
       operations.last_operation_at,
       (SELECT n.coherence FROM arc_halo.reactor_metrics AS n
         WHERE n.reactor_id = r.id AND n.coherence IS NOT NULL ORDER BY n.recorded_at DESC LIMIT 1) AS coherence,
       (SELECT n.diversity FROM arc_halo.reactor_metrics AS n
         WHERE n.reactor_id = r.id AND n.diversity IS NOT NULL ORDER BY n.recorded_at DESC LIMIT 1) AS diversity,
       (SELECT n.quality FROM arc_halo.reactor_metrics AS n
         WHERE n.reactor_id = r.id AND n.quality IS NOT NULL ORDER BY n.recorded_at DESC LIMIT 1) AS quality,
       (SELECT n.gain FROM arc_halo.reactor_metrics AS n
         WHERE n.reactor_id = r.id AND n.gain IS NOT NULL ORDER BY n.recorded_at DESC LIMIT 1) AS gain
  FROM arc_halo.cognitive_fusion_reactors AS r
 CROSS JOIN LATERAL (
    SELECT COALESCE(jsonb_object_agg(counted.role, counted.member_count), '{}') AS members_by_role
      FROM (SELECT n.role, count(*) AS member_count
              FROM arc_halo.reactor_models AS n
             WHERE n.reactor_id = r.id
             GROUP BY n.role) AS counted
 ) AS members
 CROSS JOIN LATERAL (
    SELECT count(*) AS operation_count,
           avg((o.status IN ('failed', 'timed_out'))::integer)::double precision AS error_rate,
           percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY o.execution_seconds) AS latency_seconds,
           max(o.started_at) AS last_operation_at
      FROM arc_halo.fusion_operations AS o
     WHERE o.reactor_id = r.id
 ) AS operations
