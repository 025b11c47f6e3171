"""What a revision would do to a database in use is seen before, on a scratch database."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import event, text

from arc_halo.autogenerate.linting import Limits, lint, temporary_database
from arc_halo.autogenerate.linting.statements import split
from arc_halo.database.migrate import migration_engine
from arc_halo.database.url import libpq_string
from arc_halo.errors import PermissionDenied, SchemaNotAtHead

TABLES = """
CREATE TABLE app.items (id bigint PRIMARY KEY, name varchar(20), number integer, owner_id bigint);
CREATE TABLE app.owners (id bigint PRIMARY KEY, name text);
CREATE TABLE app.events (id bigint, at date NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE app.events_old PARTITION OF app.events FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE MATERIALIZED VIEW app.mv_items AS SELECT id FROM app.items;
CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'
"""
FILL = """
INSERT INTO app.items SELECT n, 'n' || n, n FROM generate_series(1, 20000) AS n;
INSERT INTO app.owners VALUES (1, 'one');
INSERT INTO app.events SELECT n, '2020-06-06' FROM generate_series(1, 20000) AS n;
REFRESH MATERIALIZED VIEW app.mv_items;
ANALYZE app.items, app.owners, app.events, app.mv_items
"""
TIMEOUT = "SET LOCAL lock_timeout TO '5s'"
CHECK = "ALTER TABLE app.items ADD CONSTRAINT ck_items_number CHECK (number > 0)"
FOREIGN_KEY = "ALTER TABLE app.items ADD CONSTRAINT fk_items_owner_id FOREIGN KEY (owner_id) REFERENCES app.owners (id)"
ASKING = "def upgrade():\n    found = op.get_bind().execute(sqlalchemy.text('SELECT 1'))\n"
INDEX = "CREATE INDEX ix_items_name ON app.items (name)"


class Linted:
    """A project whose revisions are written by hand, and a database at the first of them, filled."""

    def __init__(self, project) -> None:
        self.project = project
        self.engine = project.engine
        self.versions = project.config.get_main_option("script_location") + "/versions"
        self.count = 0
        self.add(TABLES)
        project.upgrade()
        project.execute(*FILL.split(";"))

    def add(self, *statements: str, at_once: str | None = None) -> str:
        """A revision; ``at_once`` stands in an ``autocommit_block()`` at its end."""
        self.count += 1
        down = f"{self.count - 1:04}" if self.count > 1 else None
        lines = [f"    op.execute({each!r})" for each in statements]
        if at_once is not None:
            lines += ["    with op.get_context().autocommit_block():", f"        op.execute({at_once!r})"]
        head = f"from alembic import op\nrevision, down_revision = {f'{self.count:04}'!r}, {down!r}\n"
        body = "\n".join(lines)
        with open(f"{self.versions}/{self.count:04}.py", "w") as file:  # noqa: PTH123
            file.write(f"{head}def upgrade():\n{body}\n\ndef downgrade():\n    pass\n")
        return f"{self.count:04}"

    def lint(self, revisions: str = "head", *, current: str = "0001", **limits):
        with (
            temporary_database(self.engine) as url,
            migration_engine(url).connect() as scratch,
            self.engine.connect() as live,
        ):
            return lint(
                self.project.config, live, scratch, revisions=revisions, current=(current,), limits=Limits(**limits)
            )

    def said(self, *statements: str, at_once: str | None = None, timeout: bool = True, **limits):
        """Effects by table and findings of a new revision, but for what squawk says."""
        self.add(*([TIMEOUT] if timeout else []), *statements, at_once=at_once)
        (revision,) = self.lint(f"{self.count:04}", **limits).revisions
        effects = {each.table: each for judged in revision.statements for each in judged.effects}
        findings = [each for judged in revision.statements for each in judged.findings]
        return effects, [each for each in findings if not each.rule.startswith("squawk:")]


@pytest.fixture
def linted(project) -> Linted:
    return Linted(project)


# Statement, the lock on app.items, the work there, and the rules that find a danger.
KINDS = {
    "index": (INDEX, "SHARE", "scan", {"index-build"}),
    "foreign key": (FOREIGN_KEY, "SHARE ROW EXCLUSIVE", "scan", {"foreign-key-scan"}),
    "foreign key, not valid": (f"{FOREIGN_KEY} NOT VALID", "SHARE ROW EXCLUSIVE", None, set()),
    "check": (CHECK, "ACCESS EXCLUSIVE", "scan", {"check-scan"}),
    "check, not valid": (f"{CHECK} NOT VALID", "ACCESS EXCLUSIVE", None, set()),
    "unique": (
        "ALTER TABLE app.items ADD CONSTRAINT uq_items_name UNIQUE (name)",
        "ACCESS EXCLUSIVE",
        "scan",
        {"index-build"},
    ),
    "not null": (
        "ALTER TABLE app.items ALTER COLUMN number SET NOT NULL",
        "ACCESS EXCLUSIVE",
        "scan",
        {"not-null-scan"},
    ),
    "wider text": ("ALTER TABLE app.items ALTER COLUMN name TYPE varchar(40)", "ACCESS EXCLUSIVE", None, set()),
    "wider number": (
        "ALTER TABLE app.items ALTER COLUMN number TYPE bigint",
        "ACCESS EXCLUSIVE",
        "rewrite",
        {"rewrite"},
    ),
    "constant default": ("ALTER TABLE app.items ADD COLUMN flag boolean DEFAULT true", "ACCESS EXCLUSIVE", None, set()),
    "constant default, not null": (
        "ALTER TABLE app.items ADD COLUMN flag boolean NOT NULL DEFAULT true",
        "ACCESS EXCLUSIVE",
        None,
        set(),
    ),
    "required column": (
        "ALTER TABLE app.items ADD COLUMN flag boolean NOT NULL",
        "ACCESS EXCLUSIVE",
        "scan",
        {"required-column"},
    ),
    "volatile default": (
        "ALTER TABLE app.items ADD COLUMN token uuid DEFAULT gen_random_uuid()",
        "ACCESS EXCLUSIVE",
        "rewrite",
        {"rewrite"},
    ),
    "drop column": ("ALTER TABLE app.items DROP COLUMN number", "ACCESS EXCLUSIVE", None, set()),
    "rename": ("ALTER TABLE app.items RENAME TO things", "ACCESS EXCLUSIVE", None, {"rename"}),
    "rename column": ("ALTER TABLE app.items RENAME COLUMN number TO amount", "ACCESS EXCLUSIVE", None, {"rename"}),
    "view": ("CREATE VIEW app.v_items AS SELECT id FROM app.items", "ACCESS SHARE", None, set()),
    "trigger": (
        "CREATE TRIGGER touch BEFORE UPDATE ON app.items FOR EACH ROW EXECUTE FUNCTION app.touch()",
        "SHARE ROW EXCLUSIVE",
        None,
        set(),
    ),
    "rows": ("UPDATE app.items SET number = 1", "ROW EXCLUSIVE", None, set()),
    "truncate": ("TRUNCATE app.items", "ACCESS EXCLUSIVE", "rewrite", {"rewrite"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_statement(linted, kind):
    statement, lock, work, rules = KINDS[kind]
    effects, findings = linted.said(statement)
    effect = effects["app.items"]
    assert (effect.lock, effect.work, effect.rows) == (lock, work, 20_000)
    assert effect.nbytes > 1_000_000
    assert {each.rule for each in findings if each.severity == "danger"} == rules
    assert all(each.advice for each in findings if each.severity == "danger")


def test_an_index_made_concurrently_blocks_nobody(linted):
    statement = "CREATE INDEX CONCURRENTLY ix_items_name ON app.items (name)"
    effects, findings = linted.said(at_once=statement)
    assert (effects["app.items"].lock, effects["app.items"].blocks) == ("SHARE UPDATE EXCLUSIVE", None)
    assert [(each.severity, each.rule) for each in findings] == [("note", "index-build")]
    _, findings = linted.said("DROP INDEX app.ix_items_name")
    assert findings == []
    effects, findings = linted.said(INDEX, at_once="DROP INDEX CONCURRENTLY app.ix_items_name")
    assert {each.rule for each in findings} == {"index-build"}


def test_concurrently_cannot_stand_in_a_transaction(linted):
    _, findings = linted.said("CREATE INDEX CONCURRENTLY ix_owners_name ON app.owners (name)")
    assert ("danger", "in-transaction") in {(each.severity, each.rule) for each in findings}


def test_a_constraint_that_is_validated_later_blocks_nobody(linted):
    linted.said(f"{CHECK} NOT VALID", f"{FOREIGN_KEY} NOT VALID")
    effects, findings = linted.said("ALTER TABLE app.items VALIDATE CONSTRAINT ck_items_number")
    assert (effects["app.items"].lock, effects["app.items"].work) == ("SHARE UPDATE EXCLUSIVE", "scan")
    assert [(each.severity, each.rule) for each in findings] == [("note", "check-scan")]
    effects, findings = linted.said("ALTER TABLE app.items VALIDATE CONSTRAINT fk_items_owner_id")
    assert (effects["app.items"].work, effects["app.owners"].lock) == ("scan", "ROW SHARE")
    assert [(each.severity, each.rule) for each in findings] == [("note", "foreign-key-scan")]


def test_a_check_proves_that_there_is_no_null(linted):
    linted.said("ALTER TABLE app.items ADD CONSTRAINT filled CHECK (number IS NOT NULL)")
    effects, findings = linted.said("ALTER TABLE app.items ALTER COLUMN number SET NOT NULL")
    assert effects["app.items"].work is None
    assert findings == []


def test_a_lock_stays_until_the_end_of_the_transaction(linted):
    _, findings = linted.said(f"{CHECK} NOT VALID", "ALTER TABLE app.items VALIDATE CONSTRAINT ck_items_number")
    assert held(findings) == ["readers and writers of app.items by ACCESS EXCLUSIVE"]
    _, findings = linted.said("ALTER TABLE app.owners ADD COLUMN age integer", INDEX)
    assert held(findings) == ["readers and writers of app.owners by ACCESS EXCLUSIVE"]
    _, findings = linted.said("ALTER TABLE app.owners ADD COLUMN size integer", at_once=INDEX.replace("ix_", "ix2_"))
    assert held(findings) == []


def held(findings):
    """Who is locked out meanwhile."""
    return [
        each.message.partition("lock out ")[2]
        for each in findings
        if (each.severity, each.rule, each.table) == ("danger", "held-lock", "app.items")
    ]


def test_a_lock_is_waited_for_with_a_timeout(linted):
    statement = "ALTER TABLE app.items ADD COLUMN flag boolean DEFAULT true"
    _, findings = linted.said(statement, timeout=False)
    assert [(each.severity, each.rule) for each in findings] == [("danger", "lock-timeout")]
    _, findings = linted.said("ALTER TABLE app.owners ADD COLUMN flag boolean DEFAULT true", timeout=False)
    assert [(each.severity, each.rule) for each in findings] == [("note", "lock-timeout")]


def test_sizes_decide(linted):
    small = "CREATE INDEX ix_owners_name ON app.owners (name)"
    assert [each.severity for each in linted.said(small)[1]] == ["note"]
    assert [each.severity for each in linted.said(small.replace("ix_", "ix2_"), strict=True)[1]] == ["danger"]
    assert [each.severity for each in linted.said(INDEX)[1]] == ["danger"]
    large = {"rows": 30_000, "nbytes": 1 << 40}
    assert [each.severity for each in linted.said(INDEX.replace("ix_", "ix2_"), **large)[1]] == ["note"]
    allowed = {"allowed": frozenset({"index-build"})}
    assert [each.severity for each in linted.said(INDEX.replace("ix_", "ix3_"), **allowed)[1]] == ["note"]


def test_one_row_is_enough_for_a_required_column_to_fail(linted):
    statement = "ALTER TABLE app.owners ADD COLUMN age integer NOT NULL"
    assert [(each.severity, each.rule) for each in linted.said(statement)[1]] == [("danger", "required-column")]


def test_what_is_new_may_be_locked(linted):
    _, findings = linted.said(
        "CREATE TABLE app.fresh (id bigint PRIMARY KEY, name text)",
        "CREATE INDEX ix_fresh_name ON app.fresh (name); ALTER TABLE app.fresh ALTER COLUMN name TYPE bytea USING NULL",
        strict=True,
    )
    assert findings == []


def test_partitions_count_for_their_table(linted):
    effects, findings = linted.said("CREATE INDEX ix_events_id ON app.events (id)")
    assert list(effects) == ["app.events"]
    assert effects["app.events"].rows == 20_000
    assert [(each.severity, each.rule) for each in findings] == [("danger", "index-build")]
    effects, findings = linted.said(
        "CREATE TABLE app.events_new (LIKE app.events)",
        "ALTER TABLE app.events ATTACH PARTITION app.events_new FOR VALUES FROM ('2021-01-01') TO ('2022-01-01')",
    )
    assert (effects["app.events"].lock, findings) == ("SHARE UPDATE EXCLUSIVE", [])


def test_a_materialised_view_is_refreshed(linted):
    effects, findings = linted.said("REFRESH MATERIALIZED VIEW app.mv_items")
    assert effects["app.mv_items"].work == "rewrite"
    assert [each.rule for each in findings] == ["rewrite"]
    assert "CONCURRENTLY" in findings[0].advice


def test_a_table_is_sized_by_the_name_that_it_has_now(linted):
    linted.add(TIMEOUT, "ALTER TABLE app.items RENAME TO things")
    linted.add(TIMEOUT, "CREATE INDEX ix_things_name ON app.things (name)")
    _, indexed = linted.lint().revisions
    (effect,) = [each for judged in indexed.statements for each in judged.effects]
    assert (effect.table, effect.rows) == ("app.things", 20_000)


def test_a_statement_that_fails_ends_it(linted):
    linted.add("ALTER TABLE app.nothing ADD COLUMN a integer", CHECK)
    linted.add(FOREIGN_KEY)
    report = linted.lint()
    first, second = report.revisions
    ((finding,),) = [[each for each in judged.findings if each.rule == "fails"] for judged in first.statements]
    assert 'relation "app.nothing" does not exist' in finding.message
    assert (report.dangers, second.statements) == (1, [])


@pytest.mark.parametrize(
    ("revisions", "found"),
    [
        ("head", ["0003"]),
        ("0001:0003", ["0002", "0003"]),
        ("0001:", ["0002", "0003"]),
        (":0002", ["0001", "0002"]),
        ("0002", ["0002"]),
    ],
)
def test_revisions_are_chosen(linted, revisions, found):
    linted.add("SELECT 1")
    linted.add("SELECT 2")
    report = linted.lint(revisions, current="0002")
    assert [each.revision for each in report.revisions] == found
    with pytest.raises(SchemaNotAtHead):
        linted.lint("9999")


@pytest.mark.parametrize("use", ["found.scalar()", "list(found)"])
def test_what_asks_the_database_cannot_be_linted(linted, use):
    linted.add("SELECT 1")
    with open(f"{linted.versions}/0002.py", "a") as file:  # noqa: PTH123
        file.write(f"\nimport sqlalchemy\n{ASKING}    {use}\n")
    with pytest.raises(SchemaNotAtHead, match="revision 0002 asks the database something"):
        linted.lint()


def test_the_database_is_neither_locked_nor_changed(linted):
    before = linted.project.things()
    linted.add(TIMEOUT, FOREIGN_KEY, INDEX, "DROP TABLE app.owners CASCADE")
    with psycopg.connect(libpq_string(linted.engine.url)) as reader:
        reader.execute("SELECT count(*) FROM app.items")  # its lock stays till the end
        reader.execute("LOCK TABLE app.owners IN EXCLUSIVE MODE")
        assert linted.lint().dangers > 1
        held = "SELECT count(*) FROM pg_locks WHERE relation = 'app.items'::regclass AND pid <> pg_backend_pid()"
        assert reader.execute(held).fetchone() == (0,)
    assert linted.project.things() == before


def fail_on_a_scratch(engine, names):
    with temporary_database(engine) as url:
        names.append(url.database)
        raise ZeroDivisionError


def test_the_scratch_goes_also_where_it_failed(linted):
    names = []
    with pytest.raises(ZeroDivisionError):
        fail_on_a_scratch(linted.engine, names)
    with linted.engine.connect() as connection:
        found = connection.scalars(
            text("SELECT datname FROM pg_database WHERE datname = ANY (:names)"), {"names": names}
        )
        assert names[0].startswith("arc_halo_lint_")
        assert found.all() == []


# What squawk 2.70 prints for the last statement below, at its line: TIMEOUT is the first, SELECT has two.
SQUAWK = (
    '[{"file": "stdin", "line": 3, "column": 38, "level": "Warning", "message": "Using 32-bit integer fields can '
    'result in hitting the max `int` limit.", "help": "Use 64-bit values instead.", '
    '"rule_name": "prefer-bigint-over-int", "column_end": 45, "line_end": 3}]'
)


def test_squawk_is_heard_where_it_says_something_else(linted, monkeypatch, tmp_path):
    squawk = tmp_path / "squawk"
    squawk.write_text(f"#!/bin/sh\ncat <<'EOF'\n{SQUAWK}\nEOF\n")
    squawk.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    linted.add(TIMEOUT, "SELECT\n1", "ALTER TABLE app.items ADD COLUMN flag integer")
    (revision,) = linted.lint().revisions
    said = {each.rule: each for judged in revision.statements for each in judged.findings}
    assert "squawk:prefer-bigint-over-int" in {each.rule for each in revision.statements[-1].findings}
    assert {each.severity for each in said.values()} == {"note"}


def test_squawk_is_not_needed(linted, monkeypatch, tmp_path):
    linted.add(TIMEOUT, "ALTER TABLE app.items ADD COLUMN flag integer")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [each.findings for each in linted.lint().revisions[0].statements] == [[], []]
    squawk = tmp_path / "squawk"
    for said in ("exit 3", "echo nonsense", "echo '[{}, 1]'", "echo '{}'"):
        squawk.write_text(f"#!/bin/sh\n{said}\n")
        squawk.chmod(0o755)
        assert [each.findings for each in linted.lint().revisions[0].statements] == [[], []]


def test_a_role_that_may_not_make_databases_is_told_so(linted):
    role = f"{linted.engine.url.database}_reader"
    linted.project.execute(f"CREATE ROLE {role}")
    engine = migration_engine(linted.engine.url)

    def become(connection, _record):
        connection.autocommit = True
        connection.execute(f"SET ROLE {role}")
        connection.autocommit = False

    event.listen(engine, "connect", become)
    with pytest.raises(PermissionDenied), temporary_database(engine):
        pass
    linted.project.execute(f"DROP ROLE {role}")


def test_statements_are_told_apart_as_postgresql_does(linted):
    statements = [
        "CREATE FUNCTION app.one() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END",
        "SELECT ';', $$ ; $$, $a$ $$ ; $a$",
        "SELECT 1 -- one; two\n",
        "COMMENT ON TABLE app.items IS 'a; b'",
        "/* ; */ SELECT * FROM nowhere",
    ]
    with psycopg.connect(libpq_string(linted.engine.url), autocommit=True) as connection:

        def parses(text):
            result = connection.pgconn.prepare(b"", text.encode())
            return b"42601" not in (result.error_field(ord("C")) or b"")

        assert list(split(";\n".join(statements) + ";", parses)) == [each.strip() for each in statements]
        assert list(split("SELECT 1; SELEKT 2; SELECT 3", parses)) == ["SELECT 1", "SELEKT 2; SELECT 3"]
        assert list(split(" ; ", parses)) == []
