-- Whether what was computed with these weights may be served: a model that is not archived has them, or none ever had.
CREATE FUNCTION arc_halo.is_servable(of_tenant integer, of_weights bytea, registered boolean) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN NOT registered OR EXISTS (
    SELECT FROM arc_halo.models AS m
     WHERE m.tenant_id = of_tenant AND m.weights_digest = of_weights AND m.status <> 'archived')
