"""Changes of one kind each: a declaration that differs by whether it is the changed one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tests.autogenerate import object_cases, table_cases, tricky_cases
from tests.autogenerate.project import new_metadata

if TYPE_CHECKING:
    from sqlalchemy import MetaData, Table


class Case(Protocol):
    """Declares something on or beside the table ``items``."""

    __name__: str

    def __call__(self, items: Table, *, changed: bool) -> None: ...


CASES: dict[str, Case] = {
    declaration.__name__: declaration
    for declaration in (
        table_cases.check, table_cases.circular_references, table_cases.column,
        table_cases.column_dropped_below_a_function, table_cases.column_dropped_below_a_view,
        table_cases.column_type, table_cases.comments, table_cases.default, table_cases.dropped_table,
        table_cases.every_type, table_cases.generated_column,
        table_cases.generated_column_with_new_things_on_it, table_cases.index, table_cases.nearest_index,
        table_cases.overlooked_constraints, table_cases.partitioned_table, table_cases.primary_key,
        table_cases.quoted_names, table_cases.reference_to_a_new_column,
        table_cases.reference_as_primary_key, table_cases.storage,
        table_cases.unique_constraint, table_cases.table_options, table_cases.compression,
        object_cases.aggregate, object_cases.aggregate_without_arguments,
        object_cases.statistics_object, object_cases.disabled_trigger,
        object_cases.constraint_trigger, object_cases.unpopulated_view,
        object_cases.column_at_the_end_of_a_view, object_cases.column_in_the_middle_of_a_view,
        object_cases.comment_of_a_view, object_cases.condition_of_a_view,
        object_cases.default_by_a_new_function, object_cases.function,
        object_cases.index_of_a_materialized_view, object_cases.materialized_view, object_cases.policy,
        object_cases.procedure, object_cases.row_level_security, object_cases.signature,
        object_cases.signature_used_by_what_goes, object_cases.function_called_by_a_string,
        object_cases.table_that_becomes_a_view, object_cases.trigger_of_a_partition,
        object_cases.trigger_on_a_partitioned_table,
        tricky_cases.tricky_aggregate, tricky_cases.tricky_check, tricky_cases.tricky_check_of_a_new_table,
        tricky_cases.tricky_comments, tricky_cases.tricky_default, tricky_cases.tricky_function,
        tricky_cases.tricky_generated_column, tricky_cases.tricky_index, tricky_cases.tricky_materialized_view,
        tricky_cases.tricky_partition, tricky_cases.tricky_policy, tricky_cases.tricky_procedure,
        tricky_cases.tricky_statistics, tricky_cases.tricky_trigger, tricky_cases.tricky_view,
    )
}  # fmt: skip


def declared(name: str, *, changed: bool) -> MetaData:
    """The metadata of a case."""
    metadata = new_metadata()
    CASES[name](metadata.tables["app.items"], changed=changed)
    return metadata
