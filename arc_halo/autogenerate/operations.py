"""Autogenerate operations: statements, and the statements that take them back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.operations import MigrateOperation, ops

from arc_halo.autogenerate.catalog import comment_on
from arc_halo.autogenerate.loss import values_gone
from arc_halo.autogenerate.objects import Key, or_replace
from arc_halo.autogenerate.schemas import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arc_halo.autogenerate.catalog import Found, TableText
    from arc_halo.autogenerate.extensions import Change
    from arc_halo.autogenerate.objects import Statements

_REVERSED = {"create": "drop", "drop": "create"}  # others are their own reverse


class SqlOperation(MigrateOperation):
    """SQL in both directions; a revision holds it as text and does not need this package.

    ``loss`` is what the upgrade loses, ``note`` what a reader of the revision is told, either way.
    """

    def __init__(
        self,
        action: str,
        key: Key,
        up: Statements,
        down: Statements,
        *,
        loss: str | None = None,
        note: str | None = None,
    ) -> None:
        self.action, self.key, self.up, self.down, self.loss, self.note = action, key, up, down, loss, note

    def reverse(self) -> SqlOperation:
        """The operation of the downgrade."""
        return SqlOperation(_REVERSED.get(self.action, self.action), self.key, self.down, self.up, note=self.note)

    def to_diff_tuple(self) -> tuple[str, str, str]:
        """What ``alembic check`` prints."""
        return (self.action, *self.key)


class DropDeclaredColumnOp(ops.DropColumnOp):
    """A column that is declared no more, not one that a downgrade takes back: the revision warns of the loss."""

    @classmethod
    def of(cls, op: ops.DropColumnOp) -> DropDeclaredColumnOp:
        """The same operation."""
        add = op._reverse  # noqa: SLF001  (Alembic has no other way to the operation of the downgrade)
        return cls(op.table_name, op.column_name, schema=op.schema, if_exists=op.if_exists, _reverse=add, **op.kw)


class NarrowColumnOp(ops.AlterColumnOp):
    """A column whose new type cannot hold all that the old one can: the revision warns of the loss."""

    loss: str

    @classmethod
    def of(cls, op: ops.AlterColumnOp, loss: str) -> NarrowColumnOp:
        """The same operation; the one of the downgrade is no such."""
        narrow = cls(op.table_name, op.column_name, schema=op.schema)
        narrow.__dict__.update(op.__dict__)
        narrow.loss = loss
        return narrow

    def reverse(self) -> ops.AlterColumnOp:
        """The operation of the downgrade, which widens."""
        plain = ops.AlterColumnOp(self.table_name, self.column_name, schema=self.schema)
        plain.__dict__.update({name: value for name, value in self.__dict__.items() if name != "loss"})
        return plain.reverse()


def create(key: Key, source: Statements, wanted: Found, current: Found | None = None) -> SqlOperation:
    """Create what is new, or what is made again."""
    gone = [] if current is None else values_gone(" ".join(current.definition), " ".join(wanted.definition))
    loss = f"{key.kind} {key.name} no longer allows {', '.join(gone)}" if gone else None
    return SqlOperation("create", key, source, (wanted.removal,), loss=loss)


def create_schema(name: str) -> SqlOperation:
    """Create a schema, which stays: others may have come to use it."""
    return SqlOperation("create", Key("schema", name), (f"CREATE SCHEMA IF NOT EXISTS {quoted(name)}",), ())


def drop(key: Key, current: Found, note: str | None = None) -> SqlOperation:
    """Drop what is there."""
    return SqlOperation("drop", key, (current.removal,), current.statements, note=note)


def drop_table(table: TableText, parts: list[Found]) -> SqlOperation:
    """Drop a table; to take it back, create it with its parts, comments and partitions."""
    down = (
        table.definition,
        *(statement for part in parts for statement in part.statements),
        *(comment_on(target, said) for target, said in table.comments.items()),
        *table.partitions,
    )
    loss = f"table {table.name}, with its rows"
    return SqlOperation("drop", Key("table", table.name), (f"DROP TABLE {table.name}",), down, loss=loss)


def drop_column_of(table: str, op: ops.DropColumnOp) -> DropDeclaredColumnOp:
    """The same of a table that has another name."""
    add = ops.AddColumnOp(table, op.to_column(), schema=op.schema)
    return DropDeclaredColumnOp(table, op.column_name, schema=op.schema, if_exists=op.if_exists, _reverse=add, **op.kw)


def replace(key: Key, source: Statements, wanted: Found, current: Found) -> SqlOperation:
    """Put the new definition over the old one, in place; a comment nobody declares any more is taken away."""
    up = (*or_replace(source), *_silenced(current, wanted))
    down = (*or_replace(current.statements), *_silenced(wanted, current))
    return SqlOperation("replace", key, up, down)


def comment(key: Key, wanted: Found, current: Found) -> SqlOperation:
    """Change comments alone."""
    return SqlOperation("comment", key, _said(current, wanted), _said(wanted, current))


def first_comments(key: Key, wanted: Found) -> Iterator[SqlOperation]:
    """Comments on what is new, if it has any; they go with it."""
    if wanted.comments:
        up = tuple(comment_on(target, said) for target, said in wanted.comments.items())
        yield SqlOperation("comment", key, up, ())


def change_extension(change: Change) -> SqlOperation:
    """Install an extension, move it or update it."""
    key, down = Key("extension", change.name), () if change.down is None else (change.down,)
    return SqlOperation("replace" if down else "create", key, (change.up,), down)


def _said(before: Found, after: Found) -> Statements:
    new = sorted(after.comments.items() - before.comments.items())
    return (*(comment_on(target, said) for target, said in new), *_silenced(before, after))


def _silenced(before: Found, after: Found) -> Statements:
    return tuple(comment_on(target, None) for target in before.comments if target not in after.comments)
