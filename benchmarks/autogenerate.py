"""Autogenerate beside other libraries, change by change, and its time on a large database beside plain Alembic's.

Each change goes through `assert_round_trip` of `arc_halo.testing.migrations`, from nothing and with the tables
standing, for every library that is installed, in a process of the library's own. Needs the extra `benchmark` for them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autogenerate_cases import CASES, large
from autogenerate_libraries import LIBRARIES
from autogenerate_report import BEGIN, END, WAYS, Results, goals, to_markdown
from command import command_line, publish, scratch
from machine import describe_machine
from server import Server

from arc_halo.autogenerate import create_all
from arc_halo.database.migrate import migration_engine

if TYPE_CHECKING:
    from contextlib import ExitStack

_RUN = Path(__file__).with_name("autogenerate_run.py")
_COUNTS = {
    "tiny": {"tables": 10, "views": 6, "functions": 4},
    "full": {"tables": 500, "views": 300, "functions": 200},
}
_CASES = {"tiny": 3, "full": len(CASES)}
_ROUNDS = {"tiny": 1, "full": 5}


def _run(library: str, work: dict[str, Any]) -> Any:
    done = subprocess.run(
        [sys.executable, _RUN, library, json.dumps(work)], check=True, stdout=subprocess.PIPE, text=True
    )
    print(f"measured: {library}", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])  # above it is what Alembic says


def _try_cases(server: Server, library: str, cases: list[str], *, standing: bool) -> dict[str, str]:
    urls = {
        case: server.create_empty(f"{library}_{standing:d}_{number}").render_as_string(hide_password=False)
        for number, case in enumerate(cases)
    }
    return _run(library, {"urls": urls, "standing": standing})


def _time(server: Server, counts: dict[str, int], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of ours and of plain Alembic, on one database."""
    url = server.create_empty("large")
    engine = migration_engine(url)
    with engine.begin() as connection:
        create_all(connection, large(**counts))
    engine.dispose()
    server.vacuum()
    work = {"url": url.render_as_string(hide_password=False), "counts": list(counts.values()), "rounds": rounds}
    return _run("arc_halo", work), _run("alembic", work)


def run(size: str, folder: Path, resources: ExitStack, *, timed: bool) -> Results:
    """Try everything, and time it."""
    server = Server(folder / "home", resources)
    there = {name: library for name, library in LIBRARIES.items() if find_spec(library.__name__)}
    machine = describe_machine(server.connection, folder, ["sqlalchemy", "alembic", *list(there)[1:]])
    counts = _COUNTS[size]
    ours, plain = _time(server, counts, _ROUNDS[size]) if timed else ([], [])
    cases = list(CASES)[: _CASES[size]]
    tried = {
        way: {name: _try_cases(server, library.__name__, cases, standing=standing) for name, library in there.items()}
        for way, standing in WAYS.items()
    }
    return Results(machine, tried, counts, ours, plain)


def main() -> None:
    """Run, print, and leave nothing behind."""
    parser = command_line(__doc__, "few cases and a small database, to see that it runs")
    parser.add_argument("--untimed", action="store_true", help="cases only: times want a quiet machine")
    options = parser.parse_args()
    with scratch() as (folder, resources):
        results = run(options.size, folder, resources, timed=not options.untimed)
    reached = goals(results)
    publish(options, asdict(results), reached, to_markdown(results, reached), (BEGIN, END))


if __name__ == "__main__":
    main()
