"""Texts with tabs: offline, Alembic's own operations write spaces for them, so they become statements of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from alembic.operations import ops
from sqlalchemy import CheckConstraint, Column
from sqlalchemy.dialects import postgresql

from arc_halo.autogenerate.catalog import comment_on
from arc_halo.autogenerate.objects import Key
from arc_halo.autogenerate.operations import SqlOperation
from arc_halo.autogenerate.tables import relation_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from alembic.operations import MigrateOperation

    from arc_halo.autogenerate.catalog import Found

_QUOTE = postgresql.dialect().identifier_preparer.quote  # type: ignore[no-untyped-call]


class _Comment(NamedTuple):
    """What is said of a table or column after an operation, and before."""

    target: str
    after: str | None
    before: str | None


def tabbed_parts(
    table_ops: list[MigrateOperation], current: Mapping[Key, Found], wanted: Mapping[Key, Found]
) -> set[Key]:
    """Take new constraints and indexes with a tab in their text out of Alembic's operations, and return them."""
    tabbed = {
        (found.relation, found.member): key
        for key, found in wanted.items()
        if found.is_part and key.kind in {"constraint", "index"} and key not in current
        if any("\t" in statement for statement in found.definition)
    }
    taken: set[Key] = set()

    def take(op: MigrateOperation, name: object) -> bool:
        key = tabbed.get((relation_of(op), str(name)))
        if key is not None:
            taken.add(key)
        return key is not None

    for op in table_ops if tabbed else ():
        if isinstance(op, ops.CreateTableOp):
            op.columns = [
                item for item in op.columns if not (isinstance(item, CheckConstraint) and take(op, item.name))
            ]
        elif isinstance(op, ops.ModifyTableOps):
            op.ops[:] = [
                inner
                for inner in op.ops
                if not (isinstance(inner, ops.CreateIndexOp) and take(inner, inner.index_name))
                and not (isinstance(inner, ops.CreateCheckConstraintOp) and take(inner, inner.constraint_name))
            ]
    return taken


def with_tabs(op: MigrateOperation) -> Iterator[MigrateOperation]:
    """The operation, with the comments that it sets repeated where they have a tab, in each direction after it."""
    said = [each for each in _comments(op) if "\t" in f"{each.after}{each.before}"]
    yield from (_repeated((), _statements(each.target, each.before)) for each in said)
    yield op
    yield from (_repeated(_statements(each.target, each.after), ()) for each in said)


def _repeated(up: tuple[str, ...], down: tuple[str, ...]) -> SqlOperation:
    return SqlOperation("comment", Key("comment", ""), up, down)


def _statements(target: str, said: str | None) -> tuple[str, ...]:
    return (comment_on(target, said),) if said is not None and "\t" in said else ()


def _comments(op: MigrateOperation) -> Iterator[_Comment]:
    if isinstance(op, ops.ModifyTableOps):
        for inner in op.ops:
            yield from _comments(inner)
    elif isinstance(op, ops.CreateTableOp):
        yield _Comment(_table(op), op.comment, None)
        for item in op.columns:
            if isinstance(item, Column):
                yield _Comment(_column(op, item.name), item.comment, None)
    elif isinstance(op, ops.CreateTableCommentOp):
        yield _Comment(_table(op), op.comment, op.existing_comment)
    elif isinstance(op, ops.DropTableCommentOp):
        yield _Comment(_table(op), None, op.existing_comment)
    elif isinstance(op, ops.AlterColumnOp) and op.modify_comment is not False:
        yield _Comment(_column(op, op.column_name), op.modify_comment, op.existing_comment)
    elif isinstance(op, ops.AddColumnOp):
        yield _Comment(_column(op, op.column.name), op.column.comment, None)
    elif isinstance(op, ops.DropColumnOp):
        yield _Comment(_column(op, op.column_name), None, op.to_column().comment)


def _table(op: ops.CreateTableOp | ops.AlterTableOp) -> str:
    return f"TABLE {_name(op)}"


def _column(op: ops.CreateTableOp | ops.AlterTableOp, column: str) -> str:
    return f"COLUMN {_name(op)}.{_QUOTE(column)}"


def _name(op: ops.CreateTableOp | ops.AlterTableOp) -> str:
    return ".".join(_QUOTE(each) for each in (op.schema, op.table_name) if each)
