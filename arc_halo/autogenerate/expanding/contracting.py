"""What autogenerate adds to the revisions of an expansion: to refuse what is too early, and to be able to go back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.autogenerate.render import renderers
from alembic.operations import ops
from alembic.util import PriorityDispatchResult
from sqlalchemy import MetaData

from arc_halo.autogenerate.expanding.declaring import Expansion, declared_expansions, literal, quoted
from arc_halo.autogenerate.expanding.standing import standing_expansions
from arc_halo.autogenerate.objects import Key, Statements
from arc_halo.autogenerate.operations import SqlOperation
from arc_halo.autogenerate.render import escape_colons, render_sql
from arc_halo.autogenerate.tables import flat
from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.autogenerate.api import AutogenContext
    from alembic.operations import MigrateOperation

_REFUSAL = """\
DO $expand$
BEGIN
    IF EXISTS (SELECT FROM {target} WHERE {condition}) THEN
        RAISE EXCEPTION USING MESSAGE = {message}, HINT = 'Fill them first: arc-halo db backfill';
    END IF;
END
$expand$"""


class StepOp(SqlOperation):
    """Statements beside Alembic's own operations, in one direction or both."""

    def __init__(self, expansion: Expansion, up: Statements = (), down: Statements = ()) -> None:
        super().__init__("expand", Key("column", expansion.column), up, down)
        self.expansion = expansion

    def reverse(self) -> StepOp:
        """The operation of the downgrade."""
        return StepOp(self.expansion, self.down, self.up)


class ProveNotNullOp(StepOp):
    """A CHECK that the new column is not null, validated beside writers: SET NOT NULL then reads nothing."""

    def reverse(self) -> StepOp:
        """Nothing: the CHECK is gone at the end of the upgrade."""
        return StepOp(self.expansion)


@renderers.dispatch_for(ProveNotNullOp)
def render_prove_not_null(context: AutogenContext, operation: ProveNotNullOp) -> list[str]:
    """The last statement alone in an ``autocommit_block()``: the lock of the others is let go of before."""
    *first, _ = render_sql(context, operation)
    validate = f"op.execute({escape_colons(operation.up[-1])!r})"  # on one line: the printer indents no more
    return [
        *first,
        "with op.get_context().autocommit_block():  # beside readers and writers",
        validate,
        "",  # Alembic's printer ends the block
        "op.execute(\"SET LOCAL lock_timeout TO '5s'\")",
    ]


def amend_expansions(
    context: AutogenContext, upgrade_ops: ops.UpgradeOps, schemas: set[str | None]
) -> PriorityDispatchResult:
    """Amend what is written about the columns of expansions; runs when everything else is compared."""
    connection, metadata = context.connection, context.metadata
    assert connection is not None
    if not isinstance(metadata, MetaData) or metadata.schema is None or metadata.schema not in schemas:
        return PriorityDispatchResult.CONTINUE
    declared = declared_expansions(metadata)
    standing = standing_expansions(connection, metadata.schema)
    for expansion in declared:
        _refuse_required(expansion, upgrade_ops)
    kept = {(each.table, each.old, each.new) for each in declared}
    first: list[MigrateOperation] = []
    for expansion in standing:
        is_over = (expansion.table, expansion.old, expansion.new) not in kept
        for op in upgrade_ops.ops:
            if isinstance(op, ops.ModifyTableOps) and (op.schema, op.table_name) == (expansion.schema, expansion.table):
                op.ops[:] = [each for inner in op.ops for each in _amended(inner, expansion, first, is_over=is_over)]
    upgrade_ops.ops[:0] = first
    return PriorityDispatchResult.CONTINUE


def _refuse_required(expansion: Expansion, upgrade_ops: ops.UpgradeOps) -> None:
    for op in flat(upgrade_ops.ops):
        if (
            isinstance(op, ops.AddColumnOp)
            and (op.schema, op.table_name, op.column.name) == (expansion.schema, expansion.table, expansion.new)
            and not op.column.nullable
        ):
            raise ConfigurationError(
                f"{expansion.column} is new and may not be null, but rows that are there have no value yet: declare it"
                " nullable until `arc-halo db backfill` has filled it."
            )


def _amended(
    op: MigrateOperation, expansion: Expansion, first: list[MigrateOperation], *, is_over: bool
) -> Iterator[MigrateOperation]:
    """The operation with what belongs beside it; what is to be seen to before anything else is added to ``first``."""
    if isinstance(op, ops.DropColumnOp) and op.column_name == expansion.old and is_over:
        first.insert(0, _refusal(expansion, expansion.unfilled, f"rows whose {expansion.new} is not filled yet"))
        yield StepOp(expansion, down=_filled_again(op, expansion))
        yield op
    elif isinstance(op, ops.AlterColumnOp) and op.column_name == expansion.new and op.modify_nullable is False:
        alter, name = f"ALTER TABLE {expansion.target}", quoted(expansion.name)
        condition = f"{quoted(expansion.new)} IS NULL"
        gone = f"{alter} DROP CONSTRAINT IF EXISTS {name}"  # of an upgrade that got no further
        proof = (
            gone,
            f"{alter} ADD CONSTRAINT {name} CHECK ({quoted(expansion.new)} IS NOT NULL) NOT VALID",
            f"{alter} VALIDATE CONSTRAINT {name}",
        )
        first.append(_refusal(expansion, condition, f"rows whose {expansion.new} is null"))
        first.append(ProveNotNullOp(expansion, proof))
        yield op
        yield StepOp(expansion, (f"{alter} DROP CONSTRAINT {name}",))
    else:
        yield op


def _refusal(expansion: Expansion, condition: str, what: str) -> StepOp:
    message = literal(f"{expansion.schema}.{expansion.table} has {what}")
    return StepOp(expansion, (_REFUSAL.format(target=expansion.target, condition=condition, message=message),))


def _filled_again(op: ops.DropColumnOp, expansion: Expansion) -> Statements:
    """What gives the old column its values again in the downgrade, which adds it nullable for that."""
    fill = f"UPDATE {expansion.target} SET {quoted(expansion.old)} = {expansion.backward}"  # noqa: S608  (quoted)
    add = op._reverse  # noqa: SLF001  (Alembic has no other way to the operation of the downgrade)
    if add is None or add.column.nullable:
        return (fill,)
    add.column = add.column._copy()  # noqa: SLF001  (of a table that others look at)
    add.column.nullable = True
    return (fill, f"ALTER TABLE {expansion.target} ALTER COLUMN {quoted(expansion.old)} SET NOT NULL")
