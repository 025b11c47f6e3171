"""Comparators: what Alembic does not see, found by building the declarations beside the schema as it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alembic.util import PriorityDispatchResult
from sqlalchemy import Computed, DefaultClause, MetaData

from arc_halo.autogenerate.build import create_all
from arc_halo.autogenerate.catalog import columns, read
from arc_halo.autogenerate.clients import warn_of_clients
from arc_halo.autogenerate.fingerprint import remainder
from arc_halo.autogenerate.loss import column_types, narrowed
from arc_halo.autogenerate.objects import or_replace
from arc_halo.autogenerate.order import arrange
from arc_halo.autogenerate.render import render_exactly
from arc_halo.autogenerate.savepoints import put_aside, rolled_back, succeeds
from arc_halo.autogenerate.tables import claimed_parts, dropped_tables, late_references, tables_made_views
from arc_halo.autogenerate.tabs import tabbed_parts
from arc_halo.autogenerate.uncovered import report, uncovered_lines
from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from alembic.autogenerate.api import AutogenContext
    from alembic.operations import MigrateOperation, ops
    from sqlalchemy import Column, Connection

    from arc_halo.autogenerate.build import Built
    from arc_halo.autogenerate.catalog import Address, Found
    from arc_halo.autogenerate.fingerprint import Thing
    from arc_halo.autogenerate.objects import Key, Statements

_NO_CASCADE = {"rls", "storage", "compression", "default", "options"}


@dataclass
class Changes:
    """What differs between the schema as it stands and as it is declared."""

    gone: set[Key] = field(default_factory=set)
    renewed: set[Key] = field(default_factory=set)
    replaced: set[Key] = field(default_factory=set)
    comments: set[Key] = field(default_factory=set)
    new_parts: set[Key] = field(default_factory=set)


@dataclass
class Comparison:
    """The schema as it stands, as it is declared, and what Alembic has already decided to do about its tables."""

    columns: Mapping[tuple[str, str], Address]
    current: dict[Key, Found]
    built: dict[Key, Built]
    wanted: dict[Key, Found]
    claimed: set[Key]
    gone_tables: set[str]
    remainder: tuple[list[Thing], list[Thing]]  # as it stands, as it is declared
    narrowed: dict[tuple[str, str], str]  # what changed types of columns lose
    changes: Changes = field(default_factory=Changes)


def compare_schema(
    context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    """Add what is to be done around Alembic's own table operations; runs after them."""
    connection, metadata = context.connection, context.metadata
    assert connection is not None
    if not isinstance(metadata, MetaData) or metadata.schema is None or metadata.schema not in schemas:
        raise ConfigurationError(
            f"Autogenerate does not see the schema of {metadata!r}: give it MetaData(schema=...), pass scope(...) to"
            " context.configure(), and keep that schema from being the first of the search_path."
        )
    warn_of_clients(connection)
    comparison = _comparison(connection, metadata, upgrade_ops.ops)
    uncovered = uncovered_lines(comparison, upgrade_ops.ops, context.migration_context.version_table)
    upgrade_ops.ops[:] = arrange(connection, comparison, metadata.schema, upgrade_ops.ops)
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
    if not isinstance(context.metadata, MetaData) or schema != context.metadata.schema:
        return PriorityDispatchResult.CONTINUE
    defaults = (current.server_default, wanted.server_default)
    plain = all(default is None or isinstance(default, DefaultClause) for default in defaults)
    computed = all(isinstance(default, Computed) for default in defaults)
    return PriorityDispatchResult.STOP if plain or computed else PriorityDispatchResult.CONTINUE


def _comparison(connection: Connection, metadata: MetaData, table_ops: list[MigrateOperation]) -> Comparison:
    schema = str(metadata.schema)
    before, current = columns(connection, schema), read(connection, schema)
    standing_tables = {table for table, _ in before}
    table_ops += tables_made_views(standing_tables, metadata)
    standing_remainder, standing_types = remainder(connection, schema), column_types(connection, schema)
    with rolled_back(connection):
        put_aside(connection, schema)
        built = create_all(connection, metadata)
        wanted = read(connection, schema)
        comparison = Comparison(
            before,
            current,
            built,
            wanted,
            claimed_parts(current, table_ops),
            dropped_tables(table_ops),
            (standing_remainder, remainder(connection, schema)),
            narrowed(connection, standing_types, column_types(connection, schema)),
        )
        standing = before.keys() & columns(connection, schema).keys()
        comparison.changes = _changes(connection, schema, comparison, standing)
        comparison.changes.new_parts |= late_references(table_ops, standing_tables, wanted)
        comparison.changes.new_parts |= tabbed_parts(table_ops, current, wanted)
    return comparison


def _changes(connection: Connection, schema: str, comparison: Comparison, standing: set[tuple[str, str]]) -> Changes:
    current, wanted = comparison.current, comparison.wanted
    changes = Changes()
    for key in sorted(current.keys() | wanted.keys()):
        found = current.get(key) or wanted[key]
        if key in current and key in wanted:
            if key not in comparison.claimed:
                _compare_one(connection, schema, comparison, key, changes)
        elif found.is_part and not _overlooked(key, found, standing):
            continue
        elif key in current:
            changes.gone.add(key)
        elif found.is_part:
            changes.new_parts.add(key)
    return changes


def _overlooked(key: Key, found: Found, standing: set[tuple[str, str]]) -> bool:
    """Whether Alembic neither creates nor drops this part of a table that stays."""
    if key.kind == "default":
        return (str(found.relation), str(found.member)) in standing
    return key.kind in {"exclusion", "primary key", "options"} and found.relation in {table for table, _ in standing}


def _compare_one(connection: Connection, schema: str, comparison: Comparison, key: Key, changes: Changes) -> None:
    current, wanted = comparison.current[key], comparison.wanted[key]
    if not _differs(connection, schema, key, wanted, current):
        if key.kind != "generated" and wanted.comments != current.comments:  # Alembic compares columns' comments
            changes.comments.add(key)
    elif key in comparison.built and _replaceable(connection, key, current.statements, comparison.built[key].source):
        changes.replaced.add(key)
    else:
        changes.renewed.add(key)


def _text(key: Key, found: Found) -> Statements:
    return found.definition[:1] if key.kind == "generated" else found.definition  # NOT NULL is Alembic's there


def _differs(connection: Connection, schema: str, key: Key, wanted: Found, current: Found) -> bool:
    """Whether the text differs, also from what it is when parsed once more, as after a downgrade or a dump."""
    if _text(key, wanted) == _text(key, current):
        return False
    removal = wanted.removal if key.kind in _NO_CASCADE else f"{wanted.removal} CASCADE"
    with rolled_back(connection):
        if not succeeds(connection, (removal, *wanted.definition)):
            return True
        return _text(key, read(connection, schema)[key]) != _text(key, current)


def _replaceable(connection: Connection, key: Key, old: Statements, new: Statements) -> bool:
    """Whether OR REPLACE does, both ways. The new object stands there: try the old over it, then the new."""
    if key.kind not in ("function", "procedure", "view", "trigger"):
        return False
    if key.kind == "trigger" and any(statement.startswith("ALTER TABLE") for statement in (*old, *new)):
        return False  # whether OR REPLACE enables what was disabled differs between releases
    with rolled_back(connection):
        return succeeds(connection, or_replace(old)) and succeeds(connection, or_replace(new))
