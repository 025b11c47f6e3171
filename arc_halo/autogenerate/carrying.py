"""Privileges in a revision: those that change, and those of what it drops and makes again.

These die with the object, and are carried over as they stand in the database where the revision runs: which roles there
are is known there, and not where the revision is written. A pair of statements per revision, whatever the number of
objects, saves them before the drops and gives them again. The setting that holds them is one of the session, so that an
``autocommit_block()`` between the two does not lose them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from arc_halo.autogenerate import operations
from arc_halo.autogenerate.objects import Key
from arc_halo.autogenerate.operations import SqlOperation
from arc_halo.autogenerate.privileges import PRIVILEGES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from alembic.operations import MigrateOperation

    from arc_halo.autogenerate.catalog import Found
    from arc_halo.autogenerate.compare import Comparison

_RELATIONS: Final = ("view", "matview")
_ROUTINES: Final = ("function", "procedure", "aggregate")
_OF_RELATIONS: Final = """\
SELECT made AS target, NULL AS columns, relacl AS acl
  FROM pg_class JOIN (VALUES {0}) AS r (standing, made) ON oid = standing::regclass
 UNION ALL
SELECT made, concat(' (', quote_ident(attname), ')'), attacl
  FROM pg_attribute JOIN (VALUES {0}) AS r (standing, made) ON attrelid = standing::regclass"""
_OF_ROUTINES: Final = """\
SELECT concat('ROUTINE ', made) AS target, NULL AS columns, proacl AS acl
  FROM pg_proc JOIN (VALUES {0}) AS r (standing, made) ON oid = standing::regprocedure"""
_SAVE: Final = """\
WITH made_again AS (
{0}
), privileges AS (
SELECT concat('GRANT ', privilege_type, columns, ' ON ', target, ' TO ') AS sql, grantee,
       CASE WHEN is_grantable THEN ' WITH GRANT OPTION' END AS option
  FROM made_again, aclexplode(acl)
 UNION ALL  -- what a new object has by itself
SELECT concat('REVOKE ALL ON ', target, ' FROM '), n.grantee, NULL
  FROM made_again, (SELECT 0::oid UNION SELECT grantee FROM pg_default_acl, aclexplode(defaclacl)
                     WHERE defaclrole = to_regrole(quote_ident(current_user)) AND grantee <> defaclrole) AS n (grantee)
 WHERE acl IS NOT NULL AND columns IS NULL
), statements AS (
SELECT concat(sql, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, option) AS sql FROM privileges
)
SELECT set_config('alembic.privileges', coalesce(jsonb_agg(sql ORDER BY sql DESC), '[]')::text, false)
  FROM statements"""
_RESTORE: Final = """\
DO $$
DECLARE sql text;
BEGIN
    FOR sql IN SELECT jsonb_array_elements_text(current_setting('alembic.privileges')::jsonb) LOOP
        BEGIN
            EXECUTE sql;
        EXCEPTION WHEN undefined_column THEN NULL;  -- the column is there no more
        END;
    END LOOP;
END $$"""


class _Again(NamedTuple):
    """What is made again, as PostgreSQL writes its name before and after."""

    standing: str
    made: str


def carry(comparison: Comparison, dropped: Iterable[Key]) -> tuple[list[MigrateOperation], list[MigrateOperation]]:
    """Save the privileges of what is dropped and made again, and give them again; in the downgrade, too."""
    relations: set[_Again] = set()
    routines: set[_Again] = set()
    for key in dropped:
        if key.kind == "generated" and key in comparison.wanted:
            relations.add(_Again(_table_of(comparison.current[key]), _table_of(comparison.wanted[key])))
        for kinds, names in ((_RELATIONS, relations), (_ROUTINES, routines)):
            if key.kind in kinds and (
                comparison.is_kept(key) or any(Key(each, key.name) in comparison.wanted for each in kinds)
            ):
                names.add(_Again(comparison.names.former_key(key).name, key.name))
    if not relations | routines:
        return [], []
    key = Key("privileges", ", ".join(sorted(each.made for each in relations | routines)))
    back = [{_Again(each.made, each.standing) for each in names} for names in (relations, routines)]
    save, save_back = _save(relations, routines), _save(*back)
    note = f"Keeps the privileges of {key.name}"
    return (
        [SqlOperation("carry", key, (save,), (_RESTORE,), note=note)],
        [SqlOperation("carry", key, (_RESTORE,), (save_back,), note=note)],
    )


def not_carried(comparison: Comparison, key: Key) -> str | None:
    """What to say where a routine goes and another of its name comes: whose privileges those should be is not known."""
    if key.kind not in _ROUTINES or key in comparison.wanted or comparison.is_kept(key):
        return None
    name = key.name.partition("(")[0]
    new = (each for each in comparison.wanted if each.kind in _ROUTINES and each not in comparison.current)
    if all(each.name.partition("(")[0] != name for each in new):
        return None
    return f"The privileges of {key.name} do not pass to another signature: GRANT and REVOKE them again"


def _table_of(column: Found) -> str:
    return column.removal.removeprefix("ALTER TABLE ").rpartition(" DROP COLUMN ")[0]


def _save(relations: set[_Again], routines: set[_Again]) -> str:
    named = [(_OF_RELATIONS, relations), (_OF_ROUTINES, routines)]
    return _SAVE.format("\n UNION ALL\n".join(query.format(_values(names)) for query, names in named if names))


def _values(names: Iterable[_Again]) -> str:
    literals = [["'" + name.replace("'", "''") + "'" for name in each] for each in sorted(names)]
    return ", ".join(f"({standing}, {made})" for standing, made in literals)


def around(comparison: Comparison, drop: set[Key]) -> tuple[list[MigrateOperation], list[MigrateOperation]]:
    """What is revoked before the rest of a revision, and what is given after it.

    Where an object is dropped its privileges go, too; those that it had are carried over to the one made again, so that
    only changes of them are written.
    """
    current, wanted = comparison.current, comparison.wanted
    before: list[MigrateOperation] = []
    after: list[MigrateOperation] = []
    for key in sorted({*current, *wanted}):
        if key.kind == "owner":
            first, last = _owners(comparison, key, drop)
            before += first
            after += last
    grants = sorted(key for key in {*current, *wanted} if key.kind in PRIVILEGES - {"owner"})
    revoked = [operations.drop(key, current[key]) for key in grants if key in drop]
    given = [
        operations.create(key, wanted[key].definition, wanted[key])
        for key in grants
        if key in wanted and (key in drop or key not in current)
    ]
    return [*reversed(revoked), *before], [*after, *given]


def _owners(comparison: Comparison, key: Key, drop: set[Key]) -> tuple[list[MigrateOperation], list[MigrateOperation]]:
    """The former owner, which only the downgrade gives back, and the new one, which only the upgrade gives."""
    current, wanted = comparison.current.get(key), comparison.wanted.get(key)
    made_of = Key(*key.name.split(" ", 1))
    is_gone = made_of in drop or (made_of.kind == "table" and current and current.relation in comparison.gone_tables)
    changes = current is not None and wanted is not None and current.definition != wanted.definition
    is_renamed = bool(comparison.names.operations) and wanted is None and not comparison.is_kept(key)
    first: list[MigrateOperation] = []
    last: list[MigrateOperation] = []
    if current is not None and (is_gone or changes or is_renamed):
        first.append(SqlOperation("own", key, (), current.definition))
    if wanted is not None and (current is None or is_gone or changes):
        last.append(SqlOperation("own", key, wanted.definition, ()))
    return first, last
