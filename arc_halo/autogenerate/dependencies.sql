-- Who uses whom: (catalog, row, column) of the user, then of the used. A view uses its sources through its rewrite
-- rule, a default or generated column through its pg_attrdef row, a foreign key its target through that one's index;
-- a row type stands for its relation.
SELECT CASE WHEN w.oid IS NULL AND a.oid IS NULL THEN d.classid ELSE 'pg_catalog.pg_class'::regclass::oid END,
       COALESCE(w.ev_class, a.adrelid, d.objid),
       COALESCE(a.adnum, 0),
       CASE WHEN c.oid IS NOT NULL THEN c.tableoid
            WHEN y.typrelid > 0 THEN 'pg_catalog.pg_class'::regclass::oid
            ELSE d.refclassid END,
       CASE WHEN c.oid IS NOT NULL THEN c.oid WHEN y.typrelid > 0 THEN y.typrelid ELSE d.refobjid END,
       d.refobjsubid
  FROM pg_catalog.pg_depend AS d
  LEFT JOIN pg_catalog.pg_rewrite AS w ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND w.oid = d.objid
  LEFT JOIN pg_catalog.pg_attrdef AS a ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND a.oid = d.objid
  LEFT JOIN pg_catalog.pg_type AS y ON d.refclassid = 'pg_catalog.pg_type'::regclass AND y.oid = d.refobjid
  LEFT JOIN pg_catalog.pg_constraint AS c
    ON d.refclassid = 'pg_catalog.pg_class'::regclass AND c.conindid = d.refobjid AND c.contype IN ('p', 'u', 'x')
 WHERE d.deptype IN ('n', 'a', 'P')
