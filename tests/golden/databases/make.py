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

from sqlalchemy import func, select, text

from arc_halo import __version__, connect, export_model, import_model
from arc_halo.database.embedded import EmbeddedServer
from arc_halo.database.migrate import current
from arc_halo.schema import Base
from tests.fixtures.models import llama, write_folder
from tests.golden.databases.rows import fill

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

HERE = Path(__file__).parent
# psql alone knows \restrict, PostgreSQL 16 does not know transaction_timeout.
NOT_EVERYWHERE = re.compile(r"^(\\(un)?restrict \w+|SET transaction_timeout = 0;)\n", re.MULTILINE)


def main() -> None:
    """Make the database on a server of its own, and dump it."""
    with tempfile.TemporaryDirectory(prefix="arc-halo-release-", ignore_cleanup_errors=True) as folder:
        server = EmbeddedServer(Path(folder) / "home")
        url = server.acquire()
        try:
            with connect(url, migrate=True) as database:
                expected = {"revision": current(url)[0], **database.transaction(lambda session: _fill(session, folder))}
            dump = Path(folder) / "dump.sql"
            server.run_tool(
                *("pg_dump", "--schema=arc_halo", "--no-owner", "--no-privileges"),
                *("--rows-per-insert=100", f"--file={dump}"),
            )
        finally:
            server.close()
        sql = NOT_EVERYWHERE.sub("", dump.read_text(encoding="utf-8"))
    (HERE / f"{__version__}.sql.gz").write_bytes(gzip.compress(sql.encode(), mtime=0))
    (HERE / f"{__version__}.json").write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")


def _fill(session: Session, folder: str) -> dict[str, object]:
    source = write_folder(llama(), Path(folder) / "model", shards=2)
    model = import_model(session, source, name="released", compression="dense")
    fill(session, model)
    session.flush()
    session.execute(text("SELECT arc_halo.refresh_statistics()"))
    exported = export_model(session, model, Path(folder) / "exported")
    tables = [table for table in Base.metadata.sorted_tables if not table.is_view]
    rows = {str(table): session.scalar(select(func.count()).select_from(table)) for table in tables}
    if empty := [name for name, count in rows.items() if not count]:
        raise LookupError(f"no rows in {', '.join(empty)}: add some in {HERE / 'rows.py'}")
    return {"files": {path.name: sha256(path.read_bytes()).hexdigest() for path in exported}, "rows": rows}


if __name__ == "__main__":
    main()
