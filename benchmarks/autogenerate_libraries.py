"""The same declarations for each library: what ``context.configure`` is to be given, as ``scope`` gives it for ours.

Declarations are SQL, kept in the metadata by our ``declare``; for the others their own are made of it. Each is to run
in a process of its own: they register with Alembic for all of a process.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from arc_halo.autogenerate.objects import declared
from arc_halo.autogenerate.scope import scope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, MetaData

_FUNCTION = re.compile(
    r"CREATE FUNCTION app\.(\w+)\((.*?)\) RETURNS (\w+) LANGUAGE (\w+)( IMMUTABLE)? AS (\$\w*\$)(.*)\6", re.DOTALL
)
_PROCEDURE = re.compile(r"CREATE PROCEDURE app\.(\w+)\(\) LANGUAGE (\w+) AS \$\$(.*)\$\$", re.DOTALL)
_TRIGGER = re.compile(r"CREATE TRIGGER (\w+) BEFORE ([A-Z ]+) ON (\S+) FOR EACH ROW EXECUTE FUNCTION (\S+)\(\)")
_VIEW = re.compile(r"CREATE (MATERIALIZED )?VIEW app\.(\w+) AS (.*)", re.DOTALL)


class NotOfferedError(Exception):
    """The library has no declaration for this kind of object."""


def arc_halo(metadata: MetaData, connection: Connection | None = None) -> dict[str, Any]:
    """Ours."""
    return scope(metadata, connection)


def alembic(metadata: MetaData, _connection: Connection | None = None) -> dict[str, Any]:
    """Alembic alone: tables of the schema, nothing else."""
    return {
        "target_metadata": metadata,
        "version_table_schema": metadata.schema,
        "include_schemas": True,
        "include_name": lambda name, kind, _: kind != "schema" or name == metadata.schema,
        "include_object": lambda item, _name, kind, *_: kind != "table" or not item.is_view,
    }


def alembic_utils(metadata: MetaData, connection: Connection | None = None) -> dict[str, Any]:
    """alembic_utils: entities made of their SQL, as it offers it."""
    from alembic_utils.pg_function import PGFunction  # noqa: PLC0415  (only where it is installed)
    from alembic_utils.pg_materialized_view import PGMaterializedView  # noqa: PLC0415
    from alembic_utils.pg_policy import PGPolicy  # noqa: PLC0415
    from alembic_utils.pg_trigger import PGTrigger  # noqa: PLC0415
    from alembic_utils.pg_view import PGView  # noqa: PLC0415
    from alembic_utils.replaceable_entity import register_entities, registry  # noqa: PLC0415

    kinds = {
        "FUNCTION": PGFunction,
        "VIEW": PGView,
        "MATERIALIZED": PGMaterializedView,
        "TRIGGER": PGTrigger,
        "POLICY": PGPolicy,
    }
    registry.clear()
    register_entities([_of(kinds, kind).from_sql(sql) for kind, sql in _declared(metadata)])
    return alembic(metadata, connection)


def alembic_pg_autogen(metadata: MetaData, connection: Connection | None = None) -> dict[str, Any]:
    """alembic-pg-autogen: lists of SQL."""
    import alembic_pg_autogen  # noqa: F401, PLC0415  (only where it is installed; registers itself)

    options: dict[str, Any] = {"pg_functions": [], "pg_triggers": [], "pg_views": []}
    kinds = {"FUNCTION": "pg_functions", "TRIGGER": "pg_triggers", "VIEW": "pg_views"}  # it cannot parse a procedure
    for kind, sql in _declared(metadata):
        options[_of(kinds, kind)].append(sql)
    plugins = ["alembic.autogenerate.*", "alembic_pg_autogen.*"]
    return {**alembic(metadata, connection), **options, "autogenerate_plugins": plugins}


def sqlalchemy_declarative_extensions(metadata: MetaData, connection: Connection | None = None) -> dict[str, Any]:
    """sqlalchemy-declarative-extensions: objects with fields."""
    # It imports alembic_utils where that is installed, whose comparator then drops whatever is not declared to it.
    sys.modules.setdefault("alembic_utils", None)  # type: ignore[arg-type]
    import sqlalchemy_declarative_extensions as extensions  # noqa: PLC0415  (only where it is installed)

    makers = {
        "FUNCTION": _function,
        "PROCEDURE": _procedure,
        "TRIGGER": _trigger,
        "VIEW": _view,
        "MATERIALIZED": _view,
    }
    made: dict[str, list[Any]] = {"_function": [], "_procedure": [], "_trigger": [], "_view": []}
    for kind, sql in _declared(metadata):
        maker = _of(makers, kind)
        made[maker.__name__].append(maker(sql))
    extensions.declare_database(
        metadata,
        functions=extensions.Functions().are(*made["_function"]),
        procedures=extensions.Procedures().are(*made["_procedure"]),
        triggers=extensions.Triggers().are(*made["_trigger"]),
        views=extensions.Views().are(*made["_view"]),
    )
    extensions.register_alembic_events(databases=False, schemas=False, roles=False, grants=False, rows=False)
    return alembic(metadata, connection)


LIBRARIES = {
    "Arc-Halo": arc_halo,
    "alembic_utils": alembic_utils,
    "sqlalchemy-declarative-extensions": sqlalchemy_declarative_extensions,
    "alembic-pg-autogen": alembic_pg_autogen,
}


def _declared(metadata: MetaData) -> Iterator[tuple[str, str]]:
    """Kind and SQL of each declaration; one of several statements is offered by nobody else."""
    for source in declared(metadata):
        if len(source) != 1:
            raise NotOfferedError(source[-1])
        yield source[0].split()[1], source[0]


def _of(kinds: dict[str, Any], kind: str) -> Any:
    if kind not in kinds:
        raise NotOfferedError(kind)
    return kinds[kind]


def _fields(pattern: re.Pattern[str], sql: str) -> tuple[Any, ...]:
    found = pattern.fullmatch(sql)
    assert found is not None, sql
    return found.groups()


def _function(sql: str) -> Any:
    from sqlalchemy_declarative_extensions.dialects.postgresql import Function, FunctionVolatility  # noqa: PLC0415

    name, parameters, returns, language, immutable, _, body = _fields(_FUNCTION, sql)
    volatility = FunctionVolatility.IMMUTABLE if immutable else FunctionVolatility.VOLATILE
    return Function(
        name,
        body,
        returns=returns,
        language=language,
        schema="app",
        parameters=[parameters] if parameters else None,
        volatility=volatility,
    )


def _procedure(sql: str) -> Any:
    from sqlalchemy_declarative_extensions.dialects.postgresql import Procedure  # noqa: PLC0415

    name, language, body = _fields(_PROCEDURE, sql)
    return Procedure(name, body, language=language, schema="app")


def _trigger(sql: str) -> Any:
    from sqlalchemy_declarative_extensions.dialects.postgresql import Trigger  # noqa: PLC0415

    name, events, table, function = _fields(_TRIGGER, sql)
    made = Trigger.before(*events.lower().split(" or "), on=table, execute=function, name=name)
    return made.for_each_row()


def _view(sql: str) -> Any:
    from sqlalchemy_declarative_extensions import View  # noqa: PLC0415

    materialized, name, query = _fields(_VIEW, sql)
    return View(name, query, schema="app", materialized=bool(materialized))
