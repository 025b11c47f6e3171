"""Questions to stored attention: what heads do, over the requests of a session or of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from sqlalchemy import func, select

from arc_halo.errors import ConfigurationError
from arc_halo.inference.attention.layers import ModelLayers, find_source
from arc_halo.schema import AttentionPattern, InferenceSession, TransformerLayer

if TYPE_CHECKING:
    import uuid

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import InstrumentedAttribute, Session

    from arc_halo.inference.attention.layers import LayerKey
    from arc_halo.schema import Model

    Source: TypeAlias = InferenceSession | Model | uuid.UUID | str

Sort: TypeAlias = Literal["layer", "entropy", "distance", "first", "previous", "induction"]
SORTS: Final[tuple[Sort, ...]] = get_args(Sort)

_COLUMNS: Final[dict[str, InstrumentedAttribute[Any]]] = {
    "entropy": AttentionPattern.mean_entropy,
    "distance": AttentionPattern.mean_distance,
    "first": AttentionPattern.first_token_share,
    "previous": AttentionPattern.previous_token_share,
    "induction": AttentionPattern.induction_share,
}


@dataclass(frozen=True, slots=True)
class HeadScore:
    """A head, and the mean of a figure over the ``request_count`` requests that have it."""

    layer_path: str
    layer_index: int | None
    head_index: int
    score: float
    request_count: int


@dataclass(frozen=True, slots=True)
class HeadFigures:
    """A head, and the means of its figures over its requests; units are those of `AttentionSummary`."""

    layer_path: str
    layer_index: int | None
    head_index: int
    request_count: int
    entropy: float
    distance: float
    first: float
    previous: float | None
    induction: float | None


def heads_looking_at_first_token(
    session: Session, source: Source, *, min_score: float = 0.0, limit: int | None = None
) -> list[HeadScore]:
    """Heads by the share of attention on the first token, the largest first: those with a sink (Xiao et al., 2023).

    Parameters
    ----------
    source
        A model, or an inference session: averaged over the requests of all sessions of the one, or over those of the
        other.
    min_score
        Leave out heads below it.
    limit
        How many at most.

    Raises
    ------
    NotFound
        There is no such model or inference session.
    """
    return _scores(session, "first", source, min_score, limit)


def previous_token_heads(
    session: Session, source: Source, *, min_score: float = 0.0, limit: int | None = None
) -> list[HeadScore]:
    """Heads by the share of attention on the token before; otherwise as `heads_looking_at_first_token`."""
    return _scores(session, "previous", source, min_score, limit)


def induction_heads(
    session: Session, source: Source, *, min_score: float = 0.0, limit: int | None = None
) -> list[HeadScore]:
    """Heads by the share of attention behind earlier places of the same token (Olsson et al., 2022).

    Requests in which no token is repeated do not count; otherwise as `heads_looking_at_first_token`. A text of random
    tokens given twice tells most: nothing but induction then finds what follows.
    """
    return _scores(session, "induction", source, min_score, limit)


def head_figures(
    session: Session, source: Source, *, layer: LayerKey | None = None, sort: Sort = "layer"
) -> list[HeadFigures]:
    """All figures of each head, in the order of the model, or by one of them with the largest first.

    Raises
    ------
    NotFound
        There is no such model or inference session.
    CacheError
        The model has no such layer.
    ConfigurationError
        There is no such order.
    """
    if sort not in SORTS:
        raise ConfigurationError(f"heads are sorted by {', '.join(SORTS)}, not by {sort!r}")
    found = find_source(session, source)
    means = [func.avg(column).label(name) for name, column in _COLUMNS.items()]
    statement = _heads(found).add_columns(func.count().label("request_count"), *means)
    if layer is not None:
        model_id = found.model_id if isinstance(found, InferenceSession) else found.id
        statement = statement.where(TransformerLayer.id == ModelLayers(session, model_id).find(layer).id)
    if sort != "layer":
        statement = statement.order_by(None).order_by(func.avg(_COLUMNS[sort]).desc().nulls_last(), *_ORDER)
    return [HeadFigures(**row) for row in session.execute(statement).mappings()]


_ORDER: Final = (TransformerLayer.position, AttentionPattern.head_index)


def _heads(source: InferenceSession | Model) -> Select[str, int | None, int]:
    """Each head of which a request is stored; only figures of rows are read, not their arrays."""
    place = (TransformerLayer.path, TransformerLayer.layer_index, AttentionPattern.head_index)
    is_meant: ColumnElement[bool] = (
        AttentionPattern.inference_session_id == source.id
        if isinstance(source, InferenceSession)
        else TransformerLayer.model_id == source.id
    )
    return (
        select(place[0].label("layer_path"), place[1], place[2])
        .join_from(AttentionPattern, TransformerLayer, AttentionPattern.layer_id == TransformerLayer.id)
        .where(is_meant)
        .group_by(TransformerLayer.id, AttentionPattern.head_index)
        .order_by(*_ORDER)
    )


def _scores(session: Session, name: str, source: Source, min_score: float, limit: int | None) -> list[HeadScore]:
    score = func.avg(_COLUMNS[name])
    statement = (
        _heads(find_source(session, source))
        .add_columns(score.label("score"), func.count(_COLUMNS[name]).label("request_count"))
        .having(score >= min_score)
        .order_by(None)
        .order_by(score.desc(), *_ORDER)
        .limit(limit)
    )
    return [HeadScore(**row) for row in session.execute(statement).mappings()]
