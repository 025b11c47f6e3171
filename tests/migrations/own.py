"""Our own environment and revisions, and room for more of them in a folder of the test's."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import CreateView, MetaData, Table, select, text

from arc_halo.autogenerate import create_all, fingerprint
from arc_halo.autogenerate.savepoints import rolled_back, run
from arc_halo.database.migrate import migration_engine, script_folder
from arc_halo.schema import Base

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

NEIGHBOUR = """
CREATE SCHEMA IF NOT EXISTS neighbour;
CREATE TABLE {0}.models (id bigint PRIMARY KEY, name text);
CREATE TABLE {0}.alembic_version (version_num varchar(32) PRIMARY KEY);
INSERT INTO {0}.alembic_version VALUES ('theirs');
CREATE VIEW {0}.v_training_progress AS SELECT id FROM {0}.models;
CREATE FUNCTION {0}.update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER touch BEFORE UPDATE ON {0}.models
    FOR EACH ROW EXECUTE FUNCTION {0}.update_updated_at_column();
"""


class Migrations:
    """Alembic's commands on one database."""

    def __init__(self, url: URL, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.engine = migration_engine(url)
        self.output = io.StringIO()
        self.config = Config(stdout=io.StringIO(), output_buffer=self.output)
        self.config.set_main_option("script_location", str(script_folder()))
        self.config.set_main_option("version_locations", f"{script_folder() / 'versions'}\n{folder}")
        self.config.set_main_option("path_separator", "newline")
        self.config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
        self.config.attributes["url"] = url

    def revise(self, metadata: MetaData) -> str:
        """Write a revision into the test's folder; return its text."""
        self.config.attributes["target_metadata"] = metadata
        script = command.revision(self.config, "A change", autogenerate=True, version_path=str(self.folder))
        return Path(script.path).read_text()

    def add(self, revision: str, down: str, up: str, back: str, back_at_once: str | None = None) -> None:
        """A revision written by hand; ``back_at_once`` stands in an ``autocommit_block()`` of the downgrade."""
        head = f"from alembic import op\nrevision, down_revision = {revision!r}, {down!r}\n"
        body = f"def upgrade():\n    op.execute({up!r})\n\ndef downgrade():\n    op.execute({back!r})\n"
        if back_at_once is not None:
            body += f"    with op.get_context().autocommit_block():\n        op.execute({back_at_once!r})\n"
        (self.folder / f"{revision}.py").write_text(head + body)

    def upgrade(self, revision: str = "head") -> None:
        command.upgrade(self.config, revision)

    def downgrade(self, revision: str = "-1") -> None:
        command.downgrade(self.config, revision)

    def check(self) -> None:
        command.check(self.config)

    def sql(self, revisions: str = "head") -> str:
        """What offline mode writes."""
        command.upgrade(self.config, revisions, sql=True)
        return self.output.getvalue()

    def execute(self, *statements: str) -> None:
        with self.engine.begin() as connection:
            run(connection, statements)

    def scalars(self, query: str) -> list[object]:
        with self.engine.connect() as connection:
            return list(connection.scalars(text(query)))

    def fingerprint(self, schema: str = "arc_halo") -> list[str]:
        with self.engine.connect() as connection:
            return fingerprint(connection, schema)

    def built(self, metadata: MetaData) -> list[str]:
        """The fingerprint of what ``create_all`` makes."""
        with self.engine.connect() as connection, rolled_back(connection):
            run(connection, ["ALTER SCHEMA arc_halo RENAME TO elsewhere"])
            create_all(connection, metadata)
            return fingerprint(connection, "arc_halo")


@pytest.fixture
def migrations(database_url: URL, tmp_path: Path) -> Iterator[Migrations]:
    """Of an empty database, but for what other applications have there; theirs must stay as it was."""
    migrations = Migrations(database_url, tmp_path / "versions")
    migrations.execute(NEIGHBOUR.format("neighbour"), NEIGHBOUR.format("public"))
    neighbours = [migrations.fingerprint(schema) for schema in ("neighbour", "public")]
    yield migrations
    assert [migrations.fingerprint(schema) for schema in ("neighbour", "public")] == neighbours
    migrations.engine.dispose()


@pytest.fixture
def migrated(migrated_url: URL, tmp_path: Path) -> Iterator[Migrations]:
    """Of a database at head."""
    migrations = Migrations(migrated_url, tmp_path / "versions")
    yield migrations
    migrations.engine.dispose()


def copy_of_ours() -> MetaData:
    """Our metadata, to be changed."""
    ours = Base.metadata
    copy = MetaData(schema=ours.schema, naming_convention=ours.naming_convention)
    for table in ours.tables.values():
        table.to_metadata(copy)._prefixes = table._prefixes  # SQLAlchemy leaves UNLOGGED behind
    copy.info = {key: list(declared) for key, declared in ours.info.items()}
    return copy


def rewrite(metadata: MetaData, old: str, new: str) -> None:
    """Change the text of every declaration that contains it."""
    for key, declared in metadata.info.items():
        metadata.info[key] = [tuple(statement.replace(old, new) for statement in source) for source in declared]
        assert metadata.info[key] != declared


def change_view(metadata: MetaData, name: str, *columns: object) -> Table:
    """Declare a view anew with more columns."""
    old = metadata.tables[name]
    metadata.remove(old)
    creator = old._creator_ddl
    query = creator.selectable.subquery("before")
    view = CreateView(
        select(*query.columns, *columns),
        old.name,
        metadata=metadata,
        schema=old.schema,
        materialized=creator.materialized,
    ).table
    view.comment = old.comment
    for column in old.columns:
        view.columns[column.name].comment = column.comment
    return view
