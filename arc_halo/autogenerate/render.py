"""How operations and column types are written into revisions: plain SQL, plain types, no import of the project."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from alembic.autogenerate.render import _repr_type, renderers
from alembic.operations.ops import AlterColumnOp, DropColumnOp
from sqlalchemy import TextClause, TypeDecorator

from arc_halo.autogenerate.loss import MARK
from arc_halo.autogenerate.operations import DropDeclaredColumnOp, NarrowColumnOp, SqlOperation

if TYPE_CHECKING:
    from typing import Any

    from alembic.autogenerate.api import AutogenContext
    from alembic.ddl.impl import DefaultImpl
    from sqlalchemy import ClauseElement

_RENAMED = "# If it has a new name only, declare renamed_from({}, 'its old name') and write the revision again."
_PIECE = re.compile(r".{1,96}(?:\s|\Z)|.{1,96}", re.DOTALL)  # short enough for a line of 120, split at spaces


@renderers.dispatch_for(SqlOperation)
def render_sql(_context: AutogenContext, operation: SqlOperation) -> list[str]:
    """One ``op.execute`` per statement."""
    lines = [_execute(statement) for statement in operation.up]
    if (operation.action, operation.key.kind) == ("drop", "table") and operation.loss:
        lines.insert(0, _RENAMED.format("table"))
    note = [] if operation.note is None or not lines else [f"# {operation.note}"]
    return [*_marked(operation.loss), *note, *lines]


@renderers.dispatch_for(DropDeclaredColumnOp)
def render_drop_column(context: AutogenContext, operation: DropDeclaredColumnOp) -> list[str]:
    """As Alembic does, with a warning."""
    line: str = renderers.dispatch(DropColumnOp)(context, operation)
    name = ".".join(filter(None, (operation.schema, operation.table_name, operation.column_name)))
    return [*_marked(f"column {name}, with its values"), _RENAMED.format("column"), line]


@renderers.dispatch_for(NarrowColumnOp)
def render_narrow_column(context: AutogenContext, operation: NarrowColumnOp) -> list[str]:
    """As Alembic does, with a warning."""
    line: str = renderers.dispatch(AlterColumnOp)(context, operation)
    return [*_marked(operation.loss), line]


def escape_colons(sql: str) -> str:
    """What ``text()`` reads as ``sql``."""
    sql = re.sub(r"\\(:\w*)(?![:\w])", r"\\\\\1", sql)
    return re.sub(r"(?<![:\w\\]):(\w+)(?![:\w])", r"\\:\1", sql)


def render_exactly(impl: DefaultImpl) -> None:
    """Have Alembic's own operations written so that their SQL arrives to the letter.

    Alembic doubles each ``%`` of an expression for the driver, and does not escape what ``text()`` takes for a
    parameter, as reflected texts have it. To be called when everything is compared: comparisons use the same method.
    """
    of_alembic = impl.render_ddl_sql_expr

    def exactly(expression: ClauseElement, *, is_index: bool = False, **options: Any) -> str:
        if isinstance(expression, TextClause) and any(each.required for each in expression._bindparams.values()):  # noqa: SLF001  (no other way)
            return escape_colons(expression.text)
        sql = of_alembic(expression, is_index=is_index, **options)
        if impl.dialect.identifier_preparer._double_percents:  # noqa: SLF001  (no other way)
            sql = sql.replace("%%", "%")
        return sql if is_index else escape_colons(sql)  # ``literal_column`` knows no parameters

    impl.render_ddl_sql_expr = exactly  # type: ignore[assignment, method-assign]


def _marked(loss: str | None) -> list[str]:
    return [] if loss is None else [f"# {MARK}{loss}"]


def render_item(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:
    """Types for ``context.configure(render_item=...)``: pgvector's with their import, decorators as what they wrap."""
    if kind != "type":
        return False
    for base in type(item).__mro__:
        if base.__module__.startswith("pgvector."):
            context.imports.add(f"from pgvector.sqlalchemy import {base.__name__}")
            return f"{base.__name__}({repr(item).partition('(')[2]}"
    if isinstance(item, TypeDecorator) and not type(item).__module__.startswith("sqlalchemy."):
        assert context.dialect is not None
        return _repr_type(item.load_dialect_impl(context.dialect), context)
    return False


def _execute(sql: str) -> str:
    if "\t" not in sql:
        return f"op.execute({_literal(sql)})"
    # Offline, Alembic writes tabs as spaces on the ordinary way: that would change the body of a function.
    return (
        "op.get_context().impl.static_output("
        f"str(sa.text({_literal(sql)}).compile(dialect=op.get_context().dialect)) + ';')"
        f" if op.get_context().as_sql else op.execute({_literal(sql)})"
    )


def _literal(sql: str) -> str:
    """Short literals, immune to re-indentation; what ``text()`` would take for a parameter is escaped."""
    sql = escape_colons(sql)
    pieces = [piece for line in sql.splitlines(keepends=True) for piece in _PIECE.findall(line)]
    return "".join(f"\n    {piece!r}" for piece in pieces) + "\n"
