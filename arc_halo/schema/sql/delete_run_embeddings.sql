-- Trigger function: the curves of runs go with them, for embeddings have owners of several kinds and no foreign key to any.
CREATE FUNCTION arc_halo.delete_run_embeddings() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM arc_halo.embeddings AS e
     USING old_runs AS o
     WHERE e.tenant_id = o.tenant_id AND e.kind = 'run' AND e.owner_id = o.id;
    RETURN NULL;
END
$$
