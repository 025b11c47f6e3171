"""What Alembic may see of a shared database: our schemas, no partitions, no views taken for tables."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from alembic.runtime.plugins import Plugin
from sqlalchemy import Table, text

import arc_halo.autogenerate
from arc_halo.autogenerate.others import member_name, name_of, others
from arc_halo.autogenerate.partitions import partition_names
from arc_halo.autogenerate.render import render_item
from arc_halo.autogenerate.schemas import Relation, declared_schemas, sole_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sqlalchemy import Connection, MetaData

    from arc_halo.autogenerate.others import Others

# The entry point has registered it if this distribution is installed; a bare source folder has no entry points.
with suppress(ValueError):
    Plugin.setup_plugin_from_module(arc_halo.autogenerate, arc_halo.autogenerate.PLUGIN)


def scope(metadata: MetaData, connection: Connection | None = None) -> dict[str, Any]:
    """Arguments for ``context.configure``.

    Without all of them Alembic proposes to drop other applications' tables, or reads their revision as ours.

    Parameters
    ----------
    metadata
        The target metadata; it must have a schema. Alembic sees that and those of `declare_schemas`, no others.
    connection
        The connection of the migration, None offline.

    Raises
    ------
    ConfigurationError
        If the metadata has no schema, or is a list of several.
    """
    seen = _Scope(sole_metadata(metadata), connection)
    return {
        "target_metadata": metadata,
        "version_table_schema": metadata.schema,
        "include_schemas": True,
        "include_name": seen.include_name,
        "include_object": seen.include_object,
        "render_item": render_item,
        "compare_server_default": True,
        "autogenerate_plugins": [
            "alembic.autogenerate.*",
            "alembic.ext.checkconstraint_byname",
            arc_halo.autogenerate.PLUGIN,
        ],
    }


class _Scope:
    """The filters; what they know of the database is asked late, when Alembic's transaction has begun."""

    def __init__(self, metadata: MetaData, connection: Connection | None) -> None:
        self.metadata, self.connection = metadata, connection
        self.schemas = declared_schemas(metadata)

    @cached_property
    def partitions(self) -> set[Relation]:
        return set() if self.connection is None else partition_names(self.connection, self.schemas)

    @cached_property
    def cloned_constraints(self) -> set[tuple[Relation, str]]:
        """(table, constraint) that PostgreSQL keeps for each partition of a table that a foreign key points to."""
        query = """SELECT n.nspname, t.relname, c.conname
                     FROM pg_catalog.pg_constraint AS c
                     JOIN pg_catalog.pg_class AS t ON t.oid = c.conrelid
                     JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
                    WHERE c.conparentid <> 0 AND n.nspname = ANY (:schemas)"""
        return self._members(query)

    @cached_property
    def indexes(self) -> set[tuple[Relation, str]]:
        """(table, index) of the schemas as they stand."""
        query = """SELECT n.nspname, t.relname, x.relname
                     FROM pg_catalog.pg_index AS i
                     JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid
                     JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
                     JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
                    WHERE n.nspname = ANY (:schemas)"""
        return self._members(query)

    def _members(self, query: str) -> set[tuple[Relation, str]]:
        if self.connection is None:
            return set()
        rows = self.connection.execute(text(query), {"schemas": list(self.schemas)})
        return {(Relation(row[0], row[1]), row[2]) for row in rows}

    @cached_property
    def others(self) -> Others:
        return others(self.connection, self.metadata)

    def include_name(self, name: str | None, kind: str, parents: Mapping[str, str | None]) -> bool:
        schema = str(parents.get("schema_name"))
        if kind == "schema":
            return name in self.schemas
        if kind == "table":
            relation = Relation(schema, str(name))
            return relation not in self.partitions and not self.others.own(name_of(relation))
        place = (Relation(schema, str(parents.get("table_name"))), str(name))
        if self.others.own(member_name(kind, *place)):
            return False
        if kind == "foreign_key_constraint":
            return place not in self.cloned_constraints
        if kind == "index":
            return place not in self._declared_indexes  # on both sides: compared by catalog text
        return True

    def include_object(self, item: Any, _name: str | None, kind: str, reflected: bool, _other: Any) -> bool:
        if kind == "table":
            return item.schema in self.schemas and not item.is_view
        if kind == "index" and not reflected:
            place = (Relation(item.table.schema, item.table.name), str(item.name))
            return place not in self.indexes  # on both sides: compared by catalog text
        return True

    @cached_property
    def _declared_indexes(self) -> set[tuple[Relation, str]]:
        tables: list[Table] = [table for table in self.metadata.tables.values() if table.schema in self.schemas]
        return {
            (Relation(str(table.schema), table.name), str(index.name)) for table in tables for index in table.indexes
        }
