"""Extensions that a schema relies on: installed if they are missing, moved, updated, and never dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import text

from arc_halo.autogenerate.fingerprint import Thing
from arc_halo.autogenerate.savepoints import run
from arc_halo.autogenerate.schemas import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Connection, MetaData

_INFO: Final = "arc_halo.autogenerate.extensions"
_STANDING: Final = """
SELECT e.extname, n.nspname, e.extversion
  FROM pg_catalog.pg_extension AS e JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
 WHERE e.extname = ANY (:names)"""


class Extension(NamedTuple):
    """An extension, with the schema and the version that it has or is to have; None for any."""

    name: str
    schema: str | None
    version: str | None


class Change(NamedTuple):
    """What is done to an extension, and what takes it back; None where it stays."""

    name: str
    up: str
    down: str | None


def declare_extension(metadata: MetaData, name: str, *, schema: str | None = None, version: str | None = None) -> None:
    """Declare an extension that the schemas rely on.

    It is installed before everything else where it is missing. It belongs to the whole database, so no revision drops
    it, and a downgrade leaves it where it is.

    Parameters
    ----------
    schema
        Where its objects are to be; left out, it is installed in ``public``, and stays where it is.
    version
        Which one it is to have; left out, the server's default when it installs it, and it stays as it is.

    Examples
    --------
    >>> from sqlalchemy import MetaData
    >>> metadata = MetaData(schema="app")
    >>> declare_extension(metadata, "pg_trgm", schema="public")
    """
    metadata.info.setdefault(_INFO, {})[name] = Extension(name, schema, version)


def declared_extensions(metadata: MetaData) -> Mapping[str, Extension]:
    """Those of a metadata, by name."""
    found: Mapping[str, Extension] = metadata.info.get(_INFO, {})
    return found


def standing_extensions(connection: Connection, metadata: MetaData) -> dict[str, Extension]:
    """Of those that a metadata declares, the ones that are installed, as they are."""
    names = list(declared_extensions(metadata))
    rows = connection.execute(text(_STANDING), {"names": names}) if names else ()
    return {row[0]: Extension(*row) for row in rows}


def install_extensions(connection: Connection, metadata: MetaData) -> None:
    """Have all of them as they are declared."""
    run(connection, [each.up for each in extension_changes(metadata, standing_extensions(connection, metadata))])


def extension_changes(metadata: MetaData, standing: Mapping[str, Extension]) -> Iterator[Change]:
    """What makes the extensions as they are declared."""
    for name, wanted in declared_extensions(metadata).items():
        found = standing.get(name)
        if found is None:
            yield Change(name, _creation(wanted), None)
            continue
        if wanted.schema not in (None, found.schema):
            yield Change(name, _moved(name, wanted.schema), _moved(name, found.schema))
        if wanted.version not in (None, found.version):
            yield Change(name, _updated(name, wanted.version), _updated(name, found.version))


def extension_things(metadata: MetaData, extensions: Mapping[str, Extension]) -> list[Thing]:
    """Extensions as things of a schema, by what a metadata says of them."""
    described = declared_extensions(metadata)
    return [
        Thing("extension", name, None, _placed(_as_far_as_said(each, described[name])))
        for name, each in sorted(extensions.items())
    ]


def _as_far_as_said(extension: Extension, declared: Extension) -> Extension:
    return Extension(
        extension.name,
        declared.schema and extension.schema,
        declared.version and extension.version,
    )


def _creation(extension: Extension) -> str:
    # Left out, it would be the first schema of the search path, which is pg_catalog in a migration.
    placed = _placed(extension._replace(schema=extension.schema or "public"))
    return f"CREATE EXTENSION IF NOT EXISTS {quoted(extension.name)}{placed}"


def _placed(extension: Extension) -> str:
    schema = "" if extension.schema is None else f" WITH SCHEMA {quoted(extension.schema)}"
    return schema if extension.version is None else f"{schema} VERSION {_literal(extension.version)}"


def _moved(name: str, schema: str | None) -> str:
    return f"ALTER EXTENSION {quoted(name)} SET SCHEMA {quoted(str(schema))}"


def _updated(name: str, version: str | None) -> str:
    return f"ALTER EXTENSION {quoted(name)} UPDATE TO {_literal(str(version))}"


def _literal(said: str) -> str:
    return "'" + said.replace("'", "''") + "'"
