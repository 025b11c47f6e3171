"""Comparators: what Alembic does not see, found by building the declarations beside the schema as it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alembic.util import PriorityDispatchResult
from sqlalchemy import Computed, DefaultClause

from arc_halo.autogenerate import operations
from arc_halo.autogenerate.build import create_all
from arc_halo.autogenerate.catalog import columns, read
from arc_halo.autogenerate.clients import warn_of_clients
from arc_halo.autogenerate.extensions import extension_changes, standing_extensions
from arc_halo.autogenerate.fingerprint import remainder
from arc_halo.autogenerate.hidden import warn_of_hidden_uses
from arc_halo.autogenerate.loss import column_types, narrowed
from arc_halo.autogenerate.objects import or_replace
from arc_halo.autogenerate.operations import change_extension, create_schema
from arc_halo.autogenerate.order import arrange
from arc_halo.autogenerate.others import others
from arc_halo.autogenerate.privileges import PRIVILEGES, forget_owned, read_privileges
from arc_halo.autogenerate.renames import Names, names
from arc_halo.autogenerate.renames_declared import pending
from arc_halo.autogenerate.renames_reflected import RenamedInspector
from arc_halo.autogenerate.render import render_exactly
from arc_halo.autogenerate.savepoints import put_aside, rolled_back, run, succeeds
from arc_halo.autogenerate.schemas import (
    Relation,
    declared_schemas,
    sole_metadata,
    standing_schemas,
    used_schemas,
)
from arc_halo.autogenerate.tables import (
    claimed_parts,
    dropped_tables,
    indexes_beside_renames,
    late_references,
    tables_made_views,
)
from arc_halo.autogenerate.tabs import tabbed_parts
from arc_halo.autogenerate.uncovered import report, uncovered_lines
from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from alembic.autogenerate.api import AutogenContext
    from alembic.operations import MigrateOperation, ops
    from sqlalchemy import Column, Connection, MetaData

    from arc_halo.autogenerate.build import Built
    from arc_halo.autogenerate.catalog import Address, Found
    from arc_halo.autogenerate.fingerprint import Thing
    from arc_halo.autogenerate.objects import Key, Statements
    from arc_halo.autogenerate.others import Others
    from arc_halo.autogenerate.renames import Rename
    from arc_halo.autogenerate.schemas import Schemas

_NO_CASCADE = {"rls", "storage", "compression", "default", "options"}


@dataclass
class Changes:
    """What differs between the schemas as they stand and as they are declared."""

    gone: set[Key] = field(default_factory=set)
    renewed: set[Key] = field(default_factory=set)
    replaced: set[Key] = field(default_factory=set)
    comments: set[Key] = field(default_factory=set)
    new_parts: set[Key] = field(default_factory=set)


@dataclass
class Comparison:
    """The schemas as they stand, as they are declared, and what Alembic has already decided to do about tables.

    Keys, relations, members and columns are the new ones where something is renamed; statements of what is ``current``
    have the old names, and so has ``former``: what is wanted as it reads before the renames.
    """

    columns: Mapping[tuple[Relation, str], Address]
    current: dict[Key, Found]
    built: dict[Key, Built]
    wanted: dict[Key, Found]
    former: dict[Key, Found]
    names: Names
    claimed: set[Key]
    gone_tables: set[Relation]
    remainder: tuple[list[Thing], list[Thing]]  # as it stands, as it is declared
    narrowed: dict[tuple[Relation, str], str]  # what changed types of columns lose
    schemas: set[str]  # that hold something as declared
    others: Others
    changes: Changes = field(default_factory=Changes)
    # What stands as it reads after the renames: what OR REPLACE replaces, and what is kept.
    put_back: dict[Key, Found] = field(default_factory=dict)

    def is_kept(self, key: Key) -> bool:
        """Whether it is of others: where it is in the way, it is dropped and made again as it was."""
        found = self.current[key]
        goes = found.relation in self.gone_tables  # with its table
        return key not in self.wanted and not goes and self.others.own_object(key, found)


def look_renamed(
    context: AutogenContext, _upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    """Have Alembic see what is to be renamed under its new names; runs before it."""
    connection, metadata = context.connection, sole_metadata(context.metadata)
    assert connection is not None
    if schemas.issuperset(standing_schemas(connection, declared_schemas(metadata))):
        renames = pending(connection, metadata)
        if renames:
            context.inspector = RenamedInspector(context.inspector, renames)
    return PriorityDispatchResult.CONTINUE


def compare_schema(
    context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    """Add what is to be done around Alembic's own table operations; runs after them."""
    connection, metadata = context.connection, sole_metadata(context.metadata)
    assert connection is not None
    ours = declared_schemas(metadata)
    standing = standing_schemas(connection, ours)
    unseen = ({ours[0]} | standing) - schemas
    if unseen:
        raise ConfigurationError(
            f"Autogenerate does not see the schema {' and '.join(sorted(unseen))} of the metadata: pass scope(...) to"
            " context.configure(), create the metadata's own schema before, and keep its schemas from being the first"
            " of the search_path."
        )
    warn_of_clients(connection)
    used = used_schemas(connection, ours)
    extensions = [
        change_extension(each) for each in extension_changes(metadata, standing_extensions(connection, metadata))
    ]
    renames = context.inspector.renames if isinstance(context.inspector, RenamedInspector) else ()
    version_table = Relation(ours[0], context.migration_context.version_table)
    comparison = _comparison(connection, metadata, upgrade_ops.ops, renames, version_table)
    uncovered = uncovered_lines(comparison, upgrade_ops.ops, version_table)
    upgrade_ops.ops[:] = arrange(connection, comparison, ours, upgrade_ops.ops)
    warn_of_hidden_uses(comparison, upgrade_ops.ops)
    # Also for the first thing in it: the schema may be left from revisions that are written anew.
    needed = comparison.schemas - used if upgrade_ops.ops else set()
    made = [create_schema(each) for each in ours[1:] if each not in standing or each in needed]
    upgrade_ops.ops[:0] = [*made, *extensions]
    report(uncovered, alone=not upgrade_ops.ops)
    render_exactly(context.migration_context.impl)
    return PriorityDispatchResult.CONTINUE


def compare_server_default(
    context: AutogenContext,
    _operation: ops.AlterColumnOp,
    schema: str | None,
    _table: str,
    _name: str,
    current: Column[Any],
    wanted: Column[Any],
) -> PriorityDispatchResult:
    """Keep plain and computed defaults from Alembic's comparison; their catalog text is compared instead.

    Alembic runs both defaults and compares the values, which calls functions that may not exist yet or never give the
    same value twice, and it can only warn of a changed computed column.
    """
    if schema not in declared_schemas(sole_metadata(context.metadata)):
        return PriorityDispatchResult.CONTINUE
    defaults = (current.server_default, wanted.server_default)
    plain = all(default is None or isinstance(default, DefaultClause) for default in defaults)
    computed = all(isinstance(default, Computed) for default in defaults)
    return PriorityDispatchResult.STOP if plain or computed else PriorityDispatchResult.CONTINUE


def _comparison(
    connection: Connection,
    metadata: MetaData,
    table_ops: list[MigrateOperation],
    renames: Sequence[Rename],
    version_table: Relation,
) -> Comparison:
    schemas = declared_schemas(metadata)
    before, current = columns(connection, schemas), read(connection, schemas)
    held = read_privileges(connection, metadata, declared=False)
    of_others = others(connection, metadata)
    standing_remainder, standing_types = remainder(connection, schemas), column_types(connection, schemas)
    with rolled_back(connection):
        put_aside(connection, schemas)
        built = create_all(connection, metadata)
        wanted = read(connection, schemas)
        declared_columns, declared_types = columns(connection, schemas), column_types(connection, schemas)
        given = read_privileges(connection, metadata, declared=True)
        renamed, former = names(connection, schemas, renames, wanted)
        before, current = renamed.of_columns(before), renamed.of_objects(current, wanted)
        current |= {key: found for key, found in held.items() if found.relation != version_table}
        wanted |= given
        former |= given
        forget_owned(current, wanted)
        standing_tables = {table for table, _ in before}
        table_ops += tables_made_views(standing_tables, metadata)
        indexes = indexes_beside_renames(table_ops, current, wanted) if renames else set()
        comparison = Comparison(
            before,
            current,
            built,
            wanted,
            former,
            renamed,
            claimed_parts(current, table_ops),
            dropped_tables(table_ops),
            (standing_remainder, remainder(connection, schemas)),
            narrowed(connection, renamed.of_columns(standing_types), declared_types),
            used_schemas(connection, schemas),
            of_others,
        )
        if renames:
            comparison.put_back = _kept_by_new_names(connection, schemas, comparison)
        comparison.changes = _changes(connection, schemas, comparison, before.keys() & declared_columns.keys())
        comparison.changes.new_parts |= indexes
        comparison.changes.new_parts |= late_references(table_ops, standing_tables, wanted)
        comparison.changes.new_parts |= tabbed_parts(table_ops, current, wanted)
    return comparison


def _changes(
    connection: Connection, schemas: Schemas, comparison: Comparison, standing: set[tuple[Relation, str]]
) -> Changes:
    current, wanted = comparison.current, comparison.wanted
    changes = Changes()
    for key in sorted(current.keys() | wanted.keys()):
        found = current.get(key) or wanted[key]
        if key in current and key in wanted:
            if key not in comparison.claimed:
                _compare_one(connection, schemas, comparison, key, changes)
        elif found.is_part and not _overlooked(key, found, standing):
            continue
        elif key in current:
            if not comparison.others.own_object(key, found):
                changes.gone.add(key)
        elif found.is_part:
            changes.new_parts.add(key)
    return changes


def _overlooked(key: Key, found: Found, standing: set[tuple[Relation, str]]) -> bool:
    """Whether Alembic neither creates nor drops this part of a table that stays."""
    if key.kind == "default":
        return (found.relation, found.member) in standing
    return key.kind in {"exclusion", "primary key", "options"} and found.relation in {table for table, _ in standing}


def _compare_one(connection: Connection, schemas: Schemas, comparison: Comparison, key: Key, changes: Changes) -> None:
    current, former = comparison.current[key], comparison.former[key]
    former_key = comparison.names.former_key(key)
    if not _differs(connection, schemas, former_key, former, current):
        if key.kind != "generated" and former.comments != current.comments:  # Alembic compares columns' comments
            changes.comments.add(key)
    elif key in comparison.built and _replaceable(connection, comparison, key):
        changes.replaced.add(key)
        if comparison.names.operations:
            comparison.put_back[key] = _put_back(connection, schemas, comparison, key)
    else:
        changes.renewed.add(key)


def _text(key: Key, found: Found) -> Statements:
    return found.definition[:1] if key.kind == "generated" else found.definition  # NOT NULL is Alembic's there


def _differs(connection: Connection, schemas: Schemas, key: Key, wanted: Found, current: Found) -> bool:
    """Whether the text differs, also from what it is when parsed once more, as after a downgrade or a dump."""
    if _text(key, wanted) == _text(key, current) or key.kind in PRIVILEGES:
        return _text(key, wanted) != _text(key, current)
    removal = wanted.removal if key.kind in _NO_CASCADE else f"{wanted.removal} CASCADE"
    with rolled_back(connection):
        if not succeeds(connection, (removal, *wanted.definition)):
            return True
        return _text(key, read(connection, schemas)[key]) != _text(key, current)


def _replaceable(connection: Connection, comparison: Comparison, key: Key) -> bool:
    """Whether OR REPLACE does, both ways. The new object stands there: try the old over it, then the new."""
    if key.kind not in ("function", "procedure", "view", "trigger"):
        return False
    old, new = comparison.current[key].statements, comparison.built[key].source
    if key.kind == "trigger" and any(statement.startswith("ALTER TABLE") for statement in (*old, *new)):
        return False  # whether OR REPLACE enables what was disabled differs between releases
    with rolled_back(connection):
        if comparison.names.operations:  # a body that is a string may name what has another name now
            new = comparison.former[key].statements
            run(connection, ["SET LOCAL check_function_bodies = off"])
        return succeeds(connection, or_replace(old)) and succeeds(connection, or_replace(new))


def _kept_by_new_names(connection: Connection, schemas: Schemas, comparison: Comparison) -> dict[Key, Found]:
    """What others keep, as it reads after the renames; left out what cannot be made of declared tables alone."""
    kept = {
        key: found
        for key, found in comparison.current.items()
        if not found.is_part and key.kind not in PRIVILEGES and comparison.is_kept(key)
    }
    if not kept:
        return {}
    waiting = list(kept.values())
    with rolled_back(connection):
        run(connection, ["SET LOCAL check_function_bodies = off"])
        while made := [found for found in waiting if succeeds(connection, found.statements)]:
            waiting = [found for found in waiting if found not in made]
        addresses = {found.removal: found.address for found in read(connection, schemas).values()}
        run(connection, [statement for _, each in comparison.names.operations for statement in each.up])
        renamed = {found.address: found for found in read(connection, schemas).values()}
    return {key: renamed[addresses[found.removal]] for key, found in kept.items() if found.removal in addresses}


def _put_back(connection: Connection, schemas: Schemas, comparison: Comparison, key: Key) -> Found:
    """What stands, as it reads after the renames: a downgrade puts that back before it takes them back."""
    current, renames = comparison.current[key], comparison.names.operations
    former_statements = operations.replace(key, (), comparison.former[key], current).down
    with rolled_back(connection):
        run(connection, ["SET LOCAL check_function_bodies = off", *former_statements])
        run(connection, [statement for _, each in renames for statement in each.up])
        return read(connection, schemas)[key]
