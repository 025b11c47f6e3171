"""Functions and triggers; the body of each is ``sql/<name>.sql``, whose first line is its COMMENT."""

from __future__ import annotations

from importlib import resources

from arc_halo.autogenerate import declare
from arc_halo.schema.base import SCHEMA, Base
from arc_halo.schema.training import METRIC_PARTITIONS


def sql_source(name: str) -> str:
    """The SQL kept in ``sql/<name>.sql``."""
    return resources.files(__package__).joinpath("sql", f"{name}.sql").read_text("utf-8")


def _declare_function(name: str) -> None:
    comment, definition = sql_source(name).split("\n", 1)
    text = comment.removeprefix("-- ").replace("'", "''")
    # No argument types: none of our functions is overloaded.
    declare(Base.metadata, (definition, f"COMMENT ON FUNCTION {SCHEMA}.{name} IS '{text}'"))


for _name in (
    "uuid7",
    "update_updated_at_column",
    "calculate_model_parameters",
    "get_latest_checkpoint",
    "token_ids",
    "is_servable",
    "expire_caches",
    "ensure_time_partitions",
    "drop_time_partitions",
    "reset_weights_digest",
    "note_points",
    "note_deleted_points",
    "note_segments",
    "describe_segment",
    "combine_metric_summaries",
    "summarize_metric_parts",
    "change_metric_summaries",
    "lock_metric_series",
    "write_points",
    "delete_points",
    "merge_sealed_points",
    "seal_series",
    "unseal_series",
    "attempt_line",
    "metric_history",
    "delete_metric_points",
    "delete_run_embeddings",
    "forget_gradients",
    "check_interaction_graph",
    "refuse_state_change",
    "refresh_statistics",
    "request_blob_deletion",
    "note_operation",
    "compare_weights",
):
    _declare_function(_name)

# The package imports every domain before this module, so these are all tables.
for _table in Base.metadata.sorted_tables:
    if "updated_at" in _table.c:
        declare(
            Base.metadata,
            f"CREATE TRIGGER tr_{_table.name}_updated_at BEFORE UPDATE ON {_table.fullname}"
            " FOR EACH ROW EXECUTE FUNCTION arc_halo.update_updated_at_column()",
        )

# Of the table and of each partition: what is written to a partition itself fires those of the partition alone, and COPY
# is faster there by a quarter, since it collects rows only for tables that have no partitions.
for _name in ("training_metrics", *(f"training_metrics_{remainder}" for remainder in range(METRIC_PARTITIONS))):
    declare(
        Base.metadata,
        f"CREATE TRIGGER tr_{_name}_inserted AFTER INSERT ON arc_halo.{_name}"
        " REFERENCING NEW TABLE AS new_points"
        " FOR EACH STATEMENT EXECUTE FUNCTION arc_halo.note_points()",
        f"CREATE TRIGGER tr_{_name}_updated AFTER UPDATE ON arc_halo.{_name}"
        " REFERENCING OLD TABLE AS old_points NEW TABLE AS new_points"
        " FOR EACH STATEMENT EXECUTE FUNCTION arc_halo.note_points()",
        f"CREATE TRIGGER tr_{_name}_deleted AFTER DELETE ON arc_halo.{_name}"
        " REFERENCING OLD TABLE AS old_points"
        " FOR EACH STATEMENT EXECUTE FUNCTION arc_halo.note_deleted_points()",
    )

declare(
    Base.metadata,
    # A transition table belongs to one event, so there are three triggers; each fires once per statement.
    "CREATE TRIGGER tr_model_weights_inserted AFTER INSERT ON arc_halo.model_weights"
    " REFERENCING NEW TABLE AS new_weights"
    " FOR EACH STATEMENT EXECUTE FUNCTION arc_halo.reset_weights_digest()",
    "CREATE TRIGGER tr_model_weights_updated AFTER UPDATE ON arc_halo.model_weights"
    " REFERENCING OLD TABLE AS old_weights NEW TABLE AS new_weights"
    " FOR EACH STATEMENT EXECUTE FUNCTION arc_halo.reset_weights_digest()",
    "CREATE TRIGGER tr_model_weights_deleted AFTER DELETE ON arc_halo.model_weights"
    " REFERENCING OLD TABLE AS old_weights"
    " FOR EACH STATEMENT EXECUTE FUNCTION arc_halo.reset_weights_digest()",
    "CREATE TRIGGER tr_metric_segments_described BEFORE INSERT OR UPDATE ON arc_halo.metric_segments"
    " FOR EACH ROW EXECUTE FUNCTION arc_halo.describe_segment()",
    "CREATE TRIGGER tr_metric_segments_inserted AFTER INSERT ON arc_halo.metric_segments"
    " REFERENCING NEW TABLE AS new_segments"
    " FOR EACH STATEMENT EXECUTE FUNCTION arc_halo.note_segments()",
    "CREATE TRIGGER tr_metric_segments_updated AFTER UPDATE ON arc_halo.metric_segments"
    " REFERENCING OLD TABLE AS old_segments NEW TABLE AS new_segments"
    " FOR EACH STATEMENT EXECUTE FUNCTION arc_halo.note_segments()",
    "CREATE TRIGGER tr_metric_segments_deleted AFTER DELETE ON arc_halo.metric_segments"
    " REFERENCING OLD TABLE AS old_segments"
    " FOR EACH STATEMENT EXECUTE FUNCTION arc_halo.note_segments()",
    "CREATE TRIGGER tr_metric_series_deleted AFTER DELETE ON arc_halo.metric_series"
    " REFERENCING OLD TABLE AS old_series"
    " FOR EACH STATEMENT EXECUTE FUNCTION arc_halo.delete_metric_points()",
    "CREATE TRIGGER tr_checkpoint_tensors_deleted AFTER DELETE ON arc_halo.checkpoint_tensors"
    " REFERENCING OLD TABLE AS old_tensors"
    " FOR EACH STATEMENT EXECUTE FUNCTION arc_halo.forget_gradients()",
    "CREATE TRIGGER tr_training_sessions_deleted AFTER DELETE ON arc_halo.training_sessions"
    " REFERENCING OLD TABLE AS old_runs"
    " FOR EACH STATEMENT EXECUTE FUNCTION arc_halo.delete_run_embeddings()",
    "CREATE TRIGGER tr_model_interaction_graph_checked"
    " AFTER INSERT OR UPDATE OF reactor_id, source_id, target_id, interaction_type OR DELETE"
    " ON arc_halo.model_interaction_graph"
    " FOR EACH ROW EXECUTE FUNCTION arc_halo.check_interaction_graph()",
    # By row: those of one statement let go of different objects.
    "CREATE TRIGGER tr_tensor_data_blob_left AFTER DELETE OR UPDATE OF blob_location ON arc_halo.tensor_data"
    " FOR EACH ROW WHEN (OLD.blob_location IS NOT NULL) EXECUTE FUNCTION arc_halo.request_blob_deletion()",
    "CREATE TRIGGER tr_cognitive_state_append_only BEFORE UPDATE OR DELETE ON arc_halo.cognitive_state"
    " FOR EACH ROW EXECUTE FUNCTION arc_halo.refuse_state_change()",
)
