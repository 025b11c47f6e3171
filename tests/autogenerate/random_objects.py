"""Functions, aggregates, procedures and views of a random schema."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import CreateView, Index, literal_column, select, text

from arc_halo.autogenerate import declare
from tests.autogenerate.random_schema import ONE, TO_NUMBER, Described, Expression, named, quote, value, with_comment


@dataclass(frozen=True, repr=False)
class Function(Described):
    """Pure ones compute; the others read a relation."""

    name: str
    language: str = "return"  # or atomic, string, plpgsql
    arguments: tuple[str, ...] = ("bigint",)
    parameter: str = "p"
    default: bool = False
    returns: str = "bigint"
    calls: str | None = None
    reads: str | None = None
    read: Expression = ONE
    constant: int = 0
    twin: bool = False
    cost: int = 100
    comment: str | None = None
    is_pure: bool = True

    def called(self, number):
        values = ", ".join(value(kind, number) for kind in self.arguments)
        return f"({TO_NUMBER[self.returns].format(f'{named(self.name)}({values})')})::bigint"

    def adapted(self, scope):
        calls = self.calls if self.calls in scope.functions else None
        reads = self.reads if self.reads in scope.relations else None
        read = self.read.adapted(scope.relations[reads], scope, pure=False) if reads else ONE
        used = [scope.functions[name] for name in (calls, read.function) if name]
        is_pure = reads is None and all(each.is_pure for each in used)
        return replace(self, calls=calls, reads=reads, read=read, is_pure=is_pure)

    def enter(self, scope):
        scope.functions[self.name] = self

    def declare(self, metadata, scope):
        number = " + ".join(
            [str(self.constant)] + [TO_NUMBER[kind].format(f"${place}") for place, kind in enumerate(self.arguments, 1)]
        )
        if self.calls:
            number = scope.functions[self.calls].called(number)
        if self.reads:
            counted = self.read.sql(scope.relations[self.reads], scope, "s.")
            number = f"{number} + (SELECT count(*) + COALESCE(max({counted}), 0) FROM {scope.sources[self.reads]} AS s)"
        result = value(self.returns, number)
        body = {
            "return": f"RETURN {result}",
            "atomic": f"BEGIN ATOMIC SELECT {result}; END",
            "string": f"AS $$ SELECT {result} $$",
            "plpgsql": f"AS $$ BEGIN RETURN {result}; END $$",
        }[self.language]
        language = "plpgsql" if self.language == "plpgsql" else "sql"
        given = ", ".join(
            f"{self.parameter}{place} {kind}" + (f" DEFAULT {value(kind, 7)}" if self.default else "")
            for place, kind in enumerate(self.arguments, 1)
        )
        volatility = "IMMUTABLE" if self.is_pure else "STABLE"
        made = [
            (
                f"CREATE FUNCTION {named(self.name)}({given}) RETURNS {self.returns} LANGUAGE {language} {volatility}"
                f" COST {self.cost} {body}"
            )
        ]
        declare(
            metadata, with_comment(made, "FUNCTION", f"{named(self.name)}({', '.join(self.arguments)})", self.comment)
        )
        if self.twin:
            declare(
                metadata,
                f"CREATE FUNCTION {named(self.name)}(a uuid, b uuid) RETURNS boolean LANGUAGE sql RETURN a = b",
            )


@dataclass(frozen=True, repr=False)
class RowFunction(Described):
    """Its result has the row type of a relation."""

    name: str
    relation: str
    language: str = "string"  # or atomic

    def adapted(self, scope):
        return self if scope.sources.get(self.relation) == named(self.relation) else None

    def enter(self, scope):
        scope.add_relation(self.name, scope.relations[self.relation], f"{named(self.name)}()")

    def declare(self, metadata, _scope):
        query = f"SELECT s.* FROM {named(self.relation)} AS s"
        body = f"BEGIN ATOMIC {query}; END" if self.language == "atomic" else f"AS $$ {query} $$"
        declare(
            metadata,
            f"CREATE FUNCTION {named(self.name)}() RETURNS SETOF {named(self.relation)} LANGUAGE sql STABLE {body}",
        )


@dataclass(frozen=True, repr=False)
class Aggregate(Described):
    name: str
    function: str
    initial: int = 0
    comment: str | None = None

    def adapted(self, scope):
        function = scope.functions.get(self.function)
        fits = function and function.arguments == ("bigint", "bigint") and function.returns == "bigint"
        return self if fits else None

    def enter(self, scope):
        scope.aggregates.add(self.name)

    def declare(self, metadata, _scope):
        made = [
            (
                f"CREATE AGGREGATE {named(self.name)}(bigint)"
                f" (SFUNC = {named(self.function)}, STYPE = bigint, INITCOND = '{self.initial}')"
            )
        ]
        declare(metadata, with_comment(made, "AGGREGATE", f"{named(self.name)}(bigint)", self.comment))


@dataclass(frozen=True, repr=False)
class Procedure(Described):
    name: str
    relation: str  # a table
    condition: Expression = ONE
    is_atomic: bool = False
    comment: str | None = None

    def adapted(self, scope):
        if self.relation not in scope.tables:
            return None
        return replace(self, condition=self.condition.adapted(scope.relations[self.relation], scope, pure=False))

    def enter(self, _scope):
        pass

    def declare(self, metadata, scope):
        condition = self.condition.sql(scope.relations[self.relation], scope, "s.")
        query = f"DELETE FROM {named(self.relation)} AS s WHERE {condition} < below"
        body = f"BEGIN ATOMIC {query}; END" if self.is_atomic else f"AS $$ {query} $$"
        made = [f"CREATE PROCEDURE {named(self.name)}(below bigint) LANGUAGE sql {body}"]
        declare(metadata, with_comment(made, "PROCEDURE", f"{named(self.name)}(bigint)", self.comment))


@dataclass(frozen=True, repr=False)
class View(Described):
    """Its columns are raw, with the type of the source's, or computed; of an aggregate, if it has one."""

    name: str
    source: str
    columns: tuple[tuple[str, Expression | str], ...]
    condition: Expression | None = None
    exists: tuple[str, Expression] | None = None
    aggregate: str | None = None
    is_materialized: bool = False
    is_core: bool = True
    is_barrier: bool = False
    indexes: tuple[tuple[str, bool], ...] = ()  # (column, unique), of a materialised one
    comment: str | None = None

    def adapted(self, scope):
        if self.source not in scope.relations:
            return None
        known = scope.relations[self.source]
        columns = tuple(
            (name, each if isinstance(each, str) else each.adapted(known, scope, pure=False))
            for name, each in self.columns
            if not isinstance(each, str) or each in known
        )
        exists = self.exists if self.exists and self.exists[0] in scope.relations else None
        if exists:
            exists = (exists[0], exists[1].adapted(scope.relations[exists[0]], scope, pure=False))
        if not columns:
            return None
        names = {name for name, _ in columns}
        return replace(
            self,
            columns=columns,
            condition=self.condition and self.condition.adapted(known, scope, pure=False),
            exists=exists,
            aggregate=self.aggregate if self.aggregate in scope.aggregates else None,
            indexes=tuple(each for each in self.indexes if each[0] in names) if self.is_materialized else (),
        )

    def types(self, scope):
        known = scope.relations[self.source]
        return {
            name: known[each] if isinstance(each, str) and not self.aggregate else "bigint"
            for name, each in self.columns
        }

    def enter(self, scope):
        scope.add_relation(self.name, self.types(scope))
        (scope.materialized if self.is_materialized else scope.views).add(self.name)

    def _selected(self, scope):
        known = scope.relations[self.source]
        for name, each in self.columns:
            sql = f"s.{quote(each)}" if isinstance(each, str) and not self.aggregate else None
            if sql is None:
                expression = Expression(each, constant=0) if isinstance(each, str) else each
                sql = expression.sql(known, scope, "s.")
                sql = f"{named(self.aggregate)}({sql})" if self.aggregate else sql
            yield name, sql

    def _conditions(self, scope):
        if self.condition:
            yield f"{self.condition.sql(scope.relations[self.source], scope, 's.')} > 0"
        if self.exists:
            other, expression = self.exists
            where = expression.sql(scope.relations[other], scope, "t.")
            yield f"EXISTS (SELECT FROM {scope.sources[other]} AS t WHERE {where} > 0)"

    def declare(self, metadata, scope):
        selected, conditions = list(self._selected(scope)), list(self._conditions(scope))
        if self.is_core:
            query = select(*(literal_column(sql).label(name) for name, sql in selected))
            query = query.select_from(text(f"{scope.sources[self.source]} AS s")).where(*map(text, conditions))
            view = CreateView(
                query, self.name, metadata=metadata, schema="app", materialized=self.is_materialized
            ).table
            view.comment = self.comment
            for name, is_unique in self.indexes:
                Index(f"ix {self.name} {name}", view.c[name], unique=is_unique)
            return
        kind = "MATERIALIZED VIEW" if self.is_materialized else "VIEW"
        options = " WITH (security_barrier=true)" if self.is_barrier and not self.is_materialized else ""
        query = ", ".join(f"{sql} AS {quote(name)}" for name, sql in selected)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        made = [
            f"CREATE {kind} {named(self.name)}{options} AS SELECT {query} FROM {scope.sources[self.source]} AS s{where}"
        ]
        declare(metadata, with_comment(made, kind, named(self.name), self.comment))
        for name, is_unique in self.indexes:
            unique = "UNIQUE " if is_unique else ""
            declare(
                metadata,
                f"CREATE {unique}INDEX {quote(f'ix {self.name} {name}')} ON {named(self.name)} ({quote(name)})",
            )
