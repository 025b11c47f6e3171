SELECT t.series_id, t.step, t.epoch, t.value, t.recorded_at, false AS is_sealed
  FROM arc_halo.training_metrics AS t
 UNION ALL
SELECT g.series_id, p.step, p.epoch, p.value, p.recorded_at, true AS is_sealed
  FROM arc_halo.metric_segments AS g
 CROSS JOIN LATERAL unnest(g.steps, g.epochs, g.point_values, g.recorded_times) AS p (step, epoch, value, recorded_at)
