"""Which run is meant: ``model/name``, or the beginning of its id; and which metric of it."""

from __future__ import annotations

import json
import re
import uuid
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Text, cast, false, or_, select
from sqlalchemy.orm import joinedload

from arc_halo.errors import MetricError, MetricNotFound, RunNotFound
from arc_halo.registry.naming import find_model, named
from arc_halo.schema import Model, ModelAlias, TrainingSession
from arc_halo.schema.columns import TENANT_ID
from arc_halo.training.keys import SCOPES, SeriesKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session

_ID: Final = re.compile(r"[0-9a-f-]{4,36}")
_NEAR: Final = 5
_NAMES: Final = 500
"""How many are asked for at once; PostgreSQL returns up to 1,664 columns."""
_ASKED: Final = 1000
"""How many of the newest runs are looked through for near names."""


def find_run(session: Session, reference: TrainingSession | uuid.UUID | str) -> TrainingSession:
    """The run of a reference, its model loaded with it.

    ``model/name``, where ``model`` may be ``name@version`` or ``name@alias``; a name alone is the newest version that
    has such a run. Or an id, of which four and more of its first characters are enough where they tell it apart.

    Raises
    ------
    RunNotFound
        There is none, or several ids begin so; the message lists those that come near.

    Examples
    --------
    >>> find_run(session, "minilm/tune").status  # doctest: +SKIP
    'completed'
    """
    if isinstance(reference, TrainingSession):
        return reference
    if isinstance(reference, uuid.UUID):
        runs = _runs(session, TrainingSession.id == reference)
    elif not reference.isprintable():
        raise RunNotFound(f"no training run {reference!r}; names are of printable characters")
    else:
        runs = _runs(session, _is_called(reference))[:1] or _runs_by_id(session, reference.lower())
    if len(runs) > 1:
        ids = ", ".join(f"{each.id} ({run_name(each)})" for each in runs[:_NEAR])
        raise RunNotFound(f"several ids begin with {str(reference)!r}: {ids}; give more of it")
    if not runs:
        raise RunNotFound(f"no training run {str(reference)!r}; {_near_runs(session, str(reference))}")
    return runs[0]


def find_trained(session: Session, model: Model | uuid.UUID | str, run: str | None) -> Model:
    """The model that a run of a name trains: by a name without a version, the newest version that has such a run.

    So a script goes on though another version was stored meanwhile. Where no version has such a run, it is the newest.

    Raises
    ------
    ModelNotFound
        There is no such model.
    """
    found = find_model(session, model)
    if run is None or not isinstance(model, str) or found.name != model:
        return found
    trained = session.scalars(
        _ordered((Model.name == found.name) & (TrainingSession.name == run)).limit(1)
    ).one_or_none()
    return found if trained is None else trained.model


def runs_meant(
    session: Session,
    references: Iterable[TrainingSession | uuid.UUID | str] | TrainingSession | uuid.UUID | str,
) -> list[TrainingSession]:
    """The runs of references, or of the one, in their order, each once, as `find_run` finds them.

    Names and ids are a query each, however many.

    Raises
    ------
    RunNotFound
        One of them means none.
    """
    if isinstance(references, TrainingSession | uuid.UUID | str):
        references = [references]
    asked = list(references)
    ids = dict(_ids_by_name(session, [each for each in asked if isinstance(each, str) and each.isprintable()]))
    wanted = [*ids.values(), *(each for each in asked if isinstance(each, uuid.UUID))]
    runs = session.scalars(_ordered(TrainingSession.id.in_(wanted))).all() if wanted else []
    by_id = {each.id: each for each in runs}

    def meant(reference: TrainingSession | uuid.UUID | str) -> TrainingSession:
        if isinstance(reference, TrainingSession):
            return reference
        run_id = ids.get(reference) if isinstance(reference, str) else reference
        known = by_id.get(run_id) if run_id is not None else None
        return known or find_run(session, reference)  # the beginning of an id, or an error

    return list({each.id: each for each in map(meant, asked)}.values())


def _ids_by_name(session: Session, references: Sequence[str]) -> Iterator[tuple[str, uuid.UUID]]:
    names = list(dict.fromkeys(references))
    for some in (names[at : at + _NAMES] for at in range(0, len(names), _NAMES)):
        ids = (
            _ordered(_is_called(each)).with_only_columns(TrainingSession.id).limit(1).scalar_subquery() for each in some
        )
        found = session.execute(select(*ids)).one()
        yield from ((name, run_id) for name, run_id in zip(some, found, strict=True) if run_id is not None)


def run_name(run: TrainingSession) -> str:
    """What a run is called where a version must be told from others: ``model@version/name``."""
    return f"{run.model.name}@{run.model.version}/{run.name}"


def model_condition(model: Model | uuid.UUID | str) -> ColumnElement[bool]:
    """The condition for runs of a model; a name alone means all its versions."""
    if isinstance(model, str):
        return _is_model(model) if model.isprintable() else false()
    return TrainingSession.model_id == (model.id if isinstance(model, Model) else model)


def _runs(session: Session, condition: ColumnElement[bool]) -> Sequence[TrainingSession]:
    return session.scalars(_ordered(condition).limit(_NEAR + 1)).all()


def _ordered(condition: ColumnElement[bool]) -> Select[TrainingSession]:
    return (
        select(TrainingSession)
        .join(TrainingSession.model)
        .where(TrainingSession.tenant_id == TENANT_ID, condition)
        .order_by(Model.created_at.desc(), Model.id.desc(), TrainingSession.id.desc())
        .options(joinedload(TrainingSession.model))
    )


def _is_called(reference: str) -> ColumnElement[bool]:
    """Names may have slashes themselves, so each of them may be the one between model and run."""
    parts = [(reference[:at], reference[at + 1 :]) for at, letter in enumerate(reference) if letter == "/"]
    return or_(false(), *(_is_model(model) & (TrainingSession.name == name) for model, name in parts))


def _is_model(reference: str) -> ColumnElement[bool]:
    name, at, selector = reference.rpartition("@")
    if not at:
        return named(Model, reference)
    is_version = Model.version == selector
    return named(Model, name) & (is_version | Model.aliases.any(ModelAlias.alias == selector))


def _runs_by_id(session: Session, prefix: str) -> Sequence[TrainingSession]:
    if not _ID.fullmatch(prefix):
        return []
    return _runs(session, cast(TrainingSession.id, Text).startswith(prefix, autoescape=True))


def _near_runs(session: Session, reference: str) -> str:
    newest = (
        select(Model.name, TrainingSession.name)
        .join(TrainingSession.model)
        .where(TrainingSession.tenant_id == TENANT_ID)
        .order_by(TrainingSession.id.desc())
        .limit(_ASKED)
    )
    known = list(dict.fromkeys(f"{model}/{name}" for model, name in session.execute(newest)))
    if not known:
        return "the database holds no run; training_run() begins one"
    return _near(reference, known, "there are")


def parse_metric(metric: str | SeriesKey) -> list[tuple[str, str, dict[str, Any]]]:
    """What ``loss``, ``validation/loss`` or ``train/loss {"rank": 1}`` may be: each time name, scope and context.

    A name without a scope is of the scope ``train``; one that looks as if it had a scope may also be such a name. A
    `SeriesKey` is itself.

    Raises
    ------
    MetricError
        What stands in braces is no JSON object.
    """
    if isinstance(metric, SeriesKey):
        name, scope, context = metric
        return [(name, scope, json.loads(context))]
    name, brace, rest = metric.partition(" {")
    try:
        context = json.loads("{" + rest) if brace else {}
    except ValueError as error:
        raise MetricError(f"the context of {metric!r} is no JSON object: {error}; quote its keys") from error
    scope, slash, short = name.partition("/")
    keys = [(name, "train", context)]
    return [*keys, (short, scope, context)] if slash and scope in SCOPES else keys


def metric_not_found(run: TrainingSession, metric: str, known: Iterable[str]) -> MetricNotFound:
    """The error for a metric that a run has not recorded, with those that come near."""
    names = sorted(set(known))
    hint = _near(metric, names, "it has") if names else "it has recorded nothing"
    return MetricNotFound(f"{run_name(run)} has no metric {metric!r}; {hint}")


def nowhere_recorded(metric: str, known: Iterable[str]) -> MetricNotFound:
    """The error for a metric that no run has recorded, with those that come near, of whatever scope."""
    spelled: dict[str, list[str]] = {}
    for label in sorted(set(known)):
        for form in (label, label.partition("/")[2]):
            spelled.setdefault(form, []).append(label.removeprefix("train/"))
    names = list(dict.fromkeys(name for either in spelled.values() for name in either))
    near = [name for form in get_close_matches(metric, spelled, _NEAR) for name in spelled[form]]
    if near:
        hint = f"did you mean {' or '.join(list(dict.fromkeys(near))[:_NEAR])}?"
    else:
        hint = _near(metric, names, "there are") if names else "they have recorded nothing"
    return MetricNotFound(f"no run has recorded {metric!r}; {hint}")


def _near(given: str, known: Sequence[str], otherwise: str) -> str:
    if near := get_close_matches(given, known, _NEAR):
        return f"did you mean {' or '.join(near)}?"
    return f"{otherwise} {', '.join(known[:_NEAR])}" + (", ..." if len(known) > _NEAR else "")
