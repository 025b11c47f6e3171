-- What new objects of the schemas :schemas (oids) will have, run with an empty search_path: by the schemas' default privileges,
-- and, without a clause, by those that the connected role has in the whole database.
SELECT CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'FUNCTIONS'
                            ELSE 'TYPES' END AS target,
       k.type, NULL AS relation, d.oid,
       CASE WHEN d.defaclnamespace <> 0
            THEN CASE WHEN r.rolname <> current_user THEN format('FOR ROLE %I ', r.rolname) ELSE '' END
                 || 'IN SCHEMA ' || d.defaclnamespace::regnamespace END AS clause,
       NULL AS column_name, r.rolname AS owner,
       CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END AS grantee,
       CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS quoted,
       a.privilege_type AS privilege, a.is_grantable,
       ARRAY(SELECT e.privilege_type FROM aclexplode(acldefault(k.type, d.defaclrole)) AS e
              WHERE e.grantee = d.defaclrole) AS every
  FROM pg_default_acl AS d
  JOIN pg_roles AS r ON r.oid = d.defaclrole
 CROSS JOIN LATERAL (SELECT lower(d.defaclobjtype::text)::"char" AS type) AS k
 CROSS JOIN LATERAL aclexplode(d.defaclacl) AS a
 WHERE d.defaclobjtype IN ('r', 'S', 'f', 'T')
   AND (d.defaclnamespace = ANY (:schemas)
        OR (d.defaclnamespace = 0 AND r.rolname = current_user))
