-- Parts of the tables of the schemas :schemas (oids), run with an empty search_path; same columns as objects.sql.
SELECT 'index' AS kind, x.oid::regclass::text AS name, true AS is_part,
       x.tableoid AS catalog, x.oid, 0 AS column_number,
       parse_ident(t.oid::regclass::text) AS relation, x.relname::text AS member,
       -- ONLY would leave the partitions without the index; an invalid one is to be made anew
       ARRAY[regexp_replace(pg_get_indexdef(x.oid), ' ON ONLY ', ' ON ')
             || CASE WHEN i.indisvalid THEN '' ELSE ' /* INVALID */' END] AS definition,
       format('DROP INDEX %s', x.oid::regclass) AS removal,
       jsonb_strip_nulls(jsonb_build_object(format('INDEX %s', x.oid::regclass),
                                            obj_description(x.oid, 'pg_class'))) AS comments
  FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid JOIN pg_class AS t ON t.oid = i.indrelid
 WHERE t.relnamespace = ANY (:schemas) AND t.relkind IN ('r', 'p') AND NOT t.relispartition
   AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = x.oid AND contype IN ('p', 'u', 'x'))
UNION ALL
SELECT CASE c.contype WHEN 'f' THEN 'foreign key' WHEN 'p' THEN 'primary key' WHEN 'x' THEN 'exclusion'
                      ELSE 'constraint' END,
       format('%I ON %s', c.conname, c.conrelid::regclass), true,
       c.tableoid, c.oid, 0, parse_ident(t.oid::regclass::text), c.conname,
       ARRAY[format('ALTER TABLE %s ADD CONSTRAINT %I %s', c.conrelid::regclass, c.conname, pg_get_constraintdef(c.oid))],
       format('ALTER TABLE %s DROP CONSTRAINT %I', c.conrelid::regclass, c.conname),
       jsonb_strip_nulls(jsonb_build_object(format('CONSTRAINT %I ON %s', c.conname, c.conrelid::regclass),
                                            obj_description(c.oid, 'pg_constraint')))
  FROM pg_constraint AS c JOIN pg_class AS t ON t.oid = c.conrelid
 WHERE t.relnamespace = ANY (:schemas) AND NOT t.relispartition
   AND c.contype IN ('c', 'f', 'p', 'u', 'x') AND c.conparentid = 0
UNION ALL
SELECT 'default', format('%s.%I', t.oid::regclass, a.attname), true,
       t.tableoid, t.oid, a.attnum, parse_ident(t.oid::regclass::text), a.attname,
       ARRAY[format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT %s', t.oid::regclass, a.attname,
                    pg_get_expr(d.adbin, d.adrelid))],
       format('ALTER TABLE %s ALTER COLUMN %I DROP DEFAULT', t.oid::regclass, a.attname),
       '{}'
  FROM pg_attrdef AS d
  JOIN pg_class AS t ON t.oid = d.adrelid
  JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
 WHERE t.relnamespace = ANY (:schemas) AND t.relkind IN ('r', 'p') AND NOT t.relispartition
   AND a.attgenerated = ''
UNION ALL
SELECT 'generated', format('%s.%I', t.oid::regclass, a.attname), true,
       t.tableoid, t.oid, a.attnum, parse_ident(t.oid::regclass::text), a.attname,
       ARRAY[format('ALTER TABLE %s ADD COLUMN %I %s%s GENERATED ALWAYS AS (%s) %s', t.oid::regclass, a.attname,
                    format_type(a.atttypid, a.atttypmod),
                    CASE WHEN a.attcollation <> y.typcollation THEN ' COLLATE ' || a.attcollation::regcollation END,
                    pg_get_expr(d.adbin, d.adrelid), CASE a.attgenerated WHEN 's' THEN 'STORED' ELSE 'VIRTUAL' END),
             CASE WHEN a.attnotnull
                  THEN format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', t.oid::regclass, a.attname) END],
       format('ALTER TABLE %s DROP COLUMN %I', t.oid::regclass, a.attname),
       jsonb_strip_nulls(jsonb_build_object(format('COLUMN %s.%I', t.oid::regclass, a.attname),
                                            col_description(t.oid, a.attnum)))
  FROM pg_attrdef AS d
  JOIN pg_class AS t ON t.oid = d.adrelid
  JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
  JOIN pg_type AS y ON y.oid = a.atttypid
 WHERE t.relnamespace = ANY (:schemas) AND t.relkind IN ('r', 'p') AND NOT t.relispartition
   AND a.attgenerated <> ''
UNION ALL
SELECT 'options', t.oid::regclass::text, true, 0::oid, t.oid, 0, parse_ident(t.oid::regclass::text), NULL,
       ARRAY[format('ALTER TABLE %s SET (%s)', t.oid::regclass, array_to_string(t.reloptions, ', '))],
       format('ALTER TABLE %s RESET (%s)', t.oid::regclass,
              (SELECT string_agg(split_part(o, '=', 1), ', ') FROM unnest(t.reloptions) AS o)),
       '{}'
  FROM pg_class AS t
 WHERE t.relnamespace = ANY (:schemas) AND t.relkind = 'r' AND NOT t.relispartition
   AND t.reloptions IS NOT NULL
