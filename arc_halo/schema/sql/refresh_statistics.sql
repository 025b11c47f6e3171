-- Brings mv_tensor_statistics up to date while others read it.
CREATE FUNCTION arc_halo.refresh_statistics() RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE AS $$
BEGIN
    REFRESH MATERIALIZED VIEW CONCURRENTLY arc_halo.mv_tensor_statistics;
END
$$
