-- Makes the monthly partitions, in UTC, of a table of this schema that are missing; returns how many it made.
CREATE FUNCTION arc_halo.ensure_time_partitions(
    parent regclass, from_time timestamptz DEFAULT now(), months_ahead integer DEFAULT 2
) RETURNS integer
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE AS $$
DECLARE
    parent_name name;
    partition_name text;
    month_start timestamp;
    created integer := 0;
BEGIN
    SELECT c.relname INTO parent_name
      FROM pg_catalog.pg_class AS c
      JOIN pg_catalog.pg_partitioned_table AS p ON p.partrelid = c.oid AND p.partstrat = 'r' AND p.partnatts = 1
      JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0]
     WHERE c.oid = parent
       AND c.relnamespace = 'arc_halo'::pg_catalog.regnamespace
       AND a.atttypid = 'pg_catalog.timestamptz'::pg_catalog.regtype;
    IF NOT FOUND THEN
        RAISE EXCEPTION '% is no table of schema arc_halo with a time range per partition', parent
            USING ERRCODE = 'wrong_object_type', HINT = 'Name a table declared with PARTITION BY RANGE (recorded_at).';
    END IF;

    FOR month IN 0 .. months_ahead LOOP
        month_start := pg_catalog.date_trunc('month', from_time AT TIME ZONE 'UTC')
                       + pg_catalog.make_interval(months => month);
        partition_name := parent_name || pg_catalog.to_char(month_start, '_YYYY_MM');
        CONTINUE WHEN EXISTS (
            SELECT FROM pg_catalog.pg_inherits AS i
             WHERE i.inhparent = parent
               AND i.inhrelid = pg_catalog.to_regclass(pg_catalog.format('arc_halo.%I', partition_name)));
        BEGIN
            -- Created first and attached then: PARTITION OF would lock the parent against readers and writers.
            EXECUTE pg_catalog.format(
                'CREATE TABLE arc_halo.%I (LIKE arc_halo.%I INCLUDING DEFAULTS INCLUDING GENERATED'
                ' INCLUDING CONSTRAINTS INCLUDING STORAGE)',
                partition_name, parent_name);
            EXECUTE pg_catalog.format(
                'ALTER TABLE arc_halo.%I ATTACH PARTITION arc_halo.%I FOR VALUES FROM (%L) TO (%L)',
                parent_name, partition_name,
                pg_catalog.to_char(month_start, 'YYYY-MM-DD 00:00:00+00'),
                pg_catalog.to_char(month_start + interval '1 month', 'YYYY-MM-DD 00:00:00+00'));
            created := created + 1;
        EXCEPTION WHEN duplicate_table OR duplicate_object OR unique_violation THEN
            -- Somebody else made it meanwhile: the catalog's unique index let us wait for their commit, or it came
            -- between the looks for a table and for its row type. Or a table that is no partition has the name.
            PERFORM FROM pg_catalog.pg_inherits AS i
              WHERE i.inhparent = parent
                AND i.inhrelid = pg_catalog.to_regclass(pg_catalog.format('arc_halo.%I', partition_name));
            IF NOT FOUND THEN
                RAISE EXCEPTION 'arc_halo.% is no partition of %', partition_name, parent
                    USING ERRCODE = 'duplicate_table', HINT = 'Attach, rename, move or drop what has that name.';
            END IF;
        END;
    END LOOP;
    RETURN created;
END
$$
