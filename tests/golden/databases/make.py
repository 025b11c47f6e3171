"""Write the database of this release, once per release: ``python -m tests.golden.databases.make``.

``VERSION.sql.gz`` is a plain dump of the schema with rows in every table, in SQL that PostgreSQL 16 to 18 take from any
driver; ``VERSION.json`` says what must be in it however far it is upgraded. Those of earlier releases are never written
again.
"""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from ml_dtypes import bfloat16
from sqlalchemy import func, select, text

from arc_halo import __version__, connect, create_model, export_model, import_model
from arc_halo.codecs import CODECS, DELTAS
from arc_halo.database.embedded import EmbeddedServer
from arc_halo.database.migrate import current
from arc_halo.registry import quantize_model
from arc_halo.schema import Base, Chunk, Model
from tests.fixtures.models import llama, write_folder
from tests.fixtures.tensors import trained, weights
from tests.golden.databases import fusion, inference, training
from tests.golden.databases.rows import fill

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

HERE = Path(__file__).parent
# psql alone knows \restrict, PostgreSQL 16 does not know transaction_timeout.
NOT_EVERYWHERE = re.compile(r"^(\\(un)?restrict \w+|SET transaction_timeout = 0;)\n", re.MULTILINE)
# pg_dump writes the negative zero of a column without quotes: an integer, which has no sign.
NEGATIVE_ZERO = re.compile(r"(?<=, )-0(?=[,)])")
REFRESH = text("SELECT arc_halo.refresh_statistics()")


def main() -> None:
    """Make the database on a server of its own, and dump it."""
    with tempfile.TemporaryDirectory(prefix="arc-halo-release-", ignore_cleanup_errors=True) as folder:
        server = EmbeddedServer(Path(folder) / "home")
        url = server.acquire()
        try:
            with connect(url, migrate=True) as database:
                database.transaction(lambda session: _fill(session, folder))
                training.fill(database, Path(folder))
                fusion.fill(database)
                database.transaction(lambda session: session.execute(REFRESH))
                with database.session() as session:
                    expected = {"revision": current(url)[0], **_expected(session, folder)}
            dump = Path(folder) / "dump.sql"
            server.run_tool(
                *("pg_dump", "--schema=arc_halo", "--no-owner", "--no-privileges"),
                *("--rows-per-insert=100", f"--file={dump}"),
            )
        finally:
            server.close()
        sql = NEGATIVE_ZERO.sub("'-0'", NOT_EVERYWHERE.sub("", dump.read_text(encoding="utf-8")))
    (HERE / f"{__version__}.sql.gz").write_bytes(gzip.compress(sql.encode(), mtime=0))
    (HERE / f"{__version__}.json").write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")


def _fill(session: Session, folder: str) -> None:
    source = write_folder(llama(), Path(folder) / "model", shards=2)
    model = import_model(session, source, name="released", compression="dense")
    fill(session, model)
    inference.fill(session, model)
    _add_family(session)


def _add_family(session: Session) -> None:
    """A model, versions trained on from it under each policy that makes deltas, and a quantised one."""
    arrays = {"half": weights((64, 96), dtype=bfloat16), "whole": weights((64, 96), 1)}
    base = create_model(session, "tuned", {}, arrays)
    for steps, compression in enumerate(("fast", "balanced", "dense"), 1):
        tuned = {name: trained(array, steps) for name, array in arrays.items()}
        create_model(session, "tuned", {}, tuned, compression=compression, base=base)
    quantize_model(session, base, scheme="int8", include="whole")


def _expected(session: Session, folder: str) -> dict[str, object]:
    exported = export_model(session, "released@production", Path(folder) / "exported")
    tables = [table for table in Base.metadata.sorted_tables if not table.is_view]
    rows = {str(table): session.scalar(select(func.count()).select_from(table)) for table in tables}
    if empty := [name for name, count in rows.items() if not count]:
        raise LookupError(f"no rows in {', '.join(empty)}: add some in {HERE / 'rows.py'}")
    codecs = session.scalars(select(Chunk.codec).distinct().order_by(Chunk.codec)).all()
    if absent := {*CODECS, *DELTAS} - set(codecs):
        raise LookupError(f"no chunk by {', '.join(sorted(absent))}: add one in {HERE / 'make.py'}")
    models = session.scalars(select(Model).order_by(Model.name, Model.version))
    return {
        "files": {path.name: sha256(path.read_bytes()).hexdigest() for path in exported},
        "weights": {f"{each.name}@{each.version}": each.weights_digest.hex() for each in models},
        "codecs": codecs,
        "rows": rows,
        "training": training.expected(),
    }


if __name__ == "__main__":
    main()
