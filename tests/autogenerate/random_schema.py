"""A small description of a schema, which hypothesis draws: what each thing is, what it refers to, and its SQL.

Everything refers by name to what stands before it. Each expression is a number, whatever it is made of, and at least
zero; of each type there is a value for the number 1, which the rows have. So whatever is drawn, PostgreSQL takes it.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING

from sqlalchemy import MetaData
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from collections.abc import Mapping

quote = postgresql.dialect().identifier_preparer.quote

# How a value of a type becomes a number, immutably, and a number a value.
TO_NUMBER = {
    "integer": "{}",
    "bigint": "{}",
    "numeric": "trunc({})",
    "text": "length({})",
    "varchar(40)": "length({})",
    "varchar(80)": "length({})",
    "boolean": "({})::integer",
    "jsonb": "length(({})::text)",
    "uuid": "length(({})::text)",
    "integer[]": "cardinality({})",
    "timestamptz": "isfinite({})::integer",
}
FROM_NUMBER = {
    "boolean": "(({}) > 0)",
    "jsonb": "(({})::text)::jsonb",
    "uuid": "(md5(({})::text))::uuid",
    "integer[]": "ARRAY[({})::integer]",
    "timestamptz": "to_timestamp({})",
}


def literal(said):
    return "'" + said.replace("'", "''") + "'"


def named(name):
    return f"app.{quote(name)}"


def with_comment(made, kind, name, said):
    """The statements of an object, and what is said of it."""
    return (*made, f"COMMENT ON {kind} {name} IS {literal(said)}") if said else tuple(made)


def value(kind, number):
    return FROM_NUMBER.get(kind, "({})::" + kind).format(number)


class Described:
    """Says of itself what is not left out."""

    def __repr__(self):
        given = [
            repr(getattr(self, each.name)) if each.default is MISSING else f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]
        return f"{type(self).__name__}({', '.join(given)})"


@dataclass
class Scope:
    """What stands before: columns and their types by relation, their SQL in FROM, and functions."""

    relations: dict[str, Mapping[str, str]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    tables: dict[str, object] = field(default_factory=dict)
    materialized: set[str] = field(default_factory=set)
    views: set[str] = field(default_factory=set)
    functions: dict[str, object] = field(default_factory=dict)
    aggregates: set[str] = field(default_factory=set)
    triggers: set[str] = field(default_factory=set)
    names: set[tuple[str, str]] = field(default_factory=set)

    def add_relation(self, name, columns, source=None):
        self.relations[name] = columns
        self.sources[name] = source or named(name)


@dataclass(frozen=True, repr=False)
class Expression(Described):
    """A number: of a column, or of none, given to a function, or to none."""

    column: str | None = None
    function: str | None = None
    constant: int = 1

    def sql(self, columns, scope, row=""):
        if self.column is None:
            number = f"({self.constant})::bigint"
        else:
            number = TO_NUMBER[columns[self.column]].format(row + quote(self.column))
            number = f"(COALESCE({number}, 1))::bigint + {self.constant}"
        return number if self.function is None else scope.functions[self.function].called(number)

    def adapted(self, columns, scope, *, pure):
        """Without what is gone."""
        function = scope.functions.get(self.function)
        if function is None or (pure and not function.is_pure):
            return replace(self, column=self.column if self.column in columns else None, function=None)
        return replace(self, column=self.column if self.column in columns else None)


ONE = Expression()


def build(things):
    """The metadata that declares them."""
    metadata, scope = MetaData(schema="app"), Scope()
    for each in things:
        each.declare(metadata, scope)
        each.enter(scope)
    return metadata
