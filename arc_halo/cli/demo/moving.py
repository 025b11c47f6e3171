"""A model into the database and out of it."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from arc_halo.cli.demo.step import step
from arc_halo.cli.description import describe
from arc_halo.cli.output import count, print_table, say, shown, size
from arc_halo.cli.progress import progress_bars
from arc_halo.errors import DigestMismatch

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.orm import Session

    from arc_halo.cli.invocation import Invocation
    from arc_halo.database import Database
    from arc_halo.schema import Model

_CONTENTS: Final = """
SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
       count(*) FILTER (WHERE relkind IN ('r', 'p') AND NOT relispartition),
       count(*) FILTER (WHERE relkind IN ('v', 'm'))
  FROM pg_class WHERE relnamespace = 'arc_halo'::regnamespace
"""


def open_database(invocation: Invocation) -> Database:
    """The database, and what is in it of ours."""
    from sqlalchemy import text

    from arc_halo.database.migrate import heads

    with step(
        "1  A database",
        "No server to install: without a URL, PostgreSQL starts on this machine and brings its schema up to date.",
    ):
        database = invocation.connect()
        with database.engine.connect() as connection:
            server, pgvector, tables, views = connection.execute(text(_CONTENTS)).one()
        say(
            f"PostgreSQL {server}, pgvector {pgvector}, {'embedded' if database.is_embedded else database.url}; "
            f"schema {', '.join(heads())}: {count(tables, 'table')}, {count(views, 'view')}"
        )
    return database


def import_input(database: Database, path: Path, name: str) -> Model:
    """Import, and what it took."""
    from arc_halo.registry import find_model, import_model

    with step(
        "2  A model goes in",
        "Tensors are cut into chunks named by their digests, compressed without loss, each stored once. It is one "
        "transaction: a model is there as a whole, or not at all.",
    ):
        say(f"from {path}")
        with progress_bars(silent=False) as progress:
            model = database.transaction(lambda session: import_model(session, path, name=name, progress=progress))
        with database.session() as session:
            described = describe(session, find_model(session, model.id))
        say(
            (f"{shown(model.name)}@{shown(model.version)}", "bold"),
            f": {count(described['tensor_count'], 'tensor')}, {size(described['raw_nbytes'])}; stored as "
            f"{count(described['chunk_count'], 'chunk')}, {size(described['stored_nbytes'])}",
        )
        if described["shared_nbytes"]:
            say(f"{size(described['shared_nbytes'])} of that were here already and are not stored again")
    return model


def export(session: Session, model: Model, source: Path, folder: Path) -> None:
    """Export, and digests of every file before and after."""
    from arc_halo.formats.hf import open_model
    from arc_halo.registry import export_model

    with step("7  It comes out", "Every file is the one that went in, byte for byte."):
        with progress_bars(silent=False) as progress:
            export_model(session, model, folder, progress=progress)
        with open_model(source) as opened:
            sources = {file.name: opened.path / file.name for file in opened.files}
        digests = {name: (_sha256(path), _sha256(folder / name)) for name, path in sources.items()}
        rows = [
            (name, f"{before[:12]}...", f"{after[:12]}...", "equal" if before == after else "DIFFERENT")
            for name, (before, after) in digests.items()
        ]
        print_table(["file", "sha256 going in", "sha256 coming out", ""], rows)
        if different := [name for name, (before, after) in digests.items() if before != after]:
            raise DigestMismatch(f"exported files differ from those imported: {', '.join(different)}; report this")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
