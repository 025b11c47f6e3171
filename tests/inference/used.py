"""A model to use, and what its sessions left in a database of a test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select, text

from arc_halo.schema import InferenceMetric, InferenceSession
from tests.schema.rows import add_model, digest

if TYPE_CHECKING:
    import datetime as dt

    from arc_halo.database import Database

ENSURE = text("SELECT arc_halo.ensure_time_partitions('arc_halo.inference_metrics', :start, 0)")
PARTITIONS = text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = 'arc_halo.inference_metrics'::regclass ORDER BY c.relname"
)


def store_model(database: Database, name: str = "m") -> None:
    def store(session):
        # The digest is reset by whatever changes weights, so it is written last, on its own.
        add_model(session, name).weights_digest = digest("weights")

    database.transaction(store)


def session_of(database: Database) -> Any:
    with database.session() as session:
        return session.scalars(select(InferenceSession)).one()


def metrics_of(database: Database) -> list[Any]:
    with database.session() as session:
        return list(session.scalars(select(InferenceMetric).order_by(InferenceMetric.request_number)))


def partitions(database: Database) -> list[str]:
    with database.session() as session:
        return list(session.scalars(PARTITIONS))


def make_months(database: Database, *starts: dt.datetime) -> None:
    database.transaction(lambda session: [session.execute(ENSURE, {"start": start}) for start in starts])
