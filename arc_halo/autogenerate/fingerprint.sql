-- What parts.sql and objects.sql leave to be said of the schemas :schemas (oids), run with an empty search_path.
SELECT 'table' AS kind, t.oid::regclass::text AS name, parse_ident(t.oid::regclass::text) AS relation,
       concat_ws(' ', CASE t.relpersistence WHEN 'u' THEN 'UNLOGGED' END, 'PARTITION BY ' || pg_get_partkeydef(t.oid),
                 quote_literal(obj_description(t.oid, 'pg_class'))) AS text
  FROM pg_class AS t
 WHERE t.relnamespace = ANY (:schemas) AND t.relkind IN ('r', 'p') AND NOT t.relispartition
UNION ALL
SELECT 'column', format('%s.%I', t.oid::regclass, a.attname), parse_ident(t.oid::regclass::text),
       concat_ws(' ', format_type(a.atttypid, a.atttypmod),
                 CASE WHEN a.attcollation <> y.typcollation THEN 'COLLATE ' || a.attcollation::regcollation END,
                 CASE WHEN a.attnotnull THEN 'NOT NULL' END,
                 CASE a.attidentity WHEN 'a' THEN 'IDENTITY ALWAYS' WHEN 'd' THEN 'IDENTITY BY DEFAULT' END,
                 quote_literal(col_description(t.oid, a.attnum)))
  FROM pg_attribute AS a JOIN pg_class AS t ON t.oid = a.attrelid JOIN pg_type AS y ON y.oid = a.atttypid
 WHERE t.relnamespace = ANY (:schemas) AND t.relkind IN ('r', 'p') AND NOT t.relispartition
   AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'sequence', c.oid::regclass::text, parse_ident(COALESCE(t.oid, c.oid)::regclass::text),
       format('%s START %s INCREMENT %s MIN %s MAX %s CACHE %s%s', format_type(s.seqtypid, NULL), s.seqstart,
              s.seqincrement, s.seqmin, s.seqmax, s.seqcache, CASE WHEN s.seqcycle THEN ' CYCLE' ELSE '' END)
  FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid
  LEFT JOIN pg_depend AS d ON d.classid = c.tableoid AND d.objid = c.oid AND d.deptype IN ('a', 'i')
   AND d.refclassid = c.tableoid
  LEFT JOIN pg_class AS t ON t.oid = d.refobjid
 WHERE c.relnamespace = ANY (:schemas)
UNION ALL
SELECT 'type', y.oid::regtype::text, NULL,
       concat_ws(' ', y.typtype::text, format_type(NULLIF(y.typbasetype, 0), y.typtypmod),
                 (SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)
                    FROM pg_enum AS e WHERE e.enumtypid = y.oid),
                 (SELECT string_agg(pg_get_constraintdef(c.oid), ', ' ORDER BY c.conname)
                    FROM pg_constraint AS c WHERE c.contypid = y.oid),
                 quote_literal(obj_description(y.oid, 'pg_type')))
  FROM pg_type AS y
 WHERE y.typnamespace = ANY (:schemas) AND y.typtype IN ('e', 'd', 'r')
