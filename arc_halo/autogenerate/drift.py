"""Drift: what stands in a database beside what is declared, or beside another database."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import ndiff
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

from arc_halo.autogenerate.build import create_all
from arc_halo.autogenerate.catalog import read
from arc_halo.autogenerate.extensions import extension_things, standing_extensions
from arc_halo.autogenerate.fingerprint import VERSION_TABLE, Thing, things
from arc_halo.autogenerate.objects import Key
from arc_halo.autogenerate.others import others
from arc_halo.autogenerate.privileges import read_privileges
from arc_halo.autogenerate.savepoints import put_aside, rolled_back, succeeds
from arc_halo.autogenerate.schemas import declared_schemas

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from sqlalchemy import Connection, MetaData

    from arc_halo.autogenerate.schemas import Schemas


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that two schemas do not have alike.

    Attributes
    ----------
    kind, name
        What and which, the name with its schema: ``column``, ``arc_halo.models.name``.
    change
        ``missing`` where only the first has it, ``extra`` where only the second does, else ``changed``.
    first, second
        Catalog text, None where it is not there.
    """

    kind: str
    name: str
    change: Literal["missing", "extra", "changed"]
    first: str | None
    second: str | None

    @property
    def lines(self) -> list[str]:
        """The texts beside each other, by lines: ``- `` of the first, ``+ `` of the second, else of both."""
        first, second = ([] if each is None else each.splitlines() for each in (self.first, self.second))
        return [line for line in ndiff(first, second) if not line.startswith("? ")]


def declared_things(connection: Connection, metadata: MetaData) -> list[Thing]:
    """The things of schemas that a metadata declares, as this server describes them; extensions are none of a schema's.

    They are built in a savepoint, beside the schemas of those names, and taken back: no table is locked, nothing stays.

    Raises
    ------
    ConfigurationError
        A declaration creates nothing, or the metadata has no schema.
    sqlalchemy.exc.DBAPIError
        PostgreSQL refuses a declaration.
    """
    with _declared(connection, metadata) as schemas:
        return _compared(_things(connection, metadata, schemas, declared=True))


def standing_things(connection: Connection, metadata: MetaData) -> list[Thing]:
    """The things of the metadata's schemas as they stand, with the privileges and owners that it decides."""
    return _compared(_things(connection, metadata, declared_schemas(metadata), declared=False))


def differences_from_declared(connection: Connection, metadata: MetaData) -> list[Difference]:
    """What differs between what ``metadata`` declares and what stands; nothing is locked, nothing stays.

    An object whose text is only what PostgreSQL makes of its own text, as in a database that was restored from a dump,
    is no other.

    Raises
    ------
    ConfigurationError
        A declaration creates nothing, or the metadata has no schema.
    sqlalchemy.exc.DBAPIError
        PostgreSQL refuses a declaration.
    """
    standing = _things(connection, metadata, declared_schemas(metadata), declared=False)
    theirs = _theirs(connection, metadata, standing)
    standing += extension_things(metadata, standing_extensions(connection, metadata))
    with _declared(connection, metadata) as schemas:
        declared = _things(connection, metadata, schemas, declared=True)
        declared += extension_things(metadata, standing_extensions(connection, metadata))
        ours = {(each.kind, each.name) for each in declared}
        standing = [each for each in standing if each not in theirs or (each.kind, each.name) in ours]
        owned = {each.name for each in (*declared, *standing) if each.kind == "grant" and not each.text}
        found = compare_things(_compared(declared, owned), _compared(standing, owned))
        return [each for each in found if each.change != "changed" or not _is_parsed_twice(connection, schemas, each)]


def _theirs(connection: Connection, metadata: MetaData, described: Iterable[Thing]) -> set[Thing]:
    """What is to be left alone unless it is declared."""
    of_others = others(connection, metadata)
    found = read(connection, declared_schemas(metadata)) | read_privileges(connection, metadata, declared=False)
    theirs = {key for key, each in found.items() if of_others.own_object(key, each)}
    return {each for each in described if (each.kind, each.name) in theirs or of_others.own(each.name, each.relation)}


def _things(connection: Connection, metadata: MetaData, schemas: Schemas, *, declared: bool) -> list[Thing]:
    held = read_privileges(connection, metadata, declared=declared)
    return [
        *things(connection, *schemas),
        *(
            Thing(key.kind, key.name, found.relation, "; ".join(found.definition))
            for key, found in held.items()
            if found.relation != (schemas[0], VERSION_TABLE)
        ),
    ]


def _compared(described: Iterable[Thing], owned: Container[str] = ()) -> list[Thing]:
    """All but the privileges that a role has as the owner, here or on the other side."""
    return [each for each in described if each.kind != "grant" or (each.text and each.name not in owned)]


@contextmanager
def _declared(connection: Connection, metadata: MetaData) -> Iterator[Schemas]:
    """What is declared, built under the schemas' names while the real ones are set aside."""
    schemas = declared_schemas(metadata)
    with rolled_back(connection):
        put_aside(connection, schemas)
        create_all(connection, metadata)
        yield schemas


def _is_parsed_twice(connection: Connection, schemas: Schemas, difference: Difference) -> bool:
    """Whether the declared object, which stands here, has the other text once it is made from its own."""
    key = Key(difference.kind, difference.name)
    built = read(connection, schemas).get(key)
    if built is None or built.is_part:
        return False
    with rolled_back(connection):
        if not succeeds(connection, (f"{built.removal} CASCADE", *built.statements)):
            return False
        again = read(connection, schemas).get(key)
        return again is not None and "; ".join(again.statements) == difference.second


def compare_things(first: Iterable[Thing], second: Iterable[Thing]) -> list[Difference]:
    """What differs, sorted by kind and name; empty where both describe the same."""
    sides = [_by_key(each) for each in (first, second)]
    found: list[Difference] = []
    for key in sorted(sides[0].keys() | sides[1].keys()):
        before, after = (side.get(key) for side in sides)
        if before != after:
            change: Literal["missing", "extra", "changed"] = "changed"
            if before is None or after is None:
                change = "extra" if before is None else "missing"
            found.append(Difference(*key, change, before, after))
    return found


def digest(described: Iterable[Thing]) -> str:
    """64 hexadecimal digits, equal for two schemas that hold the same things (SHA-256 of the sorted lines)."""
    hasher = sha256()
    for line in sorted(each.line for each in described):
        hasher.update(line.encode() + b"\0")
    return hasher.hexdigest()


def _by_key(described: Iterable[Thing]) -> dict[Key, str]:
    texts: dict[Key, list[str]] = defaultdict(list)
    for each in described:
        texts[Key(each.kind, each.name)].append(each.text)
    return {key: _joined(found) for key, found in texts.items()}


def _joined(found: Sequence[str]) -> str:
    return "\n".join(sorted(found))
