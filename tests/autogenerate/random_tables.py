"""Tables of the description that hypothesis draws, and the rows in them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from arc_halo.autogenerate import declare
from tests.autogenerate.random_schema import Described, Expression, named, quote, value

TYPES = {
    "integer": sa.Integer(),
    "bigint": sa.BigInteger(),
    "numeric": sa.Numeric(),
    "text": sa.Text(),
    "varchar(40)": sa.String(40),
    "varchar(80)": sa.String(80),
    "boolean": sa.Boolean(),
    "jsonb": JSONB(),
    "uuid": sa.Uuid(),
    "integer[]": ARRAY(sa.Integer),
    "timestamptz": sa.DateTime(timezone=True),
}
FAMILIES = (("integer", "bigint", "numeric"), ("text", "varchar(40)", "varchar(80)"))
KEYS = ("integer", "bigint")
STORED_APART = ("text", "varchar(40)", "varchar(80)", "jsonb", "integer[]")


@dataclass(frozen=True, repr=False)
class Column(Described):
    name: str
    type: str
    default: Expression | None = None
    computed: Expression | None = None
    nullable: bool = True
    storage: str | None = None
    is_compressed: bool = False
    comment: str | None = None


@dataclass(frozen=True, repr=False)
class Check(Described):
    name: str
    condition: Expression


@dataclass(frozen=True, repr=False)
class Unique(Described):
    name: str
    columns: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Reference(Described):
    name: str
    column: str
    table: str
    target: str = "id"


@dataclass(frozen=True, repr=False)
class TableIndex(Described):
    name: str
    keys: tuple[Expression | str, ...]
    is_unique: bool = False
    where: Expression | None = None


@dataclass(frozen=True, repr=False)
class Table(Described):
    """Its key is ``id``; one that is filled has one row, of which every value is the one for 1."""

    name: str
    columns: tuple[Column, ...] = ()
    checks: tuple[Check, ...] = ()
    uniques: tuple[Unique, ...] = ()
    references: tuple[Reference, ...] = ()
    indexes: tuple[TableIndex, ...] = ()
    is_filled: bool = True
    security: str | None = None
    fillfactor: int | None = None
    comment: str | None = None

    @property
    def types(self):
        return {"id": "bigint"} | {each.name: each.type for each in self.columns}

    @property
    def plain_columns(self):
        return {"id": "bigint"} | {each.name: each.type for each in self.columns if each.computed is None}

    def adapted(self, scope):
        types, plain = self.types, self.plain_columns

        def fit(expression, columns):
            return expression and expression.adapted(columns, scope, pure=True)

        columns = tuple(
            replace(each, default=fit(each.default, {}), computed=fit(each.computed, plain)) for each in self.columns
        )
        return replace(
            self,
            columns=tuple(
                replace(each, nullable=True)
                if self.is_filled and each.default is None and each.computed is None
                else each
                for each in columns
            ),
            checks=tuple(replace(each, condition=fit(each.condition, types)) for each in self.checks),
            # CREATE TABLE makes one of two constraints on the same columns.
            uniques=tuple(
                each
                for place, each in enumerate(self.uniques)
                if set(each.columns) <= types.keys()
                and each.columns not in {("id",), *(other.columns for other in self.uniques[:place])}
            ),
            references=tuple(each for each in self.references if self._holds(each, scope)),
            indexes=tuple(
                replace(each, keys=keys, where=fit(each.where, types))
                for each in self.indexes
                if (keys := tuple(self._key(key, types, fit) for key in each.keys if not self._is_gone(key, types)))
            ),
        )

    def _is_gone(self, key, types):
        return isinstance(key, str) and key not in types

    def _key(self, key, types, fit):
        return key if isinstance(key, str) else fit(key, types)

    def _holds(self, reference, scope):
        table = self if reference.table == self.name else scope.tables.get(reference.table)
        if table is None or self.plain_columns.get(reference.column) not in KEYS:
            return False
        if table.types.get(reference.target) not in KEYS:
            return False
        is_key = reference.target == "id" or (reference.target,) in {each.columns for each in table.uniques}
        return is_key and (not self.is_filled or (table.is_filled and reference.target == "id"))

    def enter(self, scope):
        scope.add_relation(self.name, self.types)
        scope.tables[self.name] = self

    def declare(self, metadata, scope):
        table = sa.Table(
            self.name,
            metadata,
            sa.Column("id", sa.BigInteger, nullable=False),
            *(self._column(each, scope) for each in self.columns),
            sa.PrimaryKeyConstraint("id", name=f"pk {self.name}"),
            *(
                sa.CheckConstraint(f"{each.condition.sql(self.types, scope)} > -1", name=each.name)
                for each in self.checks
            ),
            *(sa.UniqueConstraint(*each.columns, name=each.name) for each in self.uniques),
            *(
                sa.ForeignKeyConstraint([each.column], [f"app.{each.table}.{each.target}"], name=each.name)
                for each in self.references
            ),
            comment=self.comment,
            **({} if self.fillfactor is None else {"postgresql_with": {"fillfactor": self.fillfactor}}),
        )
        for each in self.indexes:
            keys = [
                table.c[key] if isinstance(key, str) else sa.text(f"({key.sql(self.types, scope)})")
                for key in each.keys
            ]
            where = (
                {} if each.where is None else {"postgresql_where": sa.text(f"{each.where.sql(self.types, scope)} > 0")}
            )
            sa.Index(each.name, *keys, unique=each.is_unique, _table=table, **where)
        self._declare_rest(metadata)

    def _column(self, column, scope):
        given = []
        if column.computed is not None:
            given.append(
                sa.Computed(value(column.type, column.computed.sql(self.plain_columns, scope)), persisted=True)
            )
        default = None
        if column.default is not None and column.computed is None:
            default = sa.text(value(column.type, column.default.sql({}, scope)))
        return sa.Column(
            column.name,
            TYPES[column.type],
            *given,
            nullable=column.nullable,
            server_default=default,
            comment=column.comment,
        )

    def _declare_rest(self, metadata):
        for each in self.columns:
            alter = f"ALTER TABLE {named(self.name)} ALTER COLUMN {quote(each.name)}"
            if each.storage and each.type in STORED_APART:
                declare(metadata, f"{alter} SET STORAGE {each.storage}")
            if each.is_compressed and each.type in STORED_APART:
                declare(metadata, f"{alter} SET COMPRESSION pglz")
        if self.security:
            made = [f"ALTER TABLE {named(self.name)} ENABLE ROW LEVEL SECURITY"]
            if self.security == "forced":
                made.append(f"ALTER TABLE {named(self.name)} FORCE ROW LEVEL SECURITY")
            declare(metadata, tuple(made))

    def row(self):
        """The statement that fills it."""
        names, values = zip(*((quote(name), value(kind, 1)) for name, kind in self.plain_columns.items()), strict=True)
        return f"INSERT INTO {named(self.name)} ({', '.join(names)}) VALUES ({', '.join(values)})"


def rows(things):
    """The statements that fill the tables of a description, once they are empty."""
    tables = [each for each in things if isinstance(each, Table)]
    if tables:
        yield f"TRUNCATE {', '.join(named(each.name) for each in tables)}"
    for each in tables:
        if each.is_filled:
            yield each.row()


def kept(before, after):
    """Queries, each of one number, which is 1 if a table that is filled before and after has the same values still."""
    former = {each.name: each for each in before if isinstance(each, Table) and each.is_filled}
    for table in after:
        if isinstance(table, Table) and table.name in former:
            columns = table.plain_columns.items()
            same = [
                f"{quote(name)} = {value(kind, 1)}"
                for name, kind in columns
                if name in former[table.name].plain_columns
            ]
            yield f"SELECT count(*) FROM {named(table.name)} WHERE {' AND '.join(same)}"
