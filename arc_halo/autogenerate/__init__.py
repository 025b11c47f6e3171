"""Alembic autogenerate for every SQL object of one PostgreSQL schema, or of several.

Object        anything PostgreSQL keeps beside tables: function, procedure, aggregate, view, materialised view and its
              indexes, trigger, policy, statistics, row-level security flag, storage and compression of a column.
Part          what belongs to a table and Alembic creates and drops itself, but does not compare by its whole
              definition: index, constraint, default, generated column, storage parameters.
Remainder     what is neither: tables, columns, sequences, types. Alembic compares some of it; the rest is told and not
              written.
Declaration   the SQL that creates one object, kept in ``metadata.info`` by ``declare``; views are SQLAlchemy's own
              ``CreateView(..., metadata=...)``.
Privilege     what a role may do with an object, or whose an object is; compared where the declarations decide it,
              carried over where an object is made again.
Catalog text  PostgreSQL's own description of an object or part, with every name qualified.
Schemas       the metadata's own, which holds the version table, and those of ``declare_schemas``.
Setting aside renaming the schemas within a savepoint, so that the declarations can be built anew under their names.
Rename        of what stands under the former name of a declaration. What is declared is built under its new names,
              then renamed back, so that PostgreSQL's texts of it can be compared with those of what stands.
Fingerprint   the catalog text of whole schemas: equal for two databases that hold the same things.

PostgreSQL is the only parser: nothing here understands SQL. Everything declared must live in one of the schemas and
name what it uses with its schema.

Alembic loads this module while it is itself being imported (entry point group ``alembic.plugins``), so whatever needs
Alembic stands in ``compare`` and ``scope`` and is imported late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arc_halo.autogenerate.build import create_all
from arc_halo.autogenerate.extensions import declare_extension
from arc_halo.autogenerate.fingerprint import difference, fingerprint
from arc_halo.autogenerate.objects import declare, renamed_from
from arc_halo.autogenerate.others import leave_alone
from arc_halo.autogenerate.partitions import declare_partitions
from arc_halo.autogenerate.privileges import manage_grants, manage_owners
from arc_halo.autogenerate.schemas import declare_schemas

if TYPE_CHECKING:
    from alembic.runtime.plugins import Plugin
    from alembic.util import PriorityDispatchResult

__all__ = [
    "PLUGIN",
    "create_all",
    "declare",
    "declare_extension",
    "declare_partitions",
    "declare_schemas",
    "difference",
    "fingerprint",
    "leave_alone",
    "manage_grants",
    "manage_owners",
    "renamed_from",
    "setup",
]

PLUGIN = "arc_halo"
"""What to name in ``context.configure(autogenerate_plugins=[...])``; also the entry point's name."""


def setup(plugin: Plugin) -> None:
    """Register the comparators; Alembic calls this once per process."""
    from alembic.util import DispatchPriority  # noqa: PLC0415  (see the package's docstring)

    plugin.add_autogenerate_comparator(_renames, "schema", qualifier="postgresql", priority=DispatchPriority.FIRST)
    plugin.add_autogenerate_comparator(_schema, "schema", qualifier="postgresql", priority=DispatchPriority.LAST)
    plugin.add_autogenerate_comparator(_expansions, "schema", qualifier="postgresql", priority=DispatchPriority.LAST)
    plugin.add_autogenerate_comparator(
        _server_default, "column", "server_default", qualifier="postgresql", priority=DispatchPriority.FIRST
    )


def _renames(*arguments: Any) -> PriorityDispatchResult:
    from arc_halo.autogenerate.compare import look_renamed  # noqa: PLC0415  (see the package's docstring)

    return look_renamed(*arguments)


def _schema(*arguments: Any) -> PriorityDispatchResult:
    from arc_halo.autogenerate.compare import compare_schema  # noqa: PLC0415  (see the package's docstring)

    return compare_schema(*arguments)


def _expansions(*arguments: Any) -> PriorityDispatchResult:
    from arc_halo.autogenerate.expanding.contracting import amend_expansions  # noqa: PLC0415  (see the package's docstring)

    return amend_expansions(*arguments)


def _server_default(*arguments: Any) -> PriorityDispatchResult:
    from arc_halo.autogenerate.compare import compare_server_default  # noqa: PLC0415  (see the package's docstring)

    return compare_server_default(*arguments)
