"""Lint revisions: run them on the scratch, weigh what they do there by the sizes of the live database."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from alembic.script import ScriptDirectory
from alembic.util import CommandError

from arc_halo.autogenerate.linting.effects import touched_tables
from arc_halo.autogenerate.linting.judging import Judge, Judgement, Limits
from arc_halo.autogenerate.linting.observing import Observation, Observer
from arc_halo.autogenerate.linting.scratch import furnish
from arc_halo.autogenerate.linting.sizes import Size, table_sizes
from arc_halo.autogenerate.linting.squawk import squawk_findings
from arc_halo.autogenerate.linting.statements import Statement, offline_statements
from arc_halo.errors import SchemaNotAtHead

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    import psycopg
    from alembic.config import Config
    from sqlalchemy import Connection

    from arc_halo.autogenerate.linting.snapshots import Snapshot


@dataclass(frozen=True)
class RevisionReport:
    """A revision with its statements as they were judged."""

    revision: str
    doc: str
    statements: list[Judgement]


@dataclass(frozen=True)
class Report:
    """What was linted, by a server of which version; ``live_version`` is that of the database it is meant for."""

    revisions: list[RevisionReport]
    server_version: int
    live_version: int
    dangers: int = field(init=False)

    def __post_init__(self) -> None:
        findings = [each for script in self.revisions for judged in script.statements for each in judged.findings]
        object.__setattr__(self, "dangers", sum(each.severity == "danger" for each in findings))


def lint(
    config: Config,
    live: Connection,
    scratch: Connection,
    *,
    revisions: str = "head",
    current: Sequence[str] = (),
    limits: Limits | None = None,
) -> Report:
    """Say what revisions would do to a database, without touching it.

    Parameters
    ----------
    config
        Alembic's; its ``env.py`` must have an offline mode.
    live
        The database that the revisions are for; only its catalogs are read.
    scratch
        An empty database, as `temporary_database` makes one, on a server of the same version.
    revisions
        ``0003:0005`` for what comes after 0003 up to 0005, or one revision. ``head`` is all that ``live`` has not yet.
    current
        The revisions that ``live`` is at.

    Raises
    ------
    SchemaNotAtHead
        There are no such revisions, or one before them cannot be written as SQL or run on an empty database.
    """
    limits = limits or Limits()
    scripts = ScriptDirectory.from_config(config)
    wanted = _wanted(scripts, revisions, current)
    connection = _driver(scratch)
    reported: list[RevisionReport] = []
    if wanted:
        observer = Observer(connection)
        furnish(connection, live)
        statements = offline_statements(config, "heads" if revisions == "head" else wanted[-1])
        observed = list(_observed(observer, statements, set(wanted)))
        names = _base_names([seen for _, seen in observed])
        sizes = _sizes(live, observed, names)
        by_revision = {key: list(group) for key, group in groupby(observed, lambda each: each[0])}
        for revision in wanted:
            seen = [each for _, each in by_revision.get(revision, [])]
            judgements = _judged(seen, sizes, limits)
            reported.append(RevisionReport(revision, scripts.get_revision(revision).doc, judgements))
    return Report(reported, connection.info.server_version, _driver(live).info.server_version)


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    driver = connection.connection.driver_connection
    assert driver is not None
    return driver  # type: ignore[no-any-return]


def _wanted(scripts: ScriptDirectory, revisions: str, current: Sequence[str]) -> list[str]:
    """The revisions asked for, in the order in which they are run."""
    first, colon, last = revisions.rpartition(":")
    try:
        if not colon and last not in {"head", "heads"}:
            return [script.revision for script in scripts.get_revisions(last) if script is not None]
        lower = (first or "base") if colon else (tuple(current) or "base")
        upper = last if last and colon else "heads"
        found = [script.revision for script in scripts.iterate_revisions(upper, lower)]
    except CommandError as error:
        raise SchemaNotAtHead(f"{revisions}: {error}") from error
    return found[::-1]


def _observed(
    observer: Observer, statements: Iterable[Statement], wanted: set[str]
) -> Iterator[tuple[str, Observation]]:
    """Run all statements, and observe those of the revisions that are wanted until one fails."""
    for is_wanted, group in groupby(statements, lambda each: each.revision in wanted):
        if not is_wanted:
            observer.run(group)
            continue
        for statement in group:
            for seen in observer.observe(statement):
                yield str(statement.revision), seen
                if seen.error is not None:
                    return


def _base_names(observed: Iterable[Observation]) -> dict[int, str]:
    """The first name of each relation: a later revision may give another, the live database has this one."""
    names: dict[int, str] = {}
    for seen in observed:
        for relation in seen.before.relations.values():
            names.setdefault(relation.oid, relation.name)
    return names


def _sizes(live: Connection, observed: Iterable[tuple[str, Observation]], names: Mapping[int, str]) -> dict[int, Size]:
    """Sizes of the tables that are touched, by their oid on the scratch."""
    touched = {table.oid for _, seen in observed for table in touched_tables(seen)}
    sizes = table_sizes(live, {names[oid] for oid in touched})
    return {oid: sizes[names[oid]] for oid in touched if names[oid] in sizes}


def _judged(observed: Sequence[Observation], sizes: Mapping[int, Size], limits: Limits) -> list[Judgement]:
    if not observed:
        return []
    first: Snapshot = observed[0].before
    judge = Judge(first.relations.keys(), sizes, limits)
    judgements = [judge.judge(seen) for seen in observed]
    external = squawk_findings([seen.statement for seen in observed])
    for judged, found in zip(judgements, external, strict=True):
        judged.findings.extend(found)
    return judgements
