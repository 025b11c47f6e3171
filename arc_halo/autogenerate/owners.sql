-- Whose the objects of the schemas :schemas (oids) are, run with an empty search_path; :owner, if not NULL, stands for all of them.
-- A sequence of a column follows its table; partitions and members of extensions are left out.
WITH objects AS (
SELECT k.kind, c.oid::regclass::text AS name, parse_ident(c.oid::regclass::text) AS relation, k.statement AS altered, c.tableoid, c.oid,
       c.relowner AS owner
  FROM pg_class AS c
  JOIN (VALUES ('r', 'table', 'TABLE'), ('p', 'table', 'TABLE'), ('v', 'view', 'VIEW'),
               ('m', 'matview', 'MATERIALIZED VIEW'), ('S', 'sequence', 'SEQUENCE')) AS k (relkind, kind, statement)
    ON k.relkind = c.relkind::text
 WHERE c.relnamespace = ANY (:schemas) AND NOT c.relispartition
   AND NOT (c.relkind = 'S' AND EXISTS (SELECT FROM pg_depend AS d
                                         WHERE d.classid = c.tableoid AND d.objid = c.oid AND d.deptype IN ('a', 'i')
                                           AND d.refclassid = c.tableoid))
UNION ALL
SELECT CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END, p.oid::regprocedure::text,
       NULL, 'ROUTINE', p.tableoid, p.oid, p.proowner
  FROM pg_proc AS p
 WHERE p.pronamespace = ANY (:schemas)
UNION ALL
SELECT 'statistics', format('%I.%I', n.nspname, s.stxname), NULL, 'STATISTICS', s.tableoid, s.oid, s.stxowner
  FROM pg_statistic_ext AS s JOIN pg_namespace AS n ON n.oid = s.stxnamespace
 WHERE n.oid = ANY (:schemas)
UNION ALL
SELECT 'type', y.oid::regtype::text, NULL, 'TYPE', y.tableoid, y.oid, y.typowner
  FROM pg_type AS y
 WHERE y.typnamespace = ANY (:schemas) AND y.typtype IN ('e', 'd', 'r'))
SELECT o.kind, o.name, o.relation, o.oid,
       format('ALTER %s %s OWNER TO %I', o.altered, o.name, COALESCE(CAST(:owner AS text), pg_get_userbyid(o.owner))) AS definition
  FROM objects AS o
 WHERE NOT EXISTS (SELECT FROM pg_depend AS d
                    WHERE d.classid = o.tableoid AND d.objid = o.oid AND d.deptype = 'e')
