-- Who may do what with what the schemas :schemas (oids) hold, and with them; run with an empty search_path. One row for
-- each privilege that the owner gave, and one without a grantee for an object of which nobody has any. Partitions and
-- members of extensions are left out.
WITH objects AS (
SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE '' END || c.oid::regclass AS target,
       CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END AS type, parse_ident(c.oid::regclass::text) AS relation, c.tableoid, c.oid,
       c.relowner AS owner, c.relacl AS acl
  FROM pg_class AS c
 WHERE c.relnamespace = ANY (:schemas) AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
   AND NOT c.relispartition
UNION ALL
SELECT CASE p.prokind WHEN 'p' THEN 'PROCEDURE ' ELSE 'FUNCTION ' END || p.oid::regprocedure, 'f', NULL, p.tableoid,
       p.oid, p.proowner, p.proacl
  FROM pg_proc AS p
 WHERE p.pronamespace = ANY (:schemas)
UNION ALL
SELECT 'SCHEMA ' || n.oid::regnamespace, 'n', NULL, n.tableoid, n.oid, n.nspowner, n.nspacl
  FROM pg_namespace AS n
 WHERE n.oid = ANY (:schemas))
SELECT o.target, o.type, o.relation, o.oid, NULL AS clause, a.column_name,
       pg_get_userbyid(o.owner) AS owner,
       CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END AS grantee,
       CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS quoted,
       a.privilege_type AS privilege, a.is_grantable,
       ARRAY(SELECT d.privilege_type FROM aclexplode(acldefault(o.type::"char", o.owner)) AS d
              WHERE d.grantee = o.owner) AS every
  FROM objects AS o
  LEFT JOIN LATERAL (
       SELECT NULL AS column_name, e.*
         FROM aclexplode(COALESCE(o.acl, acldefault(o.type::"char", o.owner))) AS e
        UNION ALL
       SELECT quote_ident(t.attname), e.*
         FROM pg_attribute AS t CROSS JOIN LATERAL aclexplode(t.attacl) AS e
        WHERE o.type = 'r' AND t.attrelid = o.oid AND NOT t.attisdropped) AS a ON a.grantor = o.owner
 WHERE NOT EXISTS (SELECT FROM pg_depend AS d
                    WHERE d.classid = o.tableoid AND d.objid = o.oid AND d.deptype = 'e')
