"""What inference sessions took, read back and summed up; and old figures dropped."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from sqlalchemy import Select, Text, bindparam, cast, literal, or_, select, text
from sqlalchemy.dialects.postgresql import ARRAY, UUID
from sqlalchemy.orm import joinedload

from arc_halo.errors import ConfigurationError, SessionNotFound
from arc_halo.registry.naming import find_model
from arc_halo.schema import InferenceSession, Model, ModelAlias
from arc_halo.schema.columns import TENANT_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

_ID: Final = re.compile(r"[0-9a-f-]{4,36}")
_NEAR: Final = 5
_LONGEST: Final = dt.timedelta(days=1000 * 365)

_MEASURE: Final = text("""
SELECT inference_session_id, count(*) AS measured_count,
       percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY latency_seconds) AS latencies,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY time_to_first_token_seconds) AS first_token,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY tokens_per_second) AS rate,
       sum(cached_token_count) FILTER (WHERE prompt_token_count IS NOT NULL)::float8
           / nullif(sum(prompt_token_count) FILTER (WHERE cached_token_count IS NOT NULL), 0) AS cached_share,
       max(memory_nbytes) AS max_memory_nbytes
  FROM arc_halo.inference_metrics
 WHERE inference_session_id = ANY(:ids)
 GROUP BY inference_session_id
""").bindparams(bindparam("ids", type_=ARRAY(UUID)))
_CURVE: Final = text("""
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY latency_seconds)
  FROM (SELECT latency_seconds, ntile(:buckets) OVER (ORDER BY request_number) AS bucket
          FROM arc_halo.inference_metrics
         WHERE inference_session_id = :session_id) AS request
 GROUP BY bucket
 ORDER BY bucket
""")
_DROP: Final = text("SELECT arc_halo.drop_time_partitions('arc_halo.inference_metrics', now() - :keep)")
# The months that _DROP drops: those that have ended by then.
_COUNT: Final = text("""
SELECT count(*), date_trunc('month', now() - :keep, 'UTC')
  FROM arc_halo.inference_metrics
 WHERE recorded_at < date_trunc('month', now() - :keep, 'UTC')
""")


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """A session, and percentiles over those of its requests whose figures are kept.

    Counts are of the whole session; what a percentile is made of may have been dropped since.
    """

    id: uuid.UUID
    model: str
    """As name@version."""
    name: str | None
    status: str
    config: dict[str, Any]
    weights_digest: bytes | None
    created_at: dt.datetime
    updated_at: dt.datetime
    ended_at: dt.datetime | None
    request_count: int
    prompt_token_count: int
    generated_token_count: int
    cached_token_count: int
    measured_count: int
    """Requests whose figures are kept."""
    latency_p50_seconds: float | None
    latency_p99_seconds: float | None
    time_to_first_token_p50_seconds: float | None
    tokens_per_second_p50: float | None
    cached_share: float | None
    """Of the prompts' tokens those from the cache, over kept requests that say both; None without any."""
    max_memory_nbytes: int | None


def list_sessions(
    session: Session, *, model: Model | uuid.UUID | str | None = None, limit: int = 30
) -> list[SessionSummary]:
    """The newest sessions, of one version or of all; by two statements however many there are.

    Raises
    ------
    ModelNotFound
        There is no such model.
    """
    newest = _sessions().where(InferenceSession.tenant_id == TENANT_ID).order_by(InferenceSession.id.desc())
    if model is not None:
        newest = newest.where(InferenceSession.model_id == find_model(session, model).id)
    return describe_sessions(session, session.scalars(newest.limit(limit)).all())


def describe_sessions(session: Session, found: Iterable[InferenceSession]) -> list[SessionSummary]:
    """Sessions with their percentiles, in the order given."""
    rows = list(found)
    measured = {row[0]: row for row in session.execute(_MEASURE, {"ids": [each.id for each in rows]})}
    return [_summary(each, measured.get(each.id)) for each in rows]


def _summary(row: InferenceSession, measured: Any) -> SessionSummary:
    own = ("id", "name", "status", "config", "weights_digest", "created_at", "updated_at", "ended_at")
    counts = ("request_count", "prompt_token_count", "generated_token_count", "cached_token_count")
    latencies = [None, None] if measured is None else measured.latencies
    return SessionSummary(
        model=f"{row.model.name}@{row.model.version}",
        **{name: getattr(row, name) for name in (*own, *counts)},
        measured_count=measured.measured_count if measured else 0,
        latency_p50_seconds=latencies[0],
        latency_p99_seconds=latencies[1],
        time_to_first_token_p50_seconds=measured and measured.first_token,
        tokens_per_second_p50=measured and measured.rate,
        cached_share=measured and measured.cached_share,
        max_memory_nbytes=measured and measured.max_memory_nbytes,
    )


def find_session(session: Session, reference: uuid.UUID | str) -> InferenceSession:
    """The session of a reference, its model loaded with it.

    ``model/name``, where ``model`` may be ``name@version`` or ``name@alias``, is the newest of that name; a model's
    name alone stands for all its versions. Or an id, of which four and more of its first characters are enough where
    they tell it apart.

    Raises
    ------
    SessionNotFound
        There is none, or several ids begin so.
    """
    if isinstance(reference, uuid.UUID):
        found: Sequence[InferenceSession] = session.scalars(_sessions().where(InferenceSession.id == reference)).all()
    else:
        found = _by_name(session, reference) or _by_id(session, reference.lower())
    if len(found) > 1:
        ids = ", ".join(str(each.id) for each in found[:_NEAR])
        raise SessionNotFound(f"several ids begin with {str(reference)!r}: {ids}; give more of it")
    if not found:
        raise SessionNotFound(
            f"no inference session {str(reference)!r:.220}; write MODEL/NAME or the beginning of an id, as "
            "`arc-halo infer sessions` lists them"
        )
    return found[0]


def latency_curve(session: Session, session_id: uuid.UUID, *, buckets: int) -> np.ndarray:
    """Median latencies of equally many requests each, in the order in which these began.

    Returns
    -------
    numpy.ndarray
        float64 of shape ``(n,)``, in seconds; ``n`` is at most ``buckets``, and 0 where no figures are kept.
    """
    return np.array(session.scalars(_CURVE, {"session_id": session_id, "buckets": buckets}).all(), np.float64)


def count_old_metrics(session: Session, keep: dt.timedelta) -> tuple[int, dt.datetime]:
    """How many requests' figures `drop_old_metrics` would drop, and the time they are older than.

    Raises
    ------
    ConfigurationError
        ``keep`` is no such time.
    """
    count, end = session.execute(_COUNT, {"keep": _checked(keep)}).one()
    return count, end


def drop_old_metrics(session: Session, keep: dt.timedelta) -> int:
    """Drop the months of requests' figures that ended at least ``keep`` ago; returns how many partitions that were.

    Nothing is deleted row by row: a month goes when all of it is old enough, so figures stay for up to a month longer.
    Sessions stay, with their counts. Readers and writers of the table wait from here to the end of the transaction.

    Parameters
    ----------
    keep
        From 0 on; by the database's clock.

    Raises
    ------
    ConfigurationError
        ``keep`` is negative, longer than a thousand years, or no timedelta.
    LockTimeout
        Somebody has the table in use for long.
    """
    dropped: int = session.execute(_DROP, {"keep": _checked(keep)}).scalar_one()
    return dropped


def _checked(keep: dt.timedelta) -> dt.timedelta:
    if not isinstance(keep, dt.timedelta) or not dt.timedelta(0) <= keep <= _LONGEST:
        raise ConfigurationError(
            f"keep is how long figures stay at least, a timedelta from 0 to a thousand years, not {keep!r:.80}"
        )
    return keep


def _sessions() -> Select[InferenceSession]:
    return select(InferenceSession).options(joinedload(InferenceSession.model))


def _by_name(session: Session, reference: str) -> Sequence[InferenceSession]:
    if not reference.isprintable():
        return []
    asked, end = literal(reference), "/" + InferenceSession.name
    alias = select(ModelAlias).where(
        ModelAlias.model_id == Model.id, asked == ModelAlias.name + "@" + ModelAlias.alias + end
    )
    is_called = or_(asked == Model.name + end, asked == Model.name + "@" + Model.version + end, alias.exists())
    newest = _sessions().join(InferenceSession.model).where(InferenceSession.tenant_id == TENANT_ID, is_called)
    return session.scalars(newest.order_by(InferenceSession.id.desc()).limit(1)).all()


def _by_id(session: Session, prefix: str) -> Sequence[InferenceSession]:
    if not _ID.fullmatch(prefix):
        return []
    is_of_id = cast(InferenceSession.id, Text).startswith(prefix, autoescape=True)
    return session.scalars(_sessions().where(is_of_id).limit(_NEAR + 1)).all()
