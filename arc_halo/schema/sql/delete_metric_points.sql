-- Trigger function: points go with their series.
CREATE FUNCTION arc_halo.delete_metric_points() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM arc_halo.training_metrics WHERE series_id IN (SELECT id FROM old_series);
    RETURN NULL;
END
$$
