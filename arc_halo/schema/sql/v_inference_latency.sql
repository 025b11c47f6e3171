SELECT d.inference_session_id, s.name AS session_name, s.model_id, m.name || '@' || m.version AS model, d.day,
       d.request_count,
       d.latencies[1] AS latency_p50_seconds, d.latencies[2] AS latency_p90_seconds,
       d.latencies[3] AS latency_p99_seconds,
       d.first_tokens[1] AS time_to_first_token_p50_seconds, d.first_tokens[2] AS time_to_first_token_p90_seconds,
       d.first_tokens[3] AS time_to_first_token_p99_seconds,
       d.rates[1] AS tokens_per_second_p50, d.rates[2] AS tokens_per_second_p90, d.rates[3] AS tokens_per_second_p99,
       d.prompt_token_count, d.generated_token_count, d.cached_token_count, d.cached_share, d.max_memory_nbytes
  FROM (SELECT r.inference_session_id, (r.recorded_at AT TIME ZONE 'UTC')::date AS day, count(*) AS request_count,
               percentile_cont(ARRAY[0.5, 0.9, 0.99]) WITHIN GROUP (ORDER BY r.latency_seconds) AS latencies,
               percentile_cont(ARRAY[0.5, 0.9, 0.99]) WITHIN GROUP (ORDER BY r.time_to_first_token_seconds)
                   AS first_tokens,
               percentile_cont(ARRAY[0.5, 0.9, 0.99]) WITHIN GROUP (ORDER BY r.tokens_per_second) AS rates,
               coalesce(sum(r.prompt_token_count), 0) AS prompt_token_count,
               coalesce(sum(r.generated_token_count), 0) AS generated_token_count,
               coalesce(sum(r.cached_token_count), 0) AS cached_token_count,
               sum(r.cached_token_count) FILTER (WHERE r.prompt_token_count IS NOT NULL)::double precision
                   / nullif(sum(r.prompt_token_count) FILTER (WHERE r.cached_token_count IS NOT NULL), 0)
                   AS cached_share,
               max(r.memory_nbytes) AS max_memory_nbytes
          FROM arc_halo.inference_metrics AS r
         GROUP BY r.inference_session_id, (r.recorded_at AT TIME ZONE 'UTC')::date) AS d
  JOIN arc_halo.inference_sessions AS s ON s.id = d.inference_session_id
  JOIN arc_halo.models AS m ON m.id = s.model_id
