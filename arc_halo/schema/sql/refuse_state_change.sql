-- Trigger function: versions of a reactor's state are appended; they are never changed and go only with the reactor.
CREATE FUNCTION arc_halo.refuse_state_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE'
       AND NOT EXISTS (SELECT FROM arc_halo.cognitive_fusion_reactors AS r WHERE r.id = OLD.reactor_id) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'version % of a cognitive state cannot be changed or deleted', OLD.version
        USING ERRCODE = 'restrict_violation', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME,
              CONSTRAINT = 'ck_cognitive_state_append_only', HINT = 'Append a version whose parent_version is this one.';
END
$$
