"""A project that uses the plugin: a schema ``app``, an environment and revisions, and a neighbour with equal names."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import BigInteger, Column, MetaData, Table, Text

from arc_halo.autogenerate import create_all, difference, fingerprint
from arc_halo.autogenerate.savepoints import rolled_back, run
from arc_halo.database.migrate import migration_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

ENVIRONMENT = """
from alembic import context
from arc_halo.autogenerate.scope import scope

config = context.config
target_metadata = config.attributes["target_metadata"]
if context.is_offline_mode():
    context.configure(
        dialect_name="postgresql", literal_binds=True, dialect_opts={"paramstyle": "named"}, **scope(target_metadata)
    )
    context.run_migrations()
else:
    with config.attributes["engine"].connect() as connection:
        context.configure(connection=connection, transaction_per_migration=True, **scope(target_metadata, connection))
        with context.begin_transaction():
            context.run_migrations()
"""
TEMPLATE = Path(__file__).parents[2] / "alembic" / "script.py.mako"
NEIGHBOUR = """
CREATE SCHEMA neighbour;
CREATE TABLE {0}.items (id bigint PRIMARY KEY, name text, total bigint DEFAULT 1 CHECK (total > 0));
CREATE INDEX ix_items_name ON {0}.items (name);
CREATE TABLE {0}.alembic_version (version_num varchar(32) PRIMARY KEY);
INSERT INTO {0}.alembic_version VALUES ('theirs');
CREATE VIEW {0}.v_items AS SELECT id, name FROM {0}.items;
CREATE MATERIALIZED VIEW {0}.mv_items AS SELECT id, name FROM {0}.items;
CREATE FUNCTION {0}.answer() RETURNS integer LANGUAGE sql RETURN 1;
CREATE FUNCTION {0}.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touch BEFORE UPDATE ON {0}.items FOR EACH ROW EXECUTE FUNCTION {0}.touch();
"""


def new_metadata() -> MetaData:
    """A metadata of schema ``app`` with one table, ``items``."""
    metadata = MetaData(
        schema="app", naming_convention={"pk": "pk_%(table_name)s", "fk": "fk_%(table_name)s_%(column_0_N_name)s"}
    )
    Table("items", metadata, Column("id", BigInteger, primary_key=True), Column("name", Text, nullable=False))
    return metadata


class Project:
    """Runs Alembic for a metadata that changes."""

    def __init__(self, folder: Path, url: URL) -> None:
        shutil.copy(TEMPLATE, folder / "script.py.mako")
        (folder / "env.py").write_text(ENVIRONMENT)
        (folder / "versions").mkdir()
        self.engine = migration_engine(url)
        self.metadata = new_metadata()
        self.output = io.StringIO()
        self.config = Config(stdout=io.StringIO(), output_buffer=self.output)
        self.config.set_main_option("script_location", str(folder))
        self.config.set_main_option("path_separator", "os")
        self.config.attributes["engine"] = self.engine
        self.use(self.metadata)
        self.execute("CREATE EXTENSION vector WITH SCHEMA public", "CREATE SCHEMA app")

    def use(self, metadata: MetaData) -> None:
        self.metadata = self.config.attributes["target_metadata"] = metadata

    def execute(self, *statements: str) -> None:
        with self.engine.begin() as connection:
            run(connection, statements)

    def revise(self, metadata: MetaData | None = None) -> str:
        """Write a revision; return its text."""
        if metadata is not None:
            self.use(metadata)
        number = len(list(ScriptDirectory.from_config(self.config).walk_revisions())) + 1
        script = command.revision(self.config, "change", autogenerate=True, rev_id=f"{number:04}")
        return Path(script.path).read_text()

    def upgrade(self) -> None:
        command.upgrade(self.config, "head")

    def downgrade(self, revision: str = "-1") -> None:
        command.downgrade(self.config, revision)

    def migrate(self, metadata: MetaData) -> str:
        """Write a revision, run it, and see that a second one would be empty."""
        text = self.revise(metadata)
        self.upgrade()
        command.check(self.config)
        return text

    def sql(self, revisions: str) -> str:
        """What offline mode writes."""
        self.output.seek(0)
        self.output.truncate()
        command.upgrade(self.config, revisions, sql=True)
        return self.output.getvalue()

    def fingerprint(self, schema: str = "app") -> list[str]:
        with self.engine.connect() as connection:
            return fingerprint(connection, schema)

    def built(self) -> list[str]:
        """The fingerprint of what ``create_all`` makes."""
        with self.engine.connect() as connection, rolled_back(connection):
            run(connection, ["ALTER SCHEMA app RENAME TO elsewhere"])
            create_all(connection, self.metadata)
            return fingerprint(connection, "app")


@pytest.fixture
def project(tmp_path: Path, database_url: URL) -> Iterator[Project]:
    """A project without revisions; at the end its neighbours must be as they were."""
    project = Project(tmp_path, database_url)
    for schema in ("neighbour", "public"):
        project.execute(
            NEIGHBOUR.replace("CREATE SCHEMA neighbour;", f"CREATE SCHEMA IF NOT EXISTS {schema};").format(schema)
        )
    neighbours = [project.fingerprint(schema) for schema in ("neighbour", "public")]
    yield project
    assert [project.fingerprint(schema) for schema in ("neighbour", "public")] == neighbours
    project.engine.dispose()


def assert_same(first: list[str], second: list[str]) -> None:
    """Two fingerprints are equal; if not, show how they differ."""
    assert first == second, "\n".join(["", *difference(first, second)])


def assert_round_trip(project: Project, before: MetaData, after: MetaData) -> str:
    """Change ``before`` into ``after`` and back, then remove everything; return the revision of the change."""
    project.migrate(before)
    first = project.fingerprint()
    assert_same(first, project.built())
    change = project.migrate(after)
    second = project.fingerprint()
    assert_same(second, project.built())
    assert second != first
    project.downgrade()
    assert_same(project.fingerprint(), first)
    project.upgrade()
    assert_same(project.fingerprint(), second)
    project.migrate(new_metadata())
    project.downgrade()
    assert_same(project.fingerprint(), second)
    project.downgrade("base")
    assert project.fingerprint() == []
    project.execute("DROP TABLE app.alembic_version", project.sql("0002"))
    assert_same(project.fingerprint(), second)
    return change
