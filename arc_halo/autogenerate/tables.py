"""Alembic's own table operations, made exact: what it drops comes back from catalog text, not from reflection.

Reflection forgets: partitioning, operator classes, index parameters, doubled percent signs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.operations import ops
from sqlalchemy import Column, ForeignKeyConstraint

from arc_halo.autogenerate import operations
from arc_halo.autogenerate.objects import Key, tables_and_views
from arc_halo.autogenerate.partitions import pop_partitions
from arc_halo.autogenerate.schemas import Relation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

    from alembic.operations import MigrateOperation
    from sqlalchemy import MetaData

    from arc_halo.autogenerate.catalog import Found, TableText
    from arc_halo.autogenerate.renames import Names

CONSTRAINTS = {"constraint", "exclusion", "foreign key", "primary key"}
_INLINE = {"default", "generated", "foreign key", "options"}  # in CREATE TABLE, or an operation of their own


def flat(table_ops: Iterable[MigrateOperation]) -> Iterator[MigrateOperation]:
    """Operations without their containers."""
    for op in table_ops:
        if isinstance(op, ops.OpContainer):
            yield from flat(op.ops)
        else:
            yield op


def relation_of(op: MigrateOperation) -> Relation | None:
    """The table that an operation is about."""
    if isinstance(op, ops.CreateForeignKeyOp):
        return Relation(op.kw["source_schema"], op.source_table)
    name = getattr(op, "table_name", None)
    return None if name is None else Relation(getattr(op, "schema", None) or "", name)


def claimed_parts(current: Mapping[Key, Found], table_ops: Iterable[MigrateOperation]) -> set[Key]:
    """Indexes and constraints that stand there and that Alembic drops, or drops and makes again."""
    return {key for op in flat(table_ops) if (key := _part(current, op)) is not None}


def dropped_tables(table_ops: Iterable[MigrateOperation]) -> set[Relation]:
    """The tables that Alembic drops."""
    dropped = (relation_of(op) for op in flat(table_ops) if isinstance(op, ops.DropTableOp))
    return {relation for relation in dropped if relation is not None}


def tables_made_views(standing: set[Relation], metadata: MetaData) -> list[ops.DropTableOp]:
    """Drops of tables whose names are declared as views: Alembic takes the two for one and leaves the table alone."""
    _, views = tables_and_views(metadata)
    return [ops.DropTableOp(view.name, schema=view.schema) for view in views if (view.schema, view.name) in standing]


def indexes_beside_renames(
    table_ops: Iterable[MigrateOperation], current: Mapping[Key, Found], wanted: Mapping[Key, Found]
) -> set[Key]:
    """Take new indexes out of Alembic's operations, and return them: the filters of names know only those that stand.

    So the constraints that PostgreSQL keeps for partitions go out, too.
    """
    for op in table_ops:
        if isinstance(op, ops.ModifyTableOps):
            op.ops[:] = [
                inner
                for inner in op.ops
                if not isinstance(inner, ops.CreateIndexOp)
                and not (isinstance(inner, ops.DropConstraintOp) and _part(current, inner) is None)
            ]
    return {key for key, found in wanted.items() if key.kind == "index" and found.is_part and key not in current}


def late_references(
    table_ops: Iterable[MigrateOperation], standing: set[Relation], wanted: Mapping[Key, Found]
) -> set[Key]:
    """Take foreign keys out of new tables, all of a table if one must wait, and return them.

    Those with ``use_alter`` CREATE TABLE, as Alembic sends it, forgets; those to a standing table may point to a column
    or a unique constraint that this revision adds, and Alembic adds them later.
    """
    late: set[Relation | None] = set()
    for op in flat(table_ops):
        if not isinstance(op, ops.CreateTableOp):
            continue
        references = [item for item in op.columns if isinstance(item, ForeignKeyConstraint)]
        if any(item.use_alter or _refers_to(item, standing) for item in references):
            late.add(relation_of(op))
            of_references = {column for item in references for column in item.columns}
            op.columns = [
                _not_serial(item) if isinstance(item, Column) and item in of_references else item
                for item in op.columns
                if not isinstance(item, ForeignKeyConstraint)
            ]
    return {key for key, found in wanted.items() if key.kind == "foreign key" and found.relation in late}


def _not_serial(column: Column[Any]) -> Column[Any]:
    """A primary key that refers to another counts nothing itself; SQLAlchemy would have it, without the reference."""
    copy = column._copy()  # noqa: SLF001  (SQLAlchemy has no other way)
    if column.autoincrement == "auto":
        copy.autoincrement = False
    return copy


def _refers_to(item: ForeignKeyConstraint, tables: set[Relation]) -> bool:
    return (item.referred_table.schema, item.referred_table.name) in tables


def amended(
    table_ops: Iterable[MigrateOperation],
    current: Mapping[Key, Found],
    dropped: set[Key],
    texts: Mapping[Relation, TableText],
    narrowed: Mapping[tuple[Relation, str], str],
) -> Iterator[MigrateOperation]:
    """Alembic's operations; partitions follow their table, and what is ``dropped`` already is left out.

    Parameters
    ----------
    narrowed
        What is lost where the type of a column, (table, column), changes.
    """
    gone = dropped_tables(table_ops)
    for op in table_ops:
        relation = relation_of(op)
        if isinstance(op, ops.DropTableOp) and relation is not None:
            yield operations.drop_table(texts[relation], list(_parts_of(relation, current)))
        elif not isinstance(op, ops.ModifyTableOps):
            yield op
        elif relation not in gone:
            op.ops[:] = [
                changed for inner in op.ops if (changed := _exact(inner, current, dropped, narrowed)) is not None
            ]
            if not op.is_empty():
                yield op
        if isinstance(op, ops.CreateTableOp):
            partitions = pop_partitions(op.info)
            for ours in [key for key in op.info if str(key).startswith("arc_halo.")]:
                del op.info[ours]  # Alembic would write it into the revision
            if partitions:
                key = Key("partitions", f"{op.schema}.{op.table_name}")
                yield operations.SqlOperation("partition", key, partitions, ())


def drops_apart(
    table_ops: Iterable[MigrateOperation], names: Names
) -> tuple[list[MigrateOperation], list[MigrateOperation]]:
    """Drops of tables and of what they have, under their former names, and the rest."""
    gone: list[MigrateOperation] = []
    rest: list[MigrateOperation] = []
    for op in table_ops:
        if not isinstance(op, ops.ModifyTableOps):
            (gone if _is_drop(op) else rest).append(op)
            continue
        former = names.former_relation(Relation(str(op.schema), op.table_name)).name
        for inner in filter(_is_drop, op.ops):
            if isinstance(inner, ops.DropColumnOp):
                of_former = operations.drop_column_of(former, inner)
                gone.append(ops.ModifyTableOps(former, [of_former], schema=op.schema))
            else:
                gone.append(inner)
        rest += _some_of(op, lambda inner: not _is_drop(inner))
    return gone, rest


def additions_apart(
    table_ops: Iterable[MigrateOperation],
) -> tuple[list[MigrateOperation], list[MigrateOperation]]:
    """Constraints and indexes that tables get, foreign keys by themselves, and the rest.

    They may stand on generated columns that are made again, and foreign keys on any constraint.
    """
    additions: list[MigrateOperation] = []
    rest: list[MigrateOperation] = []
    for op in table_ops:
        if isinstance(op, ops.ModifyTableOps):
            additions += _some_of(op, lambda inner: _is_addition(inner) and not _is_reference(inner))
            additions += _some_of(op, _is_reference)
            rest += _some_of(op, lambda inner: not _is_addition(inner))
        else:
            rest.append(op)
    return additions, rest


def _some_of(op: ops.ModifyTableOps, is_one: Callable[[MigrateOperation], bool]) -> list[ops.ModifyTableOps]:
    chosen = [inner for inner in op.ops if is_one(inner)]
    return [ops.ModifyTableOps(op.table_name, chosen, schema=op.schema)] if chosen else []


def _is_drop(op: MigrateOperation) -> bool:
    is_drop = isinstance(op, operations.SqlOperation) and op.action == "drop"
    return is_drop or isinstance(op, operations.DropDeclaredColumnOp)


def _is_addition(op: MigrateOperation) -> bool:
    return isinstance(op, ops.AddConstraintOp | ops.CreateIndexOp)


def _is_reference(op: MigrateOperation) -> bool:
    return isinstance(op, ops.CreateForeignKeyOp)


def _exact(
    op: MigrateOperation, current: Mapping[Key, Found], dropped: set[Key], narrowed: Mapping[tuple[Relation, str], str]
) -> MigrateOperation | None:
    if isinstance(op, ops.AlterColumnOp | ops.DropColumnOp):
        anew = {(current[key].relation, current[key].member) for key in dropped if key.kind == "generated"}
        place = (Relation(str(op.schema), op.table_name), op.column_name)
        if place in anew:
            return None
        if isinstance(op, ops.DropColumnOp):
            return operations.DropDeclaredColumnOp.of(op)
        loss = narrowed.get(place)
        return op if loss is None or op.modify_type is None else operations.NarrowColumnOp.of(op, loss)
    if isinstance(op, ops.DropIndexOp | ops.DropConstraintOp):
        key = _part(current, op)
        if key is not None:
            return None if key in dropped else operations.drop(key, current[key])
    return op


def _part(current: Mapping[Key, Found], op: MigrateOperation) -> Key | None:
    """The index or constraint that an operation is about, if it stands there."""
    if isinstance(op, ops.CreateIndexOp | ops.DropIndexOp):
        kinds, member = {"index"}, op.index_name
    elif isinstance(op, ops.AddConstraintOp | ops.DropConstraintOp):
        kinds, member = CONSTRAINTS, getattr(op, "constraint_name", None)
    else:
        return None
    place = (relation_of(op), member)
    for key, found in current.items():
        if key.kind in kinds and found.is_part and (found.relation, found.member) == place:
            return key
    return None


def _parts_of(table: Relation, current: Mapping[Key, Found]) -> Iterator[Found]:
    """Constraints, then indexes."""
    for key, found in sorted(current.items()):
        if found.is_part and found.relation == table and key.kind not in _INLINE:
            yield found
