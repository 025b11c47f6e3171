"""Whatever SQL is written into a revision comes out of it unchanged, online and offline."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from alembic.autogenerate import render_python_code
from alembic.operations import Operations, ops
from alembic.runtime.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy.dialects import postgresql

from arc_halo.autogenerate.objects import Key
from arc_halo.autogenerate.operations import SqlOperation
from arc_halo.autogenerate.render import render_item
from tests.autogenerate.project import new_metadata

TRICKY = (
    "CREATE FUNCTION app.f() AS $$ a[1:n], :name, \\:name, \\\\:x, '%', '%%', %(x)s, a::int, 'it''s', \"q\", ' :# ' $$",
    "a\tb\n\t  c  \n\n   d   ",
    "'Größe ☃ \U0001f600 \x85 \u2028 \r\n' -- {x} {{y}}",
    "if x: # one\nelse: # two",
    "x" * 300 + " " * 300 + ": #",
    "\\",
    ":",
    "::a :: b:c :d:",
)


def rendered(sql):
    """The body of a revision, as Alembic indents it, run with the operations of a real context."""
    return render_python_code(ops.UpgradeOps([SqlOperation("create", Key("function", "app.f"), (sql,), ())]))


def run(code, *, offline):
    output = io.StringIO()
    dialect = postgresql.dialect(paramstyle="named")
    options = {"as_sql": True, "output_buffer": output, "literal_binds": True}
    context = MigrationContext.configure(dialect=dialect, opts=options)
    sent = []
    operations = Operations(context)
    if not offline:
        operations = SimpleNamespace(
            get_context=lambda: SimpleNamespace(as_sql=False),
            execute=lambda statement: sent.append(str(sa.text(statement).compile(dialect=dialect))),
        )
    exec("def upgrade():\n    " + code + "\nupgrade()", {"op": operations, "sa": sa})
    return output.getvalue() if offline else sent[0]


STATEMENTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1) | st.text(
    "ab:\\[]1%'\"\n\t #{}$", min_size=1
)


@pytest.mark.parametrize("offline", [False, True])
@given(sql=STATEMENTS)
def test_any_statement(sql, offline):
    assert_unchanged(sql, offline=offline)


def assert_unchanged(sql, *, offline):
    sent = run(rendered(sql), offline=offline)
    if not offline:
        assert sent == sql
    elif "\t" in sql:
        assert sent == f"{sql};\n\n"
    else:
        assert sent == f"{sql.strip()};\n\n"


@pytest.mark.parametrize("sql", TRICKY)
@pytest.mark.parametrize("offline", [False, True])
def test_tricky_statements(sql, offline):
    assert_unchanged(sql, offline=offline)


@pytest.mark.parametrize("sql", TRICKY)
def test_lines_are_short_enough_for_the_linter(sql):
    assert max(map(len, rendered(sql).splitlines())) <= 120


class Float32Vector(VECTOR):
    """A project's own subclass."""


class Decorated(sa.TypeDecorator):
    """A project's own decorator."""

    impl = sa.LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect):
        return dialect.type_descriptor(HALFVEC(4))


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (VECTOR(3), "VECTOR(dim=3)"),
        (VECTOR(), "VECTOR()"),
        (Float32Vector(3), "VECTOR(dim=3)"),
        (Decorated(), "HALFVEC(dim=4)"),
    ],
)
def test_types_of_the_project_are_written_as_the_database_s(item, text):
    metadata = new_metadata()
    sa.Table("vectors", metadata, sa.Column("v", item))
    table = ops.CreateTableOp.from_table(metadata.tables["app.vectors"])
    code = render_python_code(ops.UpgradeOps([table]), render_item=render_item)
    assert f"sa.Column('v', {text}" in code
    assert "Float32Vector" not in code
