"""The order of a revision: drops, what tables need, table operations, what needs tables; reversed, the downgrade."""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

from alembic.operations import ops

from arc_halo.autogenerate import operations
from arc_halo.autogenerate.catalog import Address, dependencies
from arc_halo.autogenerate.objects import Key
from arc_halo.autogenerate.partitions import declared_partitions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from alembic.operations import MigrateOperation
    from sqlalchemy import Connection

    from arc_halo.autogenerate.catalog import Found
    from arc_halo.autogenerate.compare import Comparison

Users = dict[Key, set[Key]]


def flat(operations_: Iterable[MigrateOperation]) -> Iterator[MigrateOperation]:
    """Operations without their containers."""
    for operation in operations_:
        if isinstance(operation, ops.OpContainer):
            yield from flat(operation.ops)
        else:
            yield operation


def arrange(
    connection: Connection, comparison: Comparison, schema: str, table_ops: list[MigrateOperation]
) -> list[MigrateOperation]:
    """All operations of the revision, Alembic's own in their midst."""
    users, drop = _to_drop(connection, comparison, schema, table_ops)
    graph = {key: sorted(users[key]) for key in sorted(drop)}
    order = [key for key in TopologicalSorter(graph).static_order() if key in drop]  # users first
    first: list[MigrateOperation] = []
    last: list[MigrateOperation] = []
    late: set[Key] = set()
    for key in order:
        # What Alembic's operations will have let go of, e.g. the function of a dropped default, goes after them.
        if key not in comparison.wanted and any(user not in drop or user in late for user in users[key]):
            late.add(key)
        (last if key in late else first).append(operations.drop(key, comparison.current[key]))
    before, after = _creations(comparison, drop)
    renewed_columns = {
        (comparison.current[key].relation, comparison.current[key].member) for key in drop if key.kind == "generated"
    }
    tables = list(_table_operations(table_ops, renewed_columns))
    return [*first, *before, *tables, *_parts(comparison, order), *after, *last]


def _to_drop(
    connection: Connection, comparison: Comparison, schema: str, table_ops: Iterable[MigrateOperation]
) -> tuple[Users, set[Key]]:
    """Who uses whom, and what must be dropped, with everything that uses it."""
    current = comparison.current
    users: Users = {key: set() for key in current}
    drop = comparison.changes.gone | comparison.changes.renewed
    touched = set(_touched(comparison, schema, table_ops))
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
        stands_in_the_way = not current[user].is_part or (user.kind == "generated" and _renewable(comparison, user))
        if stands_in_the_way and {used_address, used_address._replace(column=0)} & touched:
            drop.add(user)
    while more := {
        user for key in drop for user in users[key] if not current[user].is_part or _renewable(comparison, user)
    } - drop:
        drop |= more
    return users, drop


def _renewable(comparison: Comparison, part: Key) -> bool:
    """A part that stays, and that no operation of Alembic's deals with."""
    return part in comparison.wanted and part not in comparison.claimed


def _touched(comparison: Comparison, schema: str, table_ops: Iterable[MigrateOperation]) -> Iterator[Address]:
    """Addresses of columns that Alembic drops or retypes, and of tables that it drops (column 0)."""
    for op in flat(table_ops):
        if getattr(op, "schema", None) != schema:
            continue
        if isinstance(op, ops.DropTableOp):
            yield from {
                address._replace(column=0) for (table, _), address in comparison.columns.items() if table == op.table_name
            }
        elif isinstance(op, ops.DropColumnOp) or (isinstance(op, ops.AlterColumnOp) and op.modify_type is not None):
            yield comparison.columns[op.table_name, op.column_name]


def _reset_storages(comparison: Comparison, touched: set[Address]) -> set[Key]:
    """Column storages that ALTER TYPE resets."""
    return {
        key
        for key, found in comparison.current.items()
        if key.kind == "storage" and comparison.columns.get((str(found.relation), str(found.member))) in touched
    }


def _creations(
    comparison: Comparison, drop: set[Key]
) -> tuple[list[MigrateOperation], list[MigrateOperation]]:
    """Objects to create, replace or comment on before and after the table operations."""
    current, wanted, changes = comparison.current, comparison.wanted, comparison.changes
    before: list[MigrateOperation] = []
    after: list[MigrateOperation] = []
    for key, made in comparison.built.items():
        side = before if made.before_tables else after
        if key in drop or key not in current:
            side.append(operations.create(key, made.source, wanted[key]))
        elif key in changes.replaced:
            side.append(operations.replace(key, made.source, wanted[key], current[key]))
        elif key in changes.comments:
            side.append(operations.comment(key, wanted[key], current[key]))
    return before, after


def _parts(comparison: Comparison, order: list[Key]) -> Iterator[MigrateOperation]:
    """Parts of tables to create again, in the reverse of the order in which they were dropped."""
    current, wanted, changes = comparison.current, comparison.wanted, comparison.changes

    def creation(key: Key, found: Found) -> MigrateOperation:
        return operations.create(key, found.statements, found)

    for key in reversed(order):
        if current[key].is_part and key in wanted:
            yield creation(key, wanted[key])
    for key in sorted(changes.new_defaults):
        yield creation(key, wanted[key])
    for key in sorted(changes.comments - set(order) - comparison.built.keys()):
        yield operations.comment(key, wanted[key], current[key])


def _table_operations(
    table_ops: Iterable[MigrateOperation], renewed_columns: set[tuple[str | None, str | None]]
) -> Iterator[MigrateOperation]:
    """Alembic's operations: partitions follow their table, and columns made anew need no ALTER."""
    for op in table_ops:
        if isinstance(op, ops.ModifyTableOps):
            op.ops[:] = [
                inner
                for inner in op.ops
                if not (isinstance(inner, ops.AlterColumnOp) and (inner.table_name, inner.column_name) in renewed_columns)
            ]
            if op.is_empty():
                continue
        yield op
        if isinstance(op, ops.CreateTableOp) and (partitions := declared_partitions(op.info)):
            key = Key("partitions", f"{op.schema}.{op.table_name}")
            yield operations.SqlOperation("partition", key, partitions, ())
