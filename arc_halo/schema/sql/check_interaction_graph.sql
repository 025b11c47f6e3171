-- Trigger function: counts the change in the reactor's graph_version and refuses a feeds_into edge that closes a cycle.
CREATE FUNCTION arc_halo.check_interaction_graph() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    -- Before the search: of two transactions with half a cycle each the second waits here. It then sees the first's
    -- edge, or fails with a serialization error where its snapshot is older.
    UPDATE arc_halo.cognitive_fusion_reactors
       SET graph_version = graph_version + 1
     WHERE id IN (OLD.reactor_id, NEW.reactor_id);
    IF TG_OP = 'DELETE' OR NEW.interaction_type <> 'feeds_into' THEN
        RETURN NULL;
    END IF;
    IF EXISTS (
        WITH RECURSIVE fed (member_id) AS (
            SELECT NEW.target_id
            UNION
            SELECT e.target_id
              FROM fed
              JOIN arc_halo.model_interaction_graph AS e
                ON e.reactor_id = NEW.reactor_id AND e.source_id = fed.member_id AND e.interaction_type = 'feeds_into'
        )
        SELECT FROM fed WHERE fed.member_id = NEW.source_id
    ) THEN
        RAISE EXCEPTION 'the edge from % to % would close a cycle of feeds_into', NEW.source_id, NEW.target_id
            USING ERRCODE = 'check_violation', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME,
                  CONSTRAINT = 'ck_model_interaction_graph_acyclic';
    END IF;
    RETURN NULL;
END
$$
