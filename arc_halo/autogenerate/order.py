"""The order of a revision: drops, what tables need, table operations, what needs tables; reversed, the downgrade.

Where something is renamed, all drops come before that, with the old names, and all else after it, with the new ones.
"""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

from alembic.operations import ops

from arc_halo.autogenerate import operations
from arc_halo.autogenerate.carrying import around, carry, not_carried
from arc_halo.autogenerate.catalog import Address, dependencies, read_tables
from arc_halo.autogenerate.objects import Key
from arc_halo.autogenerate.privileges import PRIVILEGES
from arc_halo.autogenerate.renames import VIEWS
from arc_halo.autogenerate.schemas import Relation
from arc_halo.autogenerate.tables import CONSTRAINTS, additions_apart, amended, dropped_tables, drops_apart, flat
from arc_halo.autogenerate.tabs import with_tabs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from alembic.operations import MigrateOperation
    from sqlalchemy import Connection

    from arc_halo.autogenerate.compare import Comparison
    from arc_halo.autogenerate.schemas import Schemas

Users = dict[Key, set[Key]]

_SETTINGS = {"storage", "compression"}  # of a column, whose name they have
_ROUTINES = {"function", "procedure", "aggregate"}


def arrange(
    connection: Connection, comparison: Comparison, schemas: Schemas, table_ops: list[MigrateOperation]
) -> list[MigrateOperation]:
    """All operations of the revision, Alembic's own in their midst."""
    users, drop = _to_drop(connection, comparison, table_ops)
    order = [key for key in _users_first(users, drop) if key.kind not in PRIVILEGES]
    held: set[Key] = set()  # by what only Alembic's drops let go of, as the function of a default by its column
    for key in order:
        if any(user not in drop or user in held for user in users[key]):
            held.add(key)
    removals = {key: operations.drop(key, comparison.current[key], not_carried(comparison, key)) for key in order}
    gone: list[MigrateOperation] = []
    tables = list(amended(table_ops, comparison.current, drop, read_tables(connection, schemas), comparison.narrowed))
    if held or comparison.names.operations:
        gone, tables = drops_apart(tables, comparison.names)
    additions, tables = additions_apart(tables)
    before, after = _creations(comparison, order)
    save, restore = carry(comparison, order)
    revoked, given = around(comparison, drop)
    return [
        *revoked,
        *save,
        *(removal for key, removal in removals.items() if key not in held),
        *_comments(comparison, drop),
        *_with_tabs(gone),
        *(removal for key, removal in removals.items() if key in held),
        *_renames(comparison, drop),
        *before,
        *_with_tabs(tables),
        *sorted([*_parts(comparison, order), *additions], key=_makes_reference),
        *_first_comments(comparison),
        *after,
        *restore,
        *given,
    ]


def _users_first(users: Users, drop: set[Key]) -> list[Key]:
    """What to drop, in order; functions as late as can be, for a body that is a string may use any of them."""
    sorter = TopologicalSorter({key: users[key] & drop for key in drop})
    sorter.prepare()
    order: list[Key] = []
    ready: set[Key] = set()
    while sorter.is_active():
        ready |= set(sorter.get_ready())
        key = min(ready, key=lambda key: (key.kind in _ROUTINES, key))
        ready.remove(key)
        order.append(key)
        sorter.done(key)
    return order


def _with_tabs(table_ops: Iterable[MigrateOperation]) -> Iterator[MigrateOperation]:
    for op in table_ops:
        yield from with_tabs(op)


def _makes_reference(op: MigrateOperation) -> bool:
    """Whether it makes a foreign key, which wants every other constraint to be there."""
    if isinstance(op, operations.SqlOperation):
        return op.key.kind == "foreign key"
    return isinstance(op, ops.ModifyTableOps) and isinstance(op.ops[0], ops.CreateForeignKeyOp)


def _comments(comparison: Comparison, drop: set[Key]) -> Iterator[MigrateOperation]:
    """Comments on what stays, under its old name."""
    for key in sorted(comparison.changes.comments - drop):
        yield operations.comment(key, comparison.former[key], comparison.current[key])


def _renames(comparison: Comparison, drop: set[Key]) -> Iterator[MigrateOperation]:
    """The renames, left out those of what is dropped under its old name and made under its new one."""
    made_anew = [comparison.current[key] for key in drop if key.kind == "generated"]
    generated = {(found.relation, found.member) for found in made_anew}
    views = {comparison.current[key].relation for key in drop if key.kind in VIEWS}
    for rename, operation in comparison.names.operations:
        of_column = rename.kind == "column" and (rename.relation in views or (rename.relation, rename.new) in generated)
        if rename.key not in drop and not of_column:
            yield operation


def _to_drop(
    connection: Connection, comparison: Comparison, table_ops: list[MigrateOperation]
) -> tuple[Users, set[Key]]:
    """Who uses whom, and what must be dropped, with everything that uses it."""
    current = comparison.current
    users: Users = {key: set() for key in current}
    drop = comparison.changes.gone | comparison.changes.renewed
    if comparison.names.operations:
        drop |= {key for key in comparison.claimed if current[key].relation not in comparison.gone_tables}
    touched = set(_touched(comparison, table_ops))
    drop |= _reset_storages(comparison, touched)
    by_address = {found.address: key for key, found in current.items()}
    for user_address, used_address in dependencies(connection):
        user = by_address.get(user_address)
        if user is None:
            continue
        used = by_address.get(used_address)
        if used is None or used.kind == "default":
            used = by_address.get(used_address._replace(column=0))
        if used is not None and used != user:
            users[used].add(user)
        if _in_the_way(comparison, user, used_address, touched):
            drop.add(user)
    for key in current:
        column = Key("generated", key.name)
        if key.kind in _SETTINGS and column in current:
            users[column].add(key)
    while more := {user for key in drop for user in users[key] if _may_drop(comparison, user)} - drop:
        drop |= more
    return users, drop


def _in_the_way(comparison: Comparison, user: Key, used: Address, touched: set[Address]) -> bool:
    """Whether PostgreSQL would refuse to touch this column or table for the sake of its user."""
    table = used._replace(column=0)
    if user.kind == "foreign key":
        return table in touched
    if user.kind == "generated" and not _may_drop(comparison, user):
        return False
    if comparison.current[user].is_part and user.kind != "generated":
        return False  # PostgreSQL takes it along
    return used in touched or table in touched


def _may_drop(comparison: Comparison, key: Key) -> bool:
    """Whether it is ours to drop: not what goes with its table, nor a part that goes with its column."""
    found = comparison.current[key]
    if not found.is_part:
        return True
    if found.relation in comparison.gone_tables:
        return False
    return key in comparison.wanted or key in comparison.claimed or key.kind == "generated"


def _touched(comparison: Comparison, table_ops: list[MigrateOperation]) -> Iterator[Address]:
    """Addresses of columns that Alembic drops or retypes, and of tables that it drops (column 0)."""
    gone = dropped_tables(table_ops)
    yield from {address._replace(column=0) for (table, _), address in comparison.columns.items() if table in gone}
    for op in flat(table_ops):
        if isinstance(op, ops.DropColumnOp) or (isinstance(op, ops.AlterColumnOp) and op.modify_type is not None):
            yield comparison.columns[Relation(str(op.schema), op.table_name), op.column_name]


def _reset_storages(comparison: Comparison, touched: set[Address]) -> set[Key]:
    """Storage and compression of columns that ALTER TYPE resets."""
    places = {place for place, address in comparison.columns.items() if address in touched}
    return {
        key
        for key, found in comparison.current.items()
        if key.kind in _SETTINGS and (found.relation, found.member) in places
    }


def _creations(comparison: Comparison, order: list[Key]) -> tuple[list[MigrateOperation], list[MigrateOperation]]:
    """Objects to create or replace before and after the table operations."""
    drop = set(order)
    current, wanted, changes = comparison.current, comparison.wanted, comparison.changes
    before: list[MigrateOperation] = []
    after: list[MigrateOperation] = []
    for key, made in comparison.built.items():
        # A view may take the name of a table that goes.
        side = before if made.before_tables and wanted[key].relation not in comparison.gone_tables else after
        if key in drop or key not in current:
            side.append(operations.create(key, made.source, wanted[key]))
        elif key in changes.replaced:
            former = comparison.put_back.get(key, current[key])
            side.append(operations.replace(key, made.source, wanted[key], former))
    for key in reversed(order):
        if comparison.is_kept(key):
            kept = comparison.put_back.get(key, current[key])
            after.append(operations.create(key, kept.statements, kept))
    return before, after


def _parts(comparison: Comparison, order: list[Key]) -> Iterator[MigrateOperation]:
    """Parts of tables to create: those dropped before in the reverse of that order, then new ones."""
    current, wanted = comparison.current, comparison.wanted
    again = [key for key in reversed(order) if current[key].is_part and key in wanted and key not in comparison.claimed]
    for key in [*again, *sorted(comparison.changes.new_parts)]:
        yield operations.create(key, wanted[key].statements, wanted[key], current.get(key))


def _first_comments(comparison: Comparison) -> Iterator[MigrateOperation]:
    """Comments on the constraints that Alembic makes without them."""
    current, wanted, changes = comparison.current, comparison.wanted, comparison.changes
    for key, found in sorted(wanted.items()):
        made_by_alembic = key in comparison.claimed or not (key in current or key in changes.new_parts)
        if made_by_alembic and key.kind in CONSTRAINTS:
            yield from operations.first_comments(key, found)
