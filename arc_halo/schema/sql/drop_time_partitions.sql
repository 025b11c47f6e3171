-- Drops the partitions of a table of this schema that end at or before a time, which has passed; returns how many.
CREATE FUNCTION arc_halo.drop_time_partitions(parent regclass, before timestamptz) RETURNS integer
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
-- Bounds are read from their text, which these two decide.
SET "TimeZone" TO 'UTC' SET "DateStyle" TO 'ISO' AS $$
DECLARE
    partition_oids oid[];
    partition_oid oid;
BEGIN
    PERFORM FROM pg_catalog.pg_class AS c
      JOIN pg_catalog.pg_partitioned_table AS p ON p.partrelid = c.oid AND p.partstrat = 'r' AND p.partnatts = 1
      JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
     WHERE c.oid = parent
       AND c.relnamespace = 'arc_halo'::pg_catalog.regnamespace
       AND a.atttypid = 'pg_catalog.timestamptz'::pg_catalog.regtype;
    IF NOT FOUND THEN
        RAISE EXCEPTION '% is no table of schema arc_halo with a time range per partition', parent
            USING ERRCODE = 'wrong_object_type', HINT = 'Name a table declared with PARTITION BY RANGE (recorded_at).';
    END IF;
    IF before IS NULL OR before > pg_catalog.now() THEN
        RAISE EXCEPTION 'partitions that end before % may still be written to', before
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Name a time that has passed.';
    END IF;

    -- A DEFAULT partition and one up to MAXVALUE have no bound in quotes and stay.
    SELECT pg_catalog.array_agg(b.oid ORDER BY b.ends_at) INTO partition_oids
      FROM (SELECT c.oid,
                   pg_catalog.substring(pg_catalog.pg_get_expr(c.relpartbound, c.oid), ' TO \(''([^'']+)''\)$')
                       ::timestamptz AS ends_at
              FROM pg_catalog.pg_inherits AS i
              JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
             WHERE i.inhparent = parent AND NOT i.inhdetachpending) AS b
     WHERE b.ends_at <= before;

    -- Each DROP locks the parent, and the table its foreign key leads to, until the caller's transaction ends.
    FOREACH partition_oid IN ARRAY coalesce(partition_oids, '{}') LOOP
        EXECUTE pg_catalog.format('DROP TABLE %s', partition_oid::pg_catalog.regclass);
    END LOOP;
    RETURN pg_catalog.cardinality(coalesce(partition_oids, '{}'));
END
$$
