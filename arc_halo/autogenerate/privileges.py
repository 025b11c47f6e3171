"""Privileges and owners, compared only where somebody says that the declarations decide them."""

from __future__ import annotations

from collections import defaultdict
from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from arc_halo.autogenerate.catalog import Address, Found, qualified
from arc_halo.autogenerate.objects import Key, declared_privileges
from arc_halo.autogenerate.savepoints import run
from arc_halo.autogenerate.schemas import Relation, declared_schemas
from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from sqlalchemy import Connection, MetaData, Row

    from arc_halo.autogenerate.objects import Statements
    from arc_halo.autogenerate.schemas import Schemas

PRIVILEGES: Final = {"grant", "default privileges", "owner"}
_ROLES: Final = "arc_halo.autogenerate.roles"
_OWNER: Final = "arc_halo.autogenerate.owner"
_PUBLIC: Final = "PUBLIC"
_Said = tuple[str, str | None, str | None, str | None, str, bool]


def _sql(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


_HELD = _sql("privileges.sql")
_DEFAULT = _sql("default_privileges.sql")
_OWNERS = _sql("owners.sql")
_QUOTED = text("""
SELECT rolname, pg_catalog.quote_ident(rolname) FROM pg_catalog.pg_roles WHERE rolname = ANY (:roles)
 UNION ALL
SELECT 'PUBLIC', 'PUBLIC' WHERE 'PUBLIC' = ANY (:roles)""")


class _Held(NamedTuple):
    """A privilege that somebody has of an object, or by a clause of new ones; no grantee: nobody has any."""

    target: str
    type: str
    relation: list[str] | None
    oid: int
    clause: str | None
    column_name: str | None
    owner: str
    grantee: str | None
    quoted: str | None
    privilege: str
    is_grantable: bool
    every: list[str]

    @property
    def name(self) -> str:
        """What it is about, without the kind."""
        return self.target if self.type == "r" else self.target.partition(" ")[2]

    @property
    def said(self) -> _Said:
        """What of it a GRANT or REVOKE changes."""
        return self.target, self.clause, self.grantee, self.column_name, self.privilege, self.is_grantable


def manage_grants(metadata: MetaData, *roles: str) -> None:
    """Let the declarations decide what these roles may do in the schema.

    What they lack is granted, what they have beyond is revoked: on the schema, its tables, views, sequences, functions
    and procedures, and by its default privileges. Privileges of all other roles are left alone. Roles themselves are
    never made: they belong to the whole server.

    Parameters
    ----------
    metadata
        With a schema; its GRANTs are declared by `declare`.
    roles
        Names as they are, not quoted; ``PUBLIC`` is everybody.

    Examples
    --------
    >>> from sqlalchemy import MetaData
    >>> from arc_halo.autogenerate import declare
    >>> metadata = MetaData(schema="app")
    >>> manage_grants(metadata, "reader")
    >>> declare(metadata, "GRANT USAGE ON SCHEMA app TO reader", "GRANT SELECT ON ALL TABLES IN SCHEMA app TO reader")
    """
    names = {_PUBLIC if role.upper() == _PUBLIC else role for role in roles}
    metadata.info.setdefault(_ROLES, set()).update(names)


def manage_owners(metadata: MetaData, owner: str) -> None:
    """Let one role own every table, view, sequence, function, type and statistics object of the schema.

    Revisions give it what others own, and what they make; ``create_all`` does not. Whoever runs them must be a
    superuser, or a member of the role, which then needs CREATE on the schema.

    Parameters
    ----------
    metadata
        With a schema.
    owner
        Its name as it is, not quoted.
    """
    metadata.info[_OWNER] = owner


def set_default_privileges(connection: Connection, metadata: MetaData, schemas: Schemas) -> None:
    """Run the declared ALTER DEFAULT PRIVILEGES: what is made next has them."""
    _run_each(connection, metadata, schemas, declared_privileges(metadata, default=True))


def grant(connection: Connection, metadata: MetaData, schemas: Schemas) -> None:
    """Run the declared GRANTs and REVOKEs."""
    _run_each(connection, metadata, schemas, declared_privileges(metadata, default=False))


def _run_each(connection: Connection, metadata: MetaData, schemas: Schemas, statements: list[str]) -> None:
    roles = metadata.info.get(_ROLES, set())
    before = _given(connection, schemas) if statements else set()
    for statement in statements:
        try:
            run(connection, [statement])
        except DBAPIError as error:
            error.add_note("Roles belong to the whole server; no revision makes them: CREATE ROLE comes first.")
            raise
        after = _given(connection, schemas)
        changed = before ^ after
        others = sorted({str(each[2]) for each in changed} - roles)
        if others:
            names = ", ".join(map(repr, others))
            raise ConfigurationError(
                f"A declaration changes privileges of {names}, which are left alone unless the metadata says that its"
                f" declarations decide them: manage_grants(metadata, {names}). It is: {statement[:200]}"
            )
        if not changed:
            raise ConfigurationError(
                f"A declaration changes no privilege of schema {' or '.join(schemas)}: it is of something else, or"
                f" is so already, also by declared default privileges. It is: {statement[:200]}"
            )
        before = after


def _given(connection: Connection, schemas: Schemas) -> set[_Said]:
    return {each.said for query in (_HELD, _DEFAULT) for each in _rows(connection, query, schemas) if each.grantee}


def _rows(connection: Connection, query: str, schemas: Schemas) -> list[_Held]:
    return [_Held._make(row) for row in qualified(connection, query, schemas)]


def read_privileges(connection: Connection, metadata: MetaData, *, declared: bool) -> dict[Key, Found]:
    """Grants, default privileges and owners, as far as the declarations decide them.

    ``declared`` asks for schemas that were built from the declarations: everything there has the owner that is to be.
    What a role has as the owner comes without a definition: it is not compared.
    """
    schemas = declared_schemas(metadata)
    found = _read_default_privileges(connection, metadata, schemas)
    for schema in schemas:  # each has default privileges of its own
        found |= _read_grants(connection, metadata, schema)
    return found | _read_owners(connection, metadata, schemas, declared=declared)


def forget_owned(*sides: dict[Key, Found]) -> None:
    """Leave out what a role has as the owner, on any side."""
    owned = {key for side in sides for key, found in side.items() if key.kind == "grant" and not found.definition}
    for side in sides:
        for key in owned & side.keys():
            del side[key]


def _read_default_privileges(connection: Connection, metadata: MetaData, schemas: Schemas) -> dict[Key, Found]:
    roles = metadata.info.get(_ROLES, set())
    groups: dict[Key, list[_Held]] = defaultdict(list)
    for each in _rows(connection, _DEFAULT, schemas) if roles else ():
        if each.clause is not None and each.grantee in roles:
            groups[Key("default privileges", f"{each.target} {each.clause} TO {each.quoted}")].append(each)
    found: dict[Key, Found] = {}
    for key, held in groups.items():
        about, alter = held[0], f"ALTER DEFAULT PRIVILEGES {held[0].clause}"
        definition = tuple(f"{alter} {said}" for said in _grants(held, about.target, str(about.quoted)))
        found[key] = _found(about, definition, f"{alter} REVOKE ALL ON {about.target} FROM {about.quoted}")
    return found


def _read_grants(connection: Connection, metadata: MetaData, schema: str) -> dict[Key, Found]:
    roles = metadata.info.get(_ROLES, set())
    if not roles:
        return {}
    new: dict[tuple[str, str | None], set[str]] = defaultdict(set)
    for each in _rows(connection, _DEFAULT, (schema,)):
        new[each.type, each.grantee].add(each.privilege)
    groups: dict[str, list[_Held]] = defaultdict(list)
    for each in _rows(connection, _HELD, (schema,)):
        groups[each.target].append(each)
    found: dict[Key, Found] = {}
    for role, quoted in connection.execute(_QUOTED, {"roles": sorted(roles)}):
        for target, held in groups.items():
            privileges = _privileges(held, role, quoted, new[held[0].type, role])
            if privileges is not None:
                found[Key("grant", f"{target} TO {quoted}")] = privileges
    return found


def _privileges(held: list[_Held], role: str, quoted: str, new: set[str]) -> Found | None:
    """What one role may do with one object, if it is another thing than what PostgreSQL gives everybody.

    Parameters
    ----------
    new
        What the role has of a new object by default privileges: whatever it lacks of that must be revoked.
    """
    about = held[0]
    revoke_all = f"REVOKE ALL ON {about.target} FROM {quoted}"
    if about.owner == role:
        return _found(about, (), revoke_all)
    own = [each for each in held if each.grantee == role]
    given = {(each.privilege, each.column_name) for each in own}
    for_everybody = {"EXECUTE"} if about.type == "f" and role == _PUBLIC else set()
    beyond = (new | for_everybody) - {privilege for privilege, column in given if column is None}
    if not beyond and given == {(privilege, None) for privilege in for_everybody}:
        return None
    definition = (*([revoke_all] if beyond else []), *_grants(own, about.target, quoted))
    removal = f"GRANT EXECUTE ON {about.target} TO {quoted}" if for_everybody else revoke_all
    return _found(about, definition, removal)


def _grants(held: list[_Held], target: str, quoted: str) -> Iterator[str]:
    for is_grantable, option in ((False, ""), (True, " WITH GRANT OPTION")):
        whole = sorted(each.privilege for each in held if each.is_grantable is is_grantable and not each.column_name)
        columns: dict[str, list[str]] = defaultdict(list)
        for each in held:
            if each.is_grantable is is_grantable and each.column_name:
                columns[each.privilege].append(each.column_name)
        if len(whole) > 1 and whole == sorted(held[0].every) and not columns:
            whole = ["ALL"]
        said = [*whole, *(f"{privilege} ({', '.join(sorted(names))})" for privilege, names in sorted(columns.items()))]
        if said:
            yield f"GRANT {', '.join(said)} ON {target} TO {quoted}{option}"


def _read_owners(connection: Connection, metadata: MetaData, schemas: Schemas, *, declared: bool) -> dict[Key, Found]:
    if _OWNER not in metadata.info:
        return {}
    parameters = {"owner": metadata.info[_OWNER] if declared else None}
    return {
        Key("owner", f"{row.kind} {row.name}"): _found(row, (row.definition,), "")
        for row in qualified(connection, _OWNERS, schemas, parameters)
    }


def _found(about: _Held | Row[Any], definition: Statements, removal: str) -> Found:
    relation = Relation(*about.relation) if about.relation else None
    return Found(Address(0, about.oid, 0), False, relation, None, definition, removal, {}, about.name)
