-- Trigger function: what is left of series that points were deleted from is summarised again.
CREATE FUNCTION arc_halo.note_deleted_points() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM arc_halo.summarize_metric_series(ARRAY(SELECT DISTINCT o.series_id FROM old_points AS o));
    RETURN NULL;
END
$$
