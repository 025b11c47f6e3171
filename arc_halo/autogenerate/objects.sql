-- Objects of the schemas :schemas (oids), run with an empty search_path. Partitions and members of extensions are left
-- out: a trigger of a partitioned parent is cloned to its partitions, and PostgreSQL keeps those clones itself.
SELECT k.kind, p.oid::regprocedure::text AS name, false AS is_part,
       p.tableoid AS catalog, p.oid, 0 AS column_number, NULL::text[] AS relation, p.proname::text AS member,
       ARRAY[pg_get_functiondef(p.oid)] AS definition,
       format('DROP %s %s', upper(k.kind), p.oid::regprocedure) AS removal,
       jsonb_strip_nulls(jsonb_build_object(format('%s %s', upper(k.kind), p.oid::regprocedure),
                                            obj_description(p.oid, 'pg_proc'))) AS comments
  FROM pg_proc AS p
 CROSS JOIN LATERAL (SELECT CASE p.prokind WHEN 'p' THEN 'procedure' ELSE 'function' END AS kind) AS k
 WHERE p.pronamespace = ANY (:schemas) AND p.prokind IN ('f', 'p', 'w')
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = p.tableoid AND objid = p.oid AND deptype = 'e')
UNION ALL
SELECT 'aggregate', p.oid::regprocedure::text, false, p.tableoid, p.oid, 0, NULL, p.proname,
       ARRAY[format('CREATE AGGREGATE %s(%s) (%s)', p.oid::regproc,
                    COALESCE(NULLIF(pg_get_function_arguments(p.oid), ''), '*'),
                    concat_ws(', ', 'SFUNC = ' || a.aggtransfn::regproc,
                              'STYPE = ' || format_type(a.aggtranstype, NULL),
                              'SSPACE = ' || NULLIF(a.aggtransspace, 0),
                              'FINALFUNC = ' || NULLIF(a.aggfinalfn, 0)::regproc,
                              CASE WHEN a.aggfinalextra THEN 'FINALFUNC_EXTRA' END,
                              'FINALFUNC_MODIFY = ' || k.final,
                              'COMBINEFUNC = ' || NULLIF(a.aggcombinefn, 0)::regproc,
                              'SERIALFUNC = ' || NULLIF(a.aggserialfn, 0)::regproc,
                              'DESERIALFUNC = ' || NULLIF(a.aggdeserialfn, 0)::regproc,
                              'INITCOND = ' || quote_literal(a.agginitval),
                              'MSFUNC = ' || NULLIF(a.aggmtransfn, 0)::regproc,
                              'MINVFUNC = ' || NULLIF(a.aggminvtransfn, 0)::regproc,
                              'MSTYPE = ' || format_type(NULLIF(a.aggmtranstype, 0), NULL),
                              'MSSPACE = ' || NULLIF(a.aggmtransspace, 0),
                              'MFINALFUNC = ' || NULLIF(a.aggmfinalfn, 0)::regproc,
                              CASE WHEN a.aggmfinalextra THEN 'MFINALFUNC_EXTRA' END,
                              'MINITCOND = ' || quote_literal(a.aggminitval),
                              'SORTOP = ' || (SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname)
                                                FROM pg_operator AS o JOIN pg_namespace AS n ON n.oid = o.oprnamespace
                                               WHERE o.oid = a.aggsortop),
                              'PARALLEL = ' || CASE p.proparallel WHEN 's' THEN 'SAFE' WHEN 'r' THEN 'RESTRICTED' END,
                              CASE a.aggkind WHEN 'h' THEN 'HYPOTHETICAL' END))],
       'DROP AGGREGATE ' || n.signature,
       jsonb_strip_nulls(jsonb_build_object('AGGREGATE ' || n.signature, obj_description(p.oid, 'pg_proc')))
  FROM pg_proc AS p JOIN pg_aggregate AS a ON a.aggfnoid = p.oid
 -- What it is by default, by the kind of aggregate, is not said.
 CROSS JOIN LATERAL (SELECT CASE WHEN a.aggfinalmodify <> CASE a.aggkind WHEN 'n' THEN 'r' ELSE 'w' END
                                 THEN CASE a.aggfinalmodify WHEN 'r' THEN 'READ_ONLY' WHEN 's' THEN 'SHAREABLE'
                                                            ELSE 'READ_WRITE' END END) AS k (final)
 -- Of one without arguments (*) is said, not ().
 CROSS JOIN LATERAL (SELECT format('%s(%s)', p.oid::regproc,
                                   COALESCE(NULLIF(pg_get_function_identity_arguments(p.oid), ''), '*'))) AS n (signature)
 WHERE p.pronamespace = ANY (:schemas)
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = p.tableoid AND objid = p.oid AND deptype = 'e')
UNION ALL
SELECT 'statistics', format('%I.%I', n.nspname, s.stxname), false,
       s.tableoid, s.oid, 0, parse_ident(c.oid::regclass::text), s.stxname,
       ARRAY[pg_get_statisticsobjdef(s.oid),
             CASE WHEN s.stxstattarget >= 0
                  THEN format('ALTER STATISTICS %I.%I SET STATISTICS %s', n.nspname, s.stxname, s.stxstattarget) END],
       format('DROP STATISTICS %I.%I', n.nspname, s.stxname),
       jsonb_strip_nulls(jsonb_build_object(format('STATISTICS %I.%I', n.nspname, s.stxname),
                                            obj_description(s.oid, 'pg_statistic_ext')))
  FROM pg_statistic_ext AS s
  JOIN pg_namespace AS n ON n.oid = s.stxnamespace
  JOIN pg_class AS c ON c.oid = s.stxrelid
 WHERE s.stxnamespace = ANY (:schemas)
UNION ALL
SELECT CASE c.relkind WHEN 'v' THEN 'view' ELSE 'matview' END, c.oid::regclass::text, false,
       c.tableoid, c.oid, 0, parse_ident(c.oid::regclass::text), NULL,
       ARRAY[format('CREATE %s %s', k.sql, c.oid::regclass)
             || COALESCE(' WITH (' || array_to_string(c.reloptions, ', ') || ')', '')
             || ' AS' || chr(10) || rtrim(pg_get_viewdef(c.oid), ';')],
       format('DROP %s %s', k.sql, c.oid::regclass),
       jsonb_strip_nulls(jsonb_build_object(format('%s %s', k.sql, c.oid::regclass), obj_description(c.oid, 'pg_class')))
       || COALESCE((SELECT jsonb_object_agg(format('COLUMN %s.%I', c.oid::regclass, a.attname),
                                            col_description(c.oid, a.attnum))
                      FROM pg_attribute AS a
                     WHERE a.attrelid = c.oid AND col_description(c.oid, a.attnum) IS NOT NULL), '{}')
  FROM pg_class AS c
 CROSS JOIN LATERAL (SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'MATERIALIZED VIEW' END AS sql) AS k
 WHERE c.relnamespace = ANY (:schemas) AND c.relkind IN ('v', 'm')
   AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = c.tableoid AND objid = c.oid AND deptype = 'e')
UNION ALL
SELECT 'index', i.indexrelid::regclass::text, false,
       x.tableoid, x.oid, 0, parse_ident(c.oid::regclass::text), x.relname,
       ARRAY[pg_get_indexdef(x.oid) || CASE WHEN i.indisvalid THEN '' ELSE ' /* INVALID */' END],
       format('DROP INDEX %s', x.oid::regclass),
       jsonb_strip_nulls(jsonb_build_object(format('INDEX %s', x.oid::regclass), obj_description(x.oid, 'pg_class')))
  FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid JOIN pg_class AS c ON c.oid = i.indrelid
 WHERE c.relnamespace = ANY (:schemas) AND c.relkind = 'm'
UNION ALL
SELECT 'trigger', format('%I ON %s', t.tgname, t.tgrelid::regclass), false,
       t.tableoid, t.oid, 0, parse_ident(c.oid::regclass::text), t.tgname,
       ARRAY[pg_get_triggerdef(t.oid),
             CASE WHEN t.tgenabled <> 'O'
                  THEN format('ALTER TABLE %s %s TRIGGER %I', t.tgrelid::regclass,
                              CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA'
                                               ELSE 'ENABLE ALWAYS' END, t.tgname) END],
       format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass),
       jsonb_strip_nulls(jsonb_build_object(format('TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass),
                                            obj_description(t.oid, 'pg_trigger')))
  FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
 -- Those of a partition itself are declared as others are; those that it has of its parent have a tgparentid.
 WHERE c.relnamespace = ANY (:schemas) AND NOT t.tgisinternal AND t.tgparentid = 0
UNION ALL
SELECT 'policy', format('%I ON %s', p.polname, p.polrelid::regclass), false,
       p.tableoid, p.oid, 0, parse_ident(c.oid::regclass::text), p.polname,
       ARRAY[format('CREATE POLICY %I ON %s AS %s FOR %s TO %s', p.polname, p.polrelid::regclass,
                    CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                    CASE p.polcmd WHEN '*' THEN 'ALL' WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT'
                                  WHEN 'w' THEN 'UPDATE' ELSE 'DELETE' END,
                    (SELECT string_agg(CASE WHEN r = 0 THEN 'PUBLIC' ELSE r::regrole::text END, ', ' ORDER BY r)
                       FROM unnest(p.polroles) AS r))
             || COALESCE(' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', '')
             || COALESCE(' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', '')],
       format('DROP POLICY %I ON %s', p.polname, p.polrelid::regclass),
       jsonb_strip_nulls(jsonb_build_object(format('POLICY %I ON %s', p.polname, p.polrelid::regclass),
                                            obj_description(p.oid, 'pg_policy')))
  FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid
 WHERE c.relnamespace = ANY (:schemas) AND NOT c.relispartition
UNION ALL
SELECT 'rls', c.oid::regclass::text, false, 0::oid, c.oid, 0, parse_ident(c.oid::regclass::text), NULL,
       ARRAY[format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', c.oid::regclass),
             CASE WHEN c.relforcerowsecurity THEN format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', c.oid::regclass) END],
       format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY', c.oid::regclass),
       '{}'
  FROM pg_class AS c
 WHERE c.relnamespace = ANY (:schemas) AND c.relrowsecurity AND NOT c.relispartition
UNION ALL
SELECT 'storage', format('%s.%I', c.oid::regclass, a.attname), false,
       0::oid, c.oid, a.attnum, parse_ident(c.oid::regclass::text), a.attname,
       ARRAY[format('ALTER TABLE %s ALTER COLUMN %I SET STORAGE %s', c.oid::regclass, a.attname,
                    CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN'
                                      ELSE 'EXTENDED' END)],
       format('ALTER TABLE %s ALTER COLUMN %I SET STORAGE DEFAULT', c.oid::regclass, a.attname),
       '{}'
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid JOIN pg_type AS y ON y.oid = a.atttypid
 WHERE c.relnamespace = ANY (:schemas) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
   AND a.attnum > 0 AND NOT a.attisdropped AND a.attstorage <> y.typstorage
UNION ALL
SELECT 'compression', format('%s.%I', c.oid::regclass, a.attname), false,
       0::oid, c.oid, a.attnum, parse_ident(c.oid::regclass::text), a.attname,
       ARRAY[format('ALTER TABLE %s ALTER COLUMN %I SET COMPRESSION %s', c.oid::regclass, a.attname,
                    CASE a.attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4' ELSE a.attcompression::text END)],
       format('ALTER TABLE %s ALTER COLUMN %I SET COMPRESSION DEFAULT', c.oid::regclass, a.attname),
       '{}'
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
 WHERE c.relnamespace = ANY (:schemas) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
   AND a.attnum > 0 AND NOT a.attisdropped AND a.attcompression <> ''
