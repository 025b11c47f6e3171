"""Hypothesis strategies: descriptions of schemas, and what they may become."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tests.autogenerate.random_members import Policy, Statistics, Trigger, TriggerFunction
from tests.autogenerate.random_objects import Aggregate, Function, Procedure, RowFunction, View
from tests.autogenerate.random_schema import Expression, Scope
from tests.autogenerate.random_tables import (
    FAMILIES,
    TYPES,
    Check,
    Column,
    Reference,
    Table,
    TableIndex,
    Unique,
)

MAX_THINGS = 7
MAX_EDITS = 4
RELATIONS = ("items", "Odd Name", "r3", "select", *(f"r{number}" for number in range(5, 30)))
FUNCTIONS = ("f1", "F 2", "f3", "f4", "order", *(f"f{number}" for number in range(6, 30)))
MEMBERS = ("m1", "M 2", "m3", "user", *(f"m{number}" for number in range(5, 30)))
COLUMNS = ("a", "b", "C d", "from", "e")
SAID = (None, None, "said", "it's 100%: said\nagain")
constants = st.integers(0, 3)
said = st.sampled_from(SAID)
rarely = st.sampled_from([False, False, False, True])


def unused(draw, pool, used):
    return draw(st.sampled_from([name for name in pool if name not in used][:3]))


def one_of(draw, names, *, or_none=True):
    """One of the names, or none; None if there are none."""
    choices = [*([None] if or_none else []), *sorted(names)]
    return draw(st.sampled_from(choices)) if choices else None


@st.composite
def expressions(draw, columns, scope, *, pure):
    functions = [name for name, each in scope.functions.items() if each.is_pure or not pure]
    return Expression(one_of(draw, columns), one_of(draw, functions), draw(constants))


@st.composite
def columns(draw, name, plain, scope, kinds=tuple(TYPES)):
    kind = draw(st.sampled_from(kinds))
    how = draw(st.sampled_from(["plain", "plain", "default", "computed"]))
    return Column(
        name,
        kind,
        default=draw(expressions({}, scope, pure=True)) if how == "default" else None,
        computed=draw(expressions(plain, scope, pure=True)) if how == "computed" else None,
        nullable=not draw(rarely),
        storage=draw(st.sampled_from([None, None, None, "EXTERNAL", "MAIN"])),
        is_compressed=draw(rarely),
        comment=draw(said),
    )


@st.composite
def parts(draw, table, scope, kind):
    """One more constraint or index."""
    used = {each.name for group in (table.checks, table.uniques, table.references, table.indexes) for each in group}
    name = unused(draw, [f"{table.name} {number}" for number in range(9)], used)
    types = table.types
    if kind == "checks":
        return Check(name, draw(expressions(types, scope, pure=True)))
    if kind == "uniques":
        return Unique(name, tuple(draw(st.lists(st.sampled_from(sorted(types)), min_size=1, max_size=2, unique=True))))
    if kind == "references":
        other = draw(st.sampled_from([table.name, *sorted(scope.tables)]))
        known = table.types if other == table.name else scope.tables[other].types
        return Reference(
            name, draw(st.sampled_from(sorted(types))), other, draw(st.sampled_from(["id", *sorted(known)]))
        )
    keys = st.sampled_from(sorted(types)) | expressions(types, scope, pure=True)
    return TableIndex(
        name,
        tuple(draw(st.lists(keys, min_size=1, max_size=2, unique=True))),
        draw(st.booleans()),
        draw(st.none() | expressions(types, scope, pure=True)),
    )


GROUPS = ("checks", "uniques", "references", "indexes")


@st.composite
def changed_tables(draw, table, scope):
    """One change of a table."""
    names = [each.name for each in table.columns]
    possible = ["itself", "remove", *GROUPS]
    if len(names) < len(COLUMNS):
        possible += ["add", "add"]
    if names:
        possible += ["drop", "change", "change"]
    what = draw(st.sampled_from(possible))
    if what == "add":
        new = draw(columns(unused(draw, COLUMNS, names), table.plain_columns, scope))
        return replace(table, columns=(*table.columns, new))
    if what in ("drop", "change"):
        old = draw(st.sampled_from(table.columns))
        new = (draw(changed_columns(old, table.plain_columns, scope)),) if what == "change" else ()
        place = table.columns.index(old)
        return replace(table, columns=(*table.columns[:place], *new, *table.columns[place + 1 :]))
    if what in GROUPS:
        group, new = getattr(table, what), draw(parts(table, scope, what))
        if group and draw(st.booleans()):  # another of the same name
            group, new = group[:-1], replace(new, name=group[-1].name)
        return replace(table, **{what: (*group, new)})
    if what == "remove":
        what = draw(st.sampled_from(GROUPS))
        return replace(table, **{what: getattr(table, what)[1:]})
    return replace(
        table,
        security=draw(st.sampled_from([None, "enabled", "forced"])),
        fillfactor=draw(st.sampled_from([None, 50, 70])),
        comment=draw(said),
    )


@st.composite
def changed_columns(draw, old, plain, scope):
    kinds = next((family for family in FAMILIES if old.type in family), (old.type,))
    others = {name: kind for name, kind in plain.items() if name != old.name}
    new = draw(columns(old.name, others, scope, kinds))
    if (old.computed is None) == (new.computed is None):
        return new
    return replace(old, type=new.type, comment=new.comment)


@st.composite
def tables(draw, name, scope):
    table = Table(name, is_filled=draw(st.booleans()))
    for _ in range(draw(st.integers(1, 4))):
        if len(table.columns) < len(COLUMNS):
            used = [each.name for each in table.columns]
            new = draw(columns(unused(draw, COLUMNS, used), table.plain_columns, scope))
            table = replace(table, columns=(*table.columns, new))
    for _ in range(draw(st.integers(0, 3))):
        table = draw(changed_tables(table, scope))
    return table


@st.composite
def views(draw, name, scope):
    source = draw(st.sampled_from(sorted(scope.relations)))
    known = scope.relations[source]
    names = draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=4, unique=True))
    column = st.sampled_from(sorted(known)) | expressions(known, scope, pure=False)
    exists = None
    if draw(rarely):
        other = draw(st.sampled_from(sorted(scope.relations)))
        exists = (other, draw(expressions(scope.relations[other], scope, pure=False)))
    return View(
        name,
        source,
        tuple((each, draw(column)) for each in names),
        draw(st.none() | expressions(known, scope, pure=False)),
        exists,
        one_of(draw, scope.aggregates),
        draw(rarely),
        draw(st.booleans()),
        draw(rarely),
        tuple(
            draw(st.lists(st.tuples(st.sampled_from(names), st.booleans()), max_size=2, unique_by=lambda each: each[0]))
        ),
        draw(said),
    )


@st.composite
def functions(draw, name, scope):
    reads = one_of(draw, scope.relations)
    known = scope.relations[reads] if reads else {}
    return Function(
        name,
        draw(st.sampled_from(["return", "atomic", "string", "plpgsql"])),
        draw(
            st.sampled_from(
                [("bigint",), (), ("bigint", "bigint"), ("bigint", "bigint"), ("integer",), ("text", "bigint")]
            )
        ),
        draw(st.sampled_from(["p", "P q"])).replace(" ", "_"),
        draw(rarely),
        draw(st.sampled_from(["bigint", "bigint", "integer", "text", "numeric"])),
        one_of(draw, scope.functions),
        reads,
        draw(expressions(known, scope, pure=False)) if reads else Expression(),
        draw(constants),
        draw(rarely),
        draw(st.sampled_from([100, 100, 7])),
        draw(said),
    )


def trigger_functions(name, _scope):
    return st.builds(TriggerFunction, st.just(name), constants)


def row_functions(name, scope):
    whole = [each for each in scope.relations if not scope.sources[each].endswith("()")]
    return st.builds(RowFunction, st.just(name), st.sampled_from(whole), st.sampled_from(["string", "atomic"]))


def aggregates(name, scope):
    states = [each for each in scope.functions if Aggregate(name, each).adapted(scope)]
    return st.builds(Aggregate, st.just(name), st.sampled_from(states), constants, said)


@st.composite
def triggers(draw, name, scope):
    relation = draw(st.sampled_from(sorted({*scope.tables, *scope.views})))
    plain = scope.tables[relation].plain_columns if relation in scope.tables else {}
    return Trigger(
        name,
        relation,
        draw(st.sampled_from(sorted(scope.triggers))),
        draw(st.booleans()),
        draw(rarely),
        one_of(draw, plain),
        draw(st.none() | expressions(plain, scope, pure=True)),
        draw(st.sampled_from([None, None, "DISABLE", "ENABLE ALWAYS"])),
        draw(said),
    )


@st.composite
def procedures(draw, name, scope):
    relation = draw(st.sampled_from(sorted(scope.tables)))
    condition = draw(expressions(scope.relations[relation], scope, pure=False))
    return Procedure(name, relation, condition, draw(st.booleans()), draw(said))


@st.composite
def policies(draw, name, scope):
    relation = draw(st.sampled_from(sorted(scope.tables)))
    condition = draw(expressions(scope.relations[relation], scope, pure=False))
    command = draw(st.sampled_from(["ALL", "SELECT", "INSERT"]))
    return Policy(name, relation, condition, command, draw(st.booleans()), draw(said))


@st.composite
def statistics(draw, name, scope):
    relation = draw(st.sampled_from(sorted(scope.tables)))
    plain = scope.tables[relation].plain_columns
    kinds = draw(st.sampled_from(["ndistinct", "dependencies", "mcv"]))
    expression = draw(expressions(plain, scope, pure=True))
    target = draw(st.sampled_from([None, None, 7]))
    return Statistics(name, relation, draw(st.sampled_from(sorted(plain))), expression, kinds, target)


THINGS = {
    Table: tables,
    View: views,
    Function: functions,
    RowFunction: row_functions,
    Aggregate: aggregates,
    Procedure: procedures,
    TriggerFunction: trigger_functions,
    Trigger: triggers,
    Policy: policies,
    Statistics: statistics,
}


def possible_kinds(scope):
    yield from (Table, Function, Function)
    if len(scope.triggers) < 2:
        yield TriggerFunction
    if scope.relations:
        yield from [View] * 6
    if set(scope.tables) | scope.views | scope.materialized:
        yield RowFunction
    if scope.tables:
        yield from (Procedure, Policy, Statistics, Statistics)
    if scope.triggers and (scope.tables or scope.views):
        yield from (Trigger, Trigger, Trigger)
    if any(Aggregate("", each).adapted(scope) for each in scope.functions):
        yield from (Aggregate, Aggregate)


POOLS = {Table: RELATIONS, View: RELATIONS, Statistics: MEMBERS, Trigger: MEMBERS, Policy: MEMBERS}


def scope_of(before):
    scope = Scope()
    for each in before:
        each.enter(scope)
    return scope


def adapted(described):
    """Without what refers to what is gone."""
    scope, left = Scope(), []
    for each in described:
        if (fit := each.adapted(scope)) is not None:
            fit.enter(scope)
            left.append(fit)
    return tuple(left)


@st.composite
def with_one_more(draw, described):
    scope = scope_of(described)
    kind = draw(st.sampled_from(list(possible_kinds(scope))))
    name = unused(draw, POOLS.get(kind, FUNCTIONS), {each.name for each in described})
    return adapted((*described, draw(THINGS[kind](name, scope))))


@st.composite
def schemas(draw, least=1):
    described = adapted([draw(tables("items", Scope()))] if draw(st.booleans()) else [])
    for _ in range(draw(st.integers(least, MAX_THINGS))):
        described = draw(with_one_more(described))
    return described


@st.composite
def edited(draw, described):
    """One change: of one thing, or one more, or one less."""
    what = draw(st.sampled_from(["change", "change", "change", "add", "remove"]))
    if not described or (what == "add" and len(described) < MAX_THINGS + 2):
        return draw(with_one_more(described))
    place = draw(st.integers(0, len(described) - 1))
    before, old, after = described[:place], described[place], described[place + 1 :]
    if what == "remove":
        return adapted((*before, *after))
    scope = scope_of(before)
    if isinstance(old, Table):
        return adapted((*before, draw(changed_tables(old, scope)), *after))
    if type(old) not in (TriggerFunction, *possible_kinds(scope)):
        return described
    return adapted((*before, draw(THINGS[type(old)](old.name, scope)), *after))


def castable(before, after):
    """What can become of what stands: a column keeps its rows, and is computed or not for ever."""
    standing = {each.name: each for each in before if isinstance(each, Table)}
    return adapted(
        _kept(standing[each.name], each) if each.name in standing and isinstance(each, Table) else each
        for each in after
    )


def _kept(before, after):
    standing = {each.name: each for each in before.columns}

    def kept(column):
        old = standing.get(column.name, column)
        is_same = old.type == column.type or any({old.type, column.type} <= set(family) for family in FAMILIES)
        return column if is_same and (old.computed is None) == (column.computed is None) else old

    return replace(after, is_filled=before.is_filled, columns=tuple(map(kept, after.columns)))


@st.composite
def histories(draw):
    """Two or three descriptions in a row, each some changes from the one before."""
    states = [draw(schemas())]
    for _ in range(draw(st.integers(1, 2))):
        state = states[-1]
        for _ in range(draw(st.integers(1, MAX_EDITS))):
            state = draw(edited(state))
        states.append(castable(states[-1], state))
    return states
