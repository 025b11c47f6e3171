"""Renames of what stands, and how they are taken back in what is built, so that both have the same names.

The schema as it stands is not touched: a rename would lock its users out. What is declared is built under its new names
and renamed back, and PostgreSQL then says all of it with the old ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from arc_halo.autogenerate.catalog import columns, read
from arc_halo.autogenerate.objects import Key
from arc_halo.autogenerate.operations import SqlOperation
from arc_halo.autogenerate.savepoints import succeeds
from arc_halo.autogenerate.schemas import Relation, quoted
from arc_halo.autogenerate.tables import CONSTRAINTS
from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from arc_halo.autogenerate.catalog import Found
    from arc_halo.autogenerate.schemas import Schemas

Place = tuple[Relation, str]
Value = TypeVar("Value")

VIEWS = {"view", "matview"}
PARTS = {"index", *CONSTRAINTS}
_RELATIONS = {"table", *VIEWS}
_OF_RELATIONS_NAMES = {*_RELATIONS, "index", "sequence", "primary key", "constraint", "exclusion"}


class Rename(NamedTuple):
    """One object, part, table, column or sequence under a new name.

    ``relation`` is the table or view that it belongs to, or is, by its new name, None of functions; ``key`` is that of
    the new name, None of tables, columns and sequences.
    """

    kind: str
    relation: Relation | None
    new: str
    old: str
    key: Key | None = None


@dataclass(frozen=True)
class Names:
    """What has which name now, and how it is renamed; without renames everything is called what it is called."""

    operations: Sequence[tuple[Rename, SqlOperation]] = ()
    keys: Mapping[Key, Key] = field(default_factory=dict)  # by the old ones, of all that is declared
    places: Mapping[Place, Place] = field(default_factory=dict)
    relations: Mapping[Relation, Relation] = field(default_factory=dict)

    def former_key(self, key: Key) -> Key:
        """What was called so before."""
        return next((old for old, new in self.keys.items() if new == key), key)

    def former_relation(self, relation: Relation) -> Relation:
        """What the table or view was called before."""
        return next((old for old, new in self.relations.items() if new == relation), relation)

    def relation(self, old: Relation | None) -> Relation | None:
        """What a table or view is called now."""
        return None if old is None else self.relations.get(old, old)

    def of_columns(self, by_place: Mapping[Place, Value]) -> dict[Place, Value]:
        """The same by the new names of table and column."""
        return {
            self.places.get((table, column), (self.relations.get(table, table), column)): value
            for (table, column), value in by_place.items()
        }

    def of_objects(self, current: Mapping[Key, Found], wanted: Mapping[Key, Found]) -> dict[Key, Found]:
        """What stands, by its new keys and with the new names of where it stands; its statements keep the old ones."""
        if not self.operations:
            return dict(current)
        renamed: dict[Key, Found] = {}
        for old, found in current.items():
            key = self.keys.get(old)
            if key is not None:
                renamed[key] = replace(found, relation=wanted[key].relation, member=wanted[key].member)
                continue
            key = Key(old.kind, f"{old.name} as it was") if old in wanted else old
            member = found.member
            if found.address.column and found.relation is not None:
                _, member = self.places.get((found.relation, str(member)), (None, member))
            renamed[key] = replace(found, relation=self.relation(found.relation), member=member)
        return renamed


def names(
    connection: Connection,
    schemas: Schemas,
    renames: Sequence[Rename],
    wanted: Mapping[Key, Found],
) -> tuple[Names, dict[Key, Found]]:
    """Take the renames back in what is built; return the names, and what is wanted as it reads then."""
    if not renames:
        return Names(), dict(wanted)
    new_columns = {address: place for place, address in columns(connection, schemas).items()}
    operations = take_back(connection, schemas, renames)
    before = read(connection, schemas)
    new_keys = {(key.kind, found.address): key for key, found in wanted.items()}
    keys = {old: new_keys[old.kind, found.address] for old, found in before.items()}
    places = {place: new_columns[address] for place, address in columns(connection, schemas).items()}
    relations = {table: new_table for (table, _), (new_table, _) in places.items() if table != new_table}
    relations |= {
        Relation(now.schema, each.old): now for each in renames if each.kind in VIEWS and (now := each.relation)
    }
    return Names(operations, keys, places, relations), {keys[old]: found for old, found in before.items()}


def take_back(connection: Connection, schemas: Schemas, renames: Sequence[Rename]) -> list[tuple[Rename, SqlOperation]]:
    """Give what is built its former names, and return the operations of the revision, in order.

    Raises
    ------
    ConfigurationError
        If something else has the former name.
    """
    operations: list[tuple[Rename, SqlOperation]] = []
    of_relations = [each for each in renames if each.kind in _RELATIONS]
    of_columns = [each for each in renames if each.kind == "column"]
    others = [each for each in renames if each not in of_relations and each not in of_columns]
    for phase in (others, of_columns, of_relations):
        found = read(connection, schemas) if phase else {}
        done = _in_turn(connection, [(each, _down(each, found)) for each in phase])
        now = {each.address: each for each in read(connection, schemas).values()} if phase else {}
        for rename, down in done:
            key = rename.key or Key(rename.kind, f"{rename.relation}.{rename.new}")
            up = _up(rename, now[found[rename.key].address] if rename.key else None)
            operations.append((rename, SqlOperation("rename", key, (up,), (down,))))
    return operations[::-1]


def taken_by_others(connection: Connection, schemas: Schemas, renames: Sequence[Rename]) -> list[Rename]:
    """Take back what can be; return the renames whose former names something else has."""
    found = read(connection, schemas)
    waiting = [(each, _down(each, found)) for each in renames]
    while True:
        left = [each for each in waiting if not succeeds(connection, (each[1],))]
        if len(left) == len(waiting):
            return [each for each, _ in left]
        waiting = left


def _in_turn(connection: Connection, waiting: list[tuple[Rename, str]]) -> list[tuple[Rename, str]]:
    """Run statements in an order in which each name is free when it is taken."""
    done: list[tuple[Rename, str]] = []
    while waiting:
        now_done = [each for each in waiting if succeeds(connection, (each[1],))]
        done += now_done
        waiting = [each for each in waiting if each not in now_done]
        if waiting and not now_done and not _put_aside_namesakes(connection, waiting):
            rename = waiting[0][0]
            raise ConfigurationError(
                f"{rename.kind} {rename.new} cannot be renamed from {rename.old}: that name is declared for another."
                " Write two revisions, the first without the other."
            )
    return done


def _put_aside_namesakes(connection: Connection, waiting: Sequence[tuple[Rename, str]]) -> bool:
    """Rename what is new and has the former name of a relation; nothing that stands is compared with it."""
    statements = [
        f"ALTER TABLE {_qualified(each.relation.schema, each.old)} RENAME TO {quoted(f'namesake of {each.new}')}"
        for each, _ in waiting
        if each.kind in _OF_RELATIONS_NAMES and each.relation is not None
    ]
    aside = [succeeds(connection, (statement,)) for statement in statements]
    return any(aside)


def _down(rename: Rename, found: Mapping[Key, Found]) -> str:
    if rename.key is not None:
        return _of_removal(rename.kind, found[rename.key].removal, rename.old)
    return _plain(rename, rename.new, rename.old)


def _up(rename: Rename, former: Found | None) -> str:
    if former is not None:
        return _of_removal(rename.kind, former.removal, rename.new)
    return _plain(rename, rename.old, rename.new)


def _of_removal(kind: str, removal: str, name: str) -> str:
    """The statement that renames what another statement drops."""
    if kind in CONSTRAINTS:
        return f"{removal.replace(' DROP CONSTRAINT ', ' RENAME CONSTRAINT ', 1)} TO {quoted(name)}"
    return f"ALTER{removal.removeprefix('DROP')} RENAME TO {quoted(name)}"


def _plain(rename: Rename, before: str, after: str) -> str:
    assert rename.relation is not None
    if rename.kind == "column":
        return f"ALTER TABLE {_qualified(*rename.relation)} RENAME COLUMN {quoted(before)} TO {quoted(after)}"
    return f"ALTER {rename.kind.upper()} {_qualified(rename.relation.schema, before)} RENAME TO {quoted(after)}"


def _qualified(schema: str, name: str) -> str:
    return f"{quoted(schema)}.{quoted(name)}"
