"""What a statement that was observed does to each table that was there before it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from arc_halo.autogenerate.linting.observing import rank

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arc_halo.autogenerate.linting.observing import Observation
    from arc_halo.autogenerate.linting.snapshots import Column, Snapshot

_VERIFYING: Final = re.compile(r'verifying table "(.+)"')
_VALIDATING: Final = re.compile(r'validating foreign key constraint "(.+)"')
_BUILDING: Final = re.compile(r'building index "(.+)" on table "(.+)" (?:serially|with request)')
_KEYS: Final = "pux"


@dataclass
class Touched:
    """One table under one statement.

    ``scans`` says what the table is read whole for: ``index``, ``key`` (the index of a constraint), ``foreign key``,
    ``check``, ``not null``, ``required`` (a new column without values) or ``partition``; ``renamed`` and ``dropped``
    are names of columns, or the table's own.
    """

    oid: int
    name: str
    lock: str | None = None
    is_rewritten: bool = False
    scans: set[str] = field(default_factory=set)
    renamed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    retyped: list[str] = field(default_factory=list)

    @property
    def is_read(self) -> bool:
        """Whether it takes longer the larger the table is."""
        return self.is_rewritten or bool(self.scans)


def touched_tables(seen: Observation) -> list[Touched]:
    """The tables, views and sequences that the statement locked or changed, by name."""
    tables = _Tables(seen.before)
    for oid, mode in seen.locks.items():
        relation = seen.before.relations.get(oid)
        # An index that nobody may look at keeps the table from being planned for; its weaker locks are its own.
        if relation is not None and (relation.kind not in "iI" or mode == "AccessExclusiveLock"):
            table = tables.of(oid)
            if rank(mode) > rank(table.lock):
                table.lock = mode
    _note_files(seen, tables)
    _note_messages(seen, tables)
    _note_relations(seen, tables)
    _note_columns(seen, tables)
    if not seen.is_atomic:
        for table in tables:
            table.lock = "AccessExclusiveLock" if table.is_rewritten else "ShareUpdateExclusiveLock"
    return sorted(tables, key=lambda table: table.name)


class _Tables:
    """The tables met so far; a partition is met as the table that it is of."""

    def __init__(self, before: Snapshot) -> None:
        self._before = before
        self._met: dict[int, Touched] = {}

    def __iter__(self) -> Iterator[Touched]:
        return iter(self._met.values())

    def of(self, oid: int) -> Touched:
        root = self._before.relations[oid].table
        return self._met.setdefault(root, Touched(root, self._before.relations[root].name))


def _note_files(seen: Observation, tables: _Tables) -> None:
    """A relation whose file is another was written anew."""
    for oid, before in seen.before.relations.items():
        after = seen.after.relations.get(oid)
        if after is None or after.file == before.file:
            continue
        if before.kind in "rm":
            tables.of(oid).is_rewritten = True
        elif before.kind == "i":
            tables.of(oid).scans.add("index")


def _note_messages(seen: Observation, tables: _Tables) -> None:
    new = [each for oid, each in seen.after.constraints.items() if each.is_valid and not _was_valid(seen, oid)]
    for message in seen.messages:
        if matched := _VERIFYING.fullmatch(message):
            for relation in seen.before.named(matched[1], "rp"):
                if relation.oid in seen.locks:
                    tables.of(relation.oid).scans |= _verified(seen, relation.oid)
        elif matched := _VALIDATING.fullmatch(message):
            for each in new:
                if each.name == matched[1] and each.table in seen.before.relations:
                    tables.of(each.table).scans.add("foreign key")
        elif matched := _BUILDING.match(message):
            is_key = any(each.name == matched[1] and each.kind in _KEYS for each in new)
            for relation in seen.before.named(matched[2], "rpm"):
                if _has_new_index(seen, relation.oid, matched[1]):
                    tables.of(relation.oid).scans.add("key" if is_key else "index")


def _was_valid(seen: Observation, constraint: int) -> bool:
    before = seen.before.constraints.get(constraint)
    return before is not None and before.is_valid


def _verified(seen: Observation, oid: int) -> set[str]:
    """What the rows of the table were verified for."""
    found = set()
    for each in seen.after.constraints.values():
        if each.table == oid and each.kind == "c" and each.is_valid and not _was_valid(seen, each.oid):
            found.add("check")
    if _gained_not_null(seen, oid):
        added = any(each.table == oid and each.is_not_null for each in _new_columns(seen))
        found.add("required" if added else "not null")
    return found or {"partition"}


def _new_columns(seen: Observation) -> Iterator[Column]:
    return (each for place, each in seen.after.columns.items() if place not in seen.before.columns)


def _gained_not_null(seen: Observation, oid: int) -> bool:
    """Whether a column may be null no longer; PostgreSQL 18 has constraints for that, NOT VALID ones, too."""
    if any(each.table == oid and each.is_not_null for each in _new_columns(seen)):
        return True
    return any(
        each.table == oid and each.kind == "n" and each.is_valid and not _was_valid(seen, each.oid)
        for each in seen.after.constraints.values()
    ) or any(
        before.table == oid and not before.is_not_null and seen.after.columns.get(place, before).is_not_null
        for place, before in seen.before.columns.items()
    )


def _has_new_index(seen: Observation, table: int, name: str) -> bool:
    known = {each.relations[table].table for each in (seen.before, seen.after) if table in each.relations}
    return any(
        each.bare_name == name and each.kind in "iI" and each.table in known and oid not in seen.before.relations
        for oid, each in seen.after.relations.items()
    )


def _note_relations(seen: Observation, tables: _Tables) -> None:
    for oid, before in seen.before.relations.items():
        after = seen.after.relations.get(oid)
        if before.kind in "iI":
            if after is None and before.table in seen.after.relations and not seen.is_atomic:
                tables.of(oid)  # DROP INDEX CONCURRENTLY
        elif after is None:
            if before.kind in "rpm":
                tables.of(oid).dropped.append(before.name)
        elif after.name != before.name:
            tables.of(oid).renamed.append(before.name)
        elif after.table != before.table:
            tables.of(oid)  # attached or detached


def _note_columns(seen: Observation, tables: _Tables) -> None:
    before, after = seen.before.columns, seen.after.columns
    for place in before.keys() - after.keys():
        if place[0] in seen.after.relations:
            tables.of(place[0]).dropped.append(before[place].name)
    for place in after.keys() - before.keys():
        if place[0] in seen.before.relations:
            tables.of(place[0]).added.append(after[place].name)
    for place in before.keys() & after.keys():
        if before[place].name != after[place].name:
            tables.of(place[0]).renamed.append(before[place].name)
        if before[place].type != after[place].type:
            tables.of(place[0]).retyped.append(before[place].name)
