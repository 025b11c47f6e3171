"""One library in a process of its own: each case through the harness, or the time of autogenerate; JSON on stdout."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import autogenerate_libraries
from alembic import command
from autogenerate_cases import declared, large, new_metadata, tables_only
from sqlalchemy import NullPool, create_engine

from arc_halo.testing.migrations import ENVIRONMENT, Project, assert_round_trip

if TYPE_CHECKING:
    from sqlalchemy import MetaData

_OURS = "from arc_halo.autogenerate.scope import scope"
_STEPS = (
    "first revision",
    "change",
    "downgrade",
    "removal",
    "downgrade of the removal",
    "downgrade of the first revision",
    "downgrade to base",
    "offline SQL",
)


class Watched(Project):
    """A project that knows how far it came.

    Libraries other than ours get PostgreSQL's own search path: one makes views without naming a schema, to read their
    text. ``pg_catalog`` first, which ours wants for tables that name no schema, would forbid it.
    """

    steps = _STEPS
    came = -1

    def __init__(self, folder: Path, url: str, library: str) -> None:
        super().__init__(folder, url, "app", environment=environment(library))
        if library != "arc_halo":
            self.config.attributes["engine"] = create_engine(self.engine.url, poolclass=NullPool)

    @property
    def step(self) -> str:
        """The step that runs or has run."""
        return self.steps[max(self.came, 0)]

    def migrate(self, metadata: MetaData) -> str:
        """The next step."""
        self.came += 1
        return super().migrate(metadata)

    def downgrade(self, revision: str = "-1") -> None:
        """The next step."""
        self.came += 1
        super().downgrade(revision)

    def sql(self, revisions: str) -> str:
        """The last step."""
        self.came = len(self.steps) - 1
        return super().sql(revisions)


def environment(library: str) -> str:
    """An ``env.py`` that configures what the library wants."""
    return ENVIRONMENT.replace(_OURS, f"from autogenerate_libraries import {library} as scope")


def try_case(library: str, case: str, url: str, *, standing: bool) -> str:
    """``yes``, ``-`` if the library does not offer it, else the step that failed."""
    before, after = (declared(case, changed=changed) for changed in (False, True))
    start, rest = (tables_only(before), tables_only(after)) if standing else (None, new_metadata())
    with tempfile.TemporaryDirectory() as folder, Watched(Path(folder) / "project", url, library) as project:
        if standing:
            project.steps = ("tables", *_STEPS)
        try:
            assert_round_trip(project, before, after, rest=rest, start=start)
        except autogenerate_libraries.NotOfferedError:
            return "-"
        except Exception as error:  # noqa: BLE001  (whatever a library raises is a result)
            print(f"{library}, {case}, {project.step}: {type(error).__name__}: {error}", file=sys.stderr)
            return project.step
    return "yes"


def seconds(library: str, url: str, counts: list[int], rounds: int) -> list[float]:
    """Seconds of each autogenerate on a large database at head."""
    metadata = large(*counts)
    taken = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Project(Path(folder) / "project", url, "app", environment=environment(library)) as project,
    ):
        project.use(metadata)
        for _ in range(rounds):
            began = time.perf_counter()
            command.check(project.config)
            taken.append(time.perf_counter() - began)
    return taken


def main() -> None:
    """Read what to do from the command line, print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library")
    parser.add_argument("work", type=json.loads)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # what libraries warn of is theirs
    work: dict[str, Any] = options.work
    if "counts" in work:
        print(json.dumps(seconds(options.library, work["url"], work["counts"], work["rounds"])))
    else:
        standing = work["standing"]
        came = {case: try_case(options.library, case, url, standing=standing) for case, url in work["urls"].items()}
        print(json.dumps(came))


if __name__ == "__main__":
    main()
