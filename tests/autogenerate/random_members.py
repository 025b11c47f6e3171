"""What belongs to a table or view of a random schema: triggers, policies, statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace

from arc_halo.autogenerate import declare
from tests.autogenerate.random_schema import Described, Expression, named, quote, with_comment


@dataclass(frozen=True, repr=False)
class TriggerFunction(Described):
    name: str
    constant: int = 0

    def adapted(self, _scope):
        return self

    def enter(self, scope):
        scope.triggers.add(self.name)

    def declare(self, metadata, _scope):
        declare(
            metadata,
            f"CREATE FUNCTION {named(self.name)}() RETURNS trigger LANGUAGE plpgsql"
            f" AS $$ BEGIN PERFORM {self.constant}; RETURN NEW; END $$",
        )


@dataclass(frozen=True, repr=False)
class Trigger(Described):
    name: str
    relation: str  # a table or a view
    function: str
    is_before: bool = True
    is_constraint: bool = False
    column: str | None = None
    when: Expression | None = None
    state: str | None = None
    comment: str | None = None

    def adapted(self, scope):
        if self.function not in scope.triggers:
            return None
        if self.relation in scope.views:
            return replace(self, column=None, when=None, state=None, is_constraint=False)
        if self.relation not in scope.tables:
            return None
        plain = scope.tables[self.relation].plain_columns
        when = self.when and self.when.adapted(plain, scope, pure=True)
        return replace(self, column=self.column if self.column in plain else None, when=when)

    def enter(self, _scope):
        pass

    def declare(self, metadata, scope):
        target, kind = named(self.relation), "TRIGGER"
        if self.relation in scope.views:
            timing = "INSTEAD OF INSERT OR UPDATE"
        else:
            timing = "BEFORE" if self.is_before and not self.is_constraint else "AFTER"
            timing += f" UPDATE OF {quote(self.column)}" if self.column else " INSERT OR UPDATE"
        defer = ""
        if self.is_constraint:
            kind, defer = "CONSTRAINT TRIGGER", " DEFERRABLE INITIALLY DEFERRED"
        when = ""
        if self.when:
            when = f" WHEN ({self.when.sql(scope.tables[self.relation].plain_columns, scope, 'NEW.')} > 0)"
        made = [
            (
                f"CREATE {kind} {quote(self.name)} {timing} ON {target}{defer} FOR EACH ROW{when}"
                f" EXECUTE FUNCTION {named(self.function)}()"
            )
        ]
        if self.state:
            made.append(f"ALTER TABLE {target} {self.state} TRIGGER {quote(self.name)}")
        declare(metadata, with_comment(made, "TRIGGER", f"{quote(self.name)} ON {target}", self.comment))


@dataclass(frozen=True, repr=False)
class Policy(Described):
    name: str
    relation: str
    condition: Expression
    command: str = "ALL"
    is_permissive: bool = True
    comment: str | None = None

    def adapted(self, scope):
        if self.relation not in scope.tables:
            return None
        return replace(self, condition=self.condition.adapted(scope.relations[self.relation], scope, pure=False))

    def enter(self, _scope):
        pass

    def declare(self, metadata, scope):
        kind = "PERMISSIVE" if self.is_permissive else "RESTRICTIVE"
        condition = f"{self.condition.sql(scope.relations[self.relation], scope)} > 0"
        how = "WITH CHECK" if self.command == "INSERT" else "USING"
        made = [
            (
                f"CREATE POLICY {quote(self.name)} ON {named(self.relation)} AS {kind} FOR {self.command}"
                f" {how} ({condition})"
            )
        ]
        declare(metadata, with_comment(made, "POLICY", f"{quote(self.name)} ON {named(self.relation)}", self.comment))


@dataclass(frozen=True, repr=False)
class Statistics(Described):
    name: str
    relation: str
    column: str
    expression: Expression
    kinds: str = "ndistinct"
    target: int | None = None

    def adapted(self, scope):
        table = scope.tables.get(self.relation)
        if table is None or self.column not in table.plain_columns:
            return None
        return replace(self, expression=self.expression.adapted(table.plain_columns, scope, pure=True))

    def enter(self, _scope):
        pass

    def declare(self, metadata, scope):
        expression = self.expression.sql(scope.tables[self.relation].plain_columns, scope)
        made = [
            (
                f"CREATE STATISTICS {named(self.name)} ({self.kinds}) ON {quote(self.column)}, ({expression})"
                f" FROM {named(self.relation)}"
            )
        ]
        if self.target:
            made.append(f"ALTER STATISTICS {named(self.name)} SET STATISTICS {self.target}")
        declare(metadata, tuple(made))
