"""Runs that are looked for: by what they are and what they reached, or by a curve that theirs is like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from sqlalchemy import cast, delete, or_, select, text
from sqlalchemy.dialects.postgresql import JSONB

from arc_halo.errors import MetricError
from arc_halo.registry.embeddings import search_embeddings
from arc_halo.schema import Embedding, Model, RunMetric, TrainingSession
from arc_halo.schema.columns import TENANT_ID
from arc_halo.schema.html import html_table
from arc_halo.training.conditions import Condition, Figure, parse_condition, parse_figure
from arc_halo.training.downsampling import resample
from arc_halo.training.history import fetch_histories
from arc_halo.training.naming import model_condition, parse_metric, run_name, runs_meant
from arc_halo.training.runs import Runs, fetch_runs
from arc_halo.training.series import check_recorded, find_tracks

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from arc_halo.training.keys import SeriesKey

CURVE_DIMENSION: Final = 384
"""Places at which a curve is compared; there is an HNSW index over vectors of so many."""
_FLAT_BELOW: Final = 1e-9
_INDEX: Final = text("""
INSERT INTO arc_halo.embeddings (tenant_id, kind, owner_id, row_index, label, dimension, vector)
SELECT :tenant, 'run', w.owner_id, COALESCE(others.last_row + 1, 0), :label, :dimension, w.vector::public.vector
  FROM unnest(CAST(:owners AS uuid[]), CAST(:vectors AS text[])) AS w (owner_id, vector)
 CROSS JOIN LATERAL (
    SELECT max(e.row_index) AS last_row FROM arc_halo.embeddings AS e
     WHERE e.tenant_id = :tenant AND e.kind = 'run' AND e.owner_id = w.owner_id
 ) AS others
""")
_FIGURES: Final = {
    "last": RunMetric.last_value,
    "best": RunMetric.best_value,
    "min": RunMetric.min_value,
    "max": RunMetric.max_value,
}


def find_runs(
    session: Session,
    *,
    model: Model | uuid.UUID | str | None = None,
    name: str | None = None,
    status: str | Collection[str] | None = None,
    config: Mapping[str, Any] | None = None,
    metrics: Sequence[str | Condition] = (),
    where: ColumnElement[bool] | None = None,
    order_by: str | Figure | None = None,
    descending: bool = False,
    limit: int | None = None,
) -> Runs:
    """Runs that fulfil all that is said, the newest first; a fixed number of statements, however many there are.

    Parameters
    ----------
    model
        Of this model; a name alone means all its versions.
    name
        Of this name, in which ``*`` stands for anything.
    status
        One or several of ``pending``, ``running``, ``completed``, ``failed``, ``stopped``.
    config
        Values that the config has among others. A key with dots is that key, or leads into mappings:
        ``{"optimizer.lr": 0.001}``.
    metrics
        Conditions such as ``"loss < 2.5"`` on the last value, ``"best(validation/accuracy) >= 0.9"``, ``min(...)`` and
        ``max(...)``. NaN is greater than every number, as PostgreSQL has it.
    where
        A condition on columns of `TrainingSession` and `Model`.
    order_by
        A figure such as ``"best(loss)"``, smallest first unless ``descending``; runs without it come last.

    Raises
    ------
    MetricError
        A condition or figure is none.
    MetricNotFound
        No run at all has recorded a metric that is named.

    Examples
    --------
    >>> find_runs(session, status="completed", config={"lr": 0.1}, metrics=["best(loss) < 2"])  # doctest: +SKIP
    """
    conditions = [] if where is None else [where]
    if model is not None:
        conditions.append(model_condition(model))
    if name is not None:
        conditions.append(TrainingSession.name.like(_pattern(name), escape="!"))
    if status is not None:
        conditions.append(TrainingSession.status.in_([status] if isinstance(status, str) else list(status)))
    conditions += [_has(key, value) for key, value in (config or {}).items()]
    reached = [each if isinstance(each, Condition) else parse_condition(each) for each in metrics]
    sorted_by = parse_figure(order_by) if isinstance(order_by, str) else order_by
    figures = [*(each.figure for each in reached), *([] if sorted_by is None else [sorted_by])]
    if figures:
        check_recorded(session, [each.metric for each in figures])
    conditions += map(_reaches, reached)
    order = [] if sorted_by is None else [_order(sorted_by, descending=descending)]
    return fetch_runs(session, conditions, order_by=order, limit=limit)


def _pattern(name: str) -> str:
    """For LIKE, with ``!`` before what it would take for a wildcard."""
    return "".join("%" if each == "*" else f"!{each}" if each in "!%_" else each for each in name)


def _has(key: str, value: Any) -> ColumnElement[bool]:
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    config = cast(TrainingSession.config, JSONB)
    return or_(config.contains({key: value}), config.contains(nested))


def _is_metric(metric: str) -> ColumnElement[bool]:
    return or_(
        *(
            (RunMetric.name == name) & (RunMetric.scope == scope) & (cast(RunMetric.context, JSONB) == context)
            for name, scope, context in parse_metric(metric)
        )
    )


def _reaches(condition: Condition) -> ColumnElement[bool]:
    value = _FIGURES[condition.figure.figure]
    compare = {"<": value.__lt__, "<=": value.__le__, ">": value.__gt__, ">=": value.__ge__, "=": value.__eq__}
    compared = value != condition.value if condition.operator == "!=" else compare[condition.operator](condition.value)
    return (
        select(RunMetric.metric)
        .where(RunMetric.training_session_id == TrainingSession.id, _is_metric(condition.figure.metric), compared)
        .correlate(TrainingSession)
        .exists()
    )


def _order(figure: Figure, *, descending: bool) -> ColumnElement[Any]:
    value = (
        select(_FIGURES[figure.figure])
        .where(RunMetric.training_session_id == TrainingSession.id, _is_metric(figure.metric))
        .limit(1)
        .correlate(TrainingSession)
        .scalar_subquery()
    )
    return (value.desc() if descending else value.asc()).nulls_last()


@dataclass(frozen=True, slots=True)
class SimilarRun:
    """A run with a curve like another's; ``similarity`` is the correlation of the two, 1 for the same shape."""

    run: str
    similarity: float
    run_id: uuid.UUID = field(repr=False)


class SimilarRuns(list[SimilarRun]):
    """What a search found, the most similar first; a table in a notebook."""

    def _repr_html_(self) -> str:
        return html_table(["run", "similarity"], [(each.run, each.similarity) for each in self])


def index_curves(
    session: Session, runs: Sequence[TrainingSession | uuid.UUID | str], metric: str | SeriesKey = "loss"
) -> int:
    """Make the shapes of runs' curves searchable, or as they are now; they go with their runs.

    Returns
    -------
    int
        How many were indexed; of a run without a finite value nothing is.

    Raises
    ------
    RunNotFound
        There is no such run.
    MetricNotFound
        None of them has recorded it.
    """
    tracks = find_tracks(session, runs, [metric])
    shapes = {
        track.run_id: shape
        for track, points in zip(tracks, fetch_histories(session, tracks), strict=True)
        if (shape := curve_shape(points["step"], points["value"])) is not None
    }
    label = tracks[0].metric
    is_old = (Embedding.kind == "run") & Embedding.owner_id.in_(list(shapes)) & (Embedding.label == label)
    session.execute(delete(Embedding).where(Embedding.tenant_id == TENANT_ID, is_old))
    vectors = ["[" + ",".join(map(repr, shape.tolist())) + "]" for shape in shapes.values()]
    asked = {"owners": list(shapes), "vectors": vectors, "label": label, "tenant": TENANT_ID}
    session.execute(_INDEX, asked | {"dimension": CURVE_DIMENSION})
    return len(shapes)


def find_similar_runs(
    session: Session, run: TrainingSession | uuid.UUID | str, metric: str | SeriesKey = "loss", k: int = 10
) -> SimilarRuns:
    """The indexed runs whose curve of that metric has most nearly the shape of this run's.

    Shape alone: curves are stretched to the same number of steps, the same mean and the same spread. The run itself
    need not be indexed. An HNSW index finds candidates, which are ranked by their exact correlation.

    Raises
    ------
    RunNotFound, MetricNotFound
        There is no such run, or it has recorded no such metric.
    MetricError
        None of its values is finite.

    Examples
    --------
    >>> index_curves(session, [each.id for each in find_runs(session, model="minilm")])  # doctest: +SKIP
    >>> find_similar_runs(session, "minilm/tune", "loss", k=3)  # doctest: +SKIP
    """
    track = find_tracks(session, [run], [metric])[0]
    (points,) = fetch_histories(session, [track])
    shape = curve_shape(points["step"], points["value"])
    if shape is None:
        raise MetricError(f"{track.metric} of {track.run} has no finite value to compare curves by")
    others = (Embedding.label == track.metric) & (Embedding.owner_id != track.run_id)
    matches = search_embeddings(session, "run", shape, k, where=others)
    named = {each.id: run_name(each) for each in runs_meant(session, [each.owner_id for each in matches])}
    return SimilarRuns(SimilarRun(named[each.owner_id], each.similarity, each.owner_id) for each in matches)


def curve_shape(steps: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    """A curve as a direction: resampled to `CURVE_DIMENSION` places, less its mean, of length 1.

    The cosine of two is the correlation of the curves. A flat curve has a direction of its own, at right angles to
    those of all others. None if no value is finite.
    """
    places = resample(steps, values, CURVE_DIMENSION)
    if not len(places):
        return None
    places = places / max(float(np.abs(places).max()), np.finfo(np.float64).tiny)
    spread = places - places.mean()
    length = float(np.linalg.norm(spread))
    if length < _FLAT_BELOW:
        spread, length = np.ones(CURVE_DIMENSION), CURVE_DIMENSION**0.5
    direction: np.ndarray = spread / length
    return direction
