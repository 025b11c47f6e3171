"""Weights and thresholds fitted to what a reactor did so far, and other ways of choosing looked at.

Operations of half of the questions are fitted to, and those of the other half are what is reported
(`outcomes.is_held_out`): figures of the first promise too much. Nothing is written without ``apply``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from sqlalchemy import select, text, update

from arc_halo.errors import FusionError
from arc_halo.fusion.creating import find_reactor
from arc_halo.fusion.learning.intervals import Interval, bootstrap, paired_bootstrap
from arc_halo.fusion.learning.outcomes import DEFAULT_LIMIT, Outcomes, logged_outcomes
from arc_halo.fusion.learning.thresholds import fit_cascade, run_cascade
from arc_halo.fusion.learning.values import Estimate, estimate_value
from arc_halo.fusion.learning.vote_weights import fit_vote_weights
from arc_halo.fusion.plan import load_plan
from arc_halo.fusion.strategies.agreement import agreements, weights_that_count
from arc_halo.fusion.strategies.cascade import NEVER, Cascade
from arc_halo.fusion.strategies.routing import Routing
from arc_halo.schema import Reactor, ReactorModel

if TYPE_CHECKING:
    import datetime as dt
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.fusion.operations.calls import Call
    from arc_halo.fusion.plan import Plan

LEAST_COUNT: Final = 20
"""Operations of each half: with less, intervals by resampling are too narrow to go by."""
ALWAYS: Final = "always "
_ADVICE: Final = "ask questions whose answers are known (a reference), give a scorer, or tell qualities afterwards"
_ROUTED: Final = text("""
SELECT o.quality, c.propensity, m.name AS member, t.note -> 'values' AS values, o.started_at,
       coalesce(t.note ->> 'member', m.name) AS member_then,
       CAST(o.config -> 'options' ->> 'epsilon' AS double precision) AS epsilon
  FROM arc_halo.fusion_operations AS o
  JOIN arc_halo.fusion_operation_members AS c ON c.operation_id = o.id AND c.position = 0
  JOIN arc_halo.reactor_models AS m ON m.id = c.member_id
 CROSS JOIN LATERAL (SELECT n AS note FROM jsonb_array_elements(o.trace) AS n
                      WHERE n ->> 'kind' = 'routed' LIMIT 1) AS t
 WHERE o.reactor_id = :reactor_id AND o.strategy = 'routing' AND o.replay_of IS NULL
   AND o.quality IS NOT NULL AND c.propensity IS NOT NULL
   AND (CAST(:since AS timestamptz) IS NULL OR o.started_at >= :since)
 ORDER BY o.started_at DESC, o.id DESC
 LIMIT :limit
""")
# Those of the same time that have no quality: if they came to nothing because of a member, what is left flatters it.
_UNMEASURED: Final = text("""
SELECT count(*) AS total, count(*) FILTER (WHERE o.output IS NULL) AS unanswered
  FROM arc_halo.fusion_operations AS o
 WHERE o.reactor_id = :reactor_id AND o.strategy = 'routing' AND o.replay_of IS NULL AND o.quality IS NULL
   AND (CAST(:since AS timestamptz) IS NULL OR o.started_at >= :since)
""")


@dataclass(frozen=True, slots=True)
class Fit:
    """What was fitted, and what it is worth on operations that it was not fitted to.

    Attributes
    ----------
    before, after
        Weights or thresholds by members' names.
    quality_before, quality_after, gain
        Mean quality with each, and of the difference, of the same operations.
    cost_before, cost_after
        Mean cost of an operation; None where nothing is known of it.
    fitted_count, held_out_count
        Operations of each half. Intervals draw questions, with all operations that asked them.
    is_applied
        Whether the database has it.
    used
        What it was made of, in sentences.
    """

    what: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    quality_before: Interval
    quality_after: Interval
    gain: Interval
    cost_before: Interval | None
    cost_after: Interval | None
    fitted_count: int
    held_out_count: int
    is_applied: bool
    used: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RouteValue:
    """What another way of choosing members would have been worth.

    Attributes
    ----------
    logged
        Mean quality of what was chosen.
    estimate
        Of the policy, by the probabilities with which members were chosen then.
    operation_count
        Operations that both are made of, those whose quality is known.
    unmeasured_count, unanswered_count
        Operations of the same time that are left out, as their quality is not known, and those of them that
        gave no answer. They are not told by chance: a member that fails on hard questions looks better than it is.
    """

    policy: str
    logged: Interval
    estimate: Estimate
    operation_count: int
    unmeasured_count: int
    unanswered_count: int


def fit_votes(
    session: Session,
    reactor: Reactor | uuid.UUID | str,
    *,
    choices: int = 2,
    extract: str | None = None,
    since: dt.datetime | None = None,
    limit: int = DEFAULT_LIMIT,
    apply: bool = False,
) -> Fit:
    """Weights of votes by how often each member was right; see `fit_vote_weights`.

    Parameters
    ----------
    choices
        How many answers there are to choose from.
    extract
        What of an answer is compared; by default as the reactor's strategy does.
    apply
        Write them to the members.

    Raises
    ------
    FusionError
        There are too few operations with outcomes, or qualities that are no shares from 0 to 1.
    ReactorNotFound
        There is no such reactor.
    """
    plan = load_plan(session, find_reactor(session, reactor).id)
    outcomes = logged_outcomes(session, plan, since=since, limit=limit)
    whole = np.isfinite(outcomes.quality).sum(axis=1) >= 2  # noqa: PLR2004  # one vote is none
    fitted, held = _halves(plan, outcomes, whole, "two members answered alone")
    shares = outcomes.quality[np.isfinite(outcomes.quality)]
    if ((shares < 0) | (shares > 1)).any():
        raise FusionError("votes are fitted to qualities from 0 to 1, as the share of right answers")
    expression = plan.config.options.get("extract") if extract is None else extract
    weights = fit_vote_weights(outcomes.quality[fitted], choices=choices)
    after = dict(zip(outcomes.members, map(float, weights), strict=True))
    before = {each.name: each.weight for each in plan.members if each.name in after}
    told = [outcomes.calls[at] for at in np.flatnonzero(held)]
    were, are = (_vote_qualities(told, each, expression) for each in (before, after))
    if apply:
        for each in plan.members:
            if each.name in after:
                session.execute(update(ReactorModel).where(ReactorModel.id == each.id).values(weight=after[each.name]))
    used = f"answers of {len(after)} members in {int(fitted.sum())} operations, as votes among {choices} answers"
    return _fit(
        "votes",
        values=(before, after),
        quality=(were, are),
        cost=None,
        halves=(fitted, held),
        questions=outcomes.questions,
        is_applied=apply,
        used=(used,),
    )


def fit_cascade_thresholds(
    session: Session,
    reactor: Reactor | uuid.UUID | str,
    *,
    least_quality: float | None = None,
    most_cost: float | None = None,
    since: dt.datetime | None = None,
    limit: int = DEFAULT_LIMIT,
    apply: bool = False,
) -> Fit:
    """Thresholds from operations in which all members of the cascade answered alone; see `fit_cascade`.

    A cascade that stops early leaves no such operations: they come of the strategy ``parallel`` or ``ensemble``, or of
    a cascade whose thresholds nothing reaches. Confidences are measured as the strategy measures them.

    Parameters
    ----------
    least_quality, most_cost
        As of `fit_cascade`.
    apply
        Write them into the reactor's config.

    Raises
    ------
    FusionError, ReactorNotFound
        There are too few such operations; it is no cascade that could have them; there is no such reactor.
    """
    row = find_reactor(session, reactor)
    plan = load_plan(session, row.id)
    is_cascade = plan.strategy == Cascade.name
    if apply and not is_cascade:
        raise FusionError(f"{plan.name} is of the strategy {plan.strategy}, and thresholds are a cascade's: look only")
    cascade = Cascade.of(plan.config.options) if is_cascade else Cascade()
    outcomes = logged_outcomes(
        session, plan, since=since, limit=limit, measure=cascade.measure, extract=cascade.extract
    )
    names, places, whole, what = _whole_cascades(plan, cascade, outcomes)
    quality, sure = outcomes.quality[:, places], outcomes.confidence[:, places]
    fitted, held = _halves(plan, outcomes, whole, what)
    cost, cost_name = _costs(outcomes, places, whole)
    found = fit_cascade(sure[fitted], quality[fitted], cost[fitted], least_quality=least_quality, most_cost=most_cost)
    before = {name: cascade.thresholds.get(name, cascade.threshold) for name in names[:-1]}
    after = {name: min(each, NEVER) for name, each in zip(names, found.thresholds, strict=False)}
    were, are = (run_cascade(sure[held], quality[held], cost[held], tuple(each.values())) for each in (before, after))
    if apply:
        _write_thresholds(session, row, cascade.thresholds | after)
    used = (
        f"{int(fitted.sum())} operations in which {what}, costs being {cost_name}",
        f"there they gave a quality of {found.quality:.4g} at a cost of {found.cost:.4g}",
    )
    return _fit(
        "thresholds",
        values=(before, after),
        quality=(were[0], are[0]),
        cost=(were[1], are[1]),
        halves=(fitted, held),
        questions=outcomes.questions,
        is_applied=apply,
        used=used,
    )


def evaluate_routes(
    session: Session,
    reactor: Reactor | uuid.UUID | str,
    policy: str = "greedy",
    *,
    since: dt.datetime | None = None,
    limit: int = DEFAULT_LIMIT,
) -> RouteValue:
    """What a policy would have been worth, from operations of the strategy routing; see `estimate_value`.

    Operations whose quality is not known are left out, and counted: the estimate is one of those that were measured.

    Parameters
    ----------
    policy
        ``greedy``, the best by what was known then, without chance; or ``always NAME``, one member.

    Raises
    ------
    FusionError
        There are too few such operations, no such policy or member, or nothing was ever chosen that it chooses.
    ReactorNotFound
        There is no such reactor.
    """
    row = find_reactor(session, reactor)
    name = policy.removeprefix(ALWAYS)
    names = session.scalars(select(ReactorModel.name).where(ReactorModel.reactor_id == row.id)).all()
    if policy != "greedy" and (name == policy or name not in names):
        raise FusionError(
            f"a policy is 'greedy', or 'always' with one of {', '.join(sorted(names))}; not {policy!r:.80}"
        )
    rows = session.execute(_ROUTED, {"reactor_id": row.id, "since": since, "limit": limit}).all()
    if len(rows) < LEAST_COUNT:
        raise FusionError(
            f"{row.name} has {len(rows)} operations with outcomes in which a member was chosen by the strategy "
            f"routing, and {LEAST_COUNT} are the least to learn from: {_ADVICE}"
        )
    quality = np.array([each.quality for each in rows], np.float64)
    propensity = np.array([each.propensity for each in rows], np.float64)
    chooses = [_greedy_probability(each) if policy == "greedy" else each.member == name for each in rows]
    estimate = estimate_value(quality, propensity, np.array(chooses, np.float64))
    begins = since if len(rows) < limit else rows[-1].started_at
    left = session.execute(_UNMEASURED, {"reactor_id": row.id, "since": begins}).one()
    return RouteValue(policy, bootstrap(quality), estimate, len(rows), left.total, left.unanswered)


def _greedy_probability(row: Any) -> float:
    """With which the member that was chosen would have been without exploring."""
    epsilon = Routing.epsilon if row.epsilon is None else row.epsilon
    if epsilon < 1:  # then the propensity tells, also where several seemed equally good
        return float(math.isclose(row.propensity, epsilon / len(row.values) + 1 - epsilon, rel_tol=1e-9))
    best = [name for name, value in row.values.items() if value == max(row.values.values())]
    return (row.member_then in best) / len(best)


def _halves(plan: Plan, outcomes: Outcomes, is_whole: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    fitted, held = is_whole & ~outcomes.is_held_out, is_whole & outcomes.is_held_out
    if min(fitted.sum(), held.sum()) < LEAST_COUNT:
        raise FusionError(
            f"{plan.name} has {is_whole.sum()} operations with outcomes in which {what}: {fitted.sum()} in the half "
            f"of the questions that is fitted to, and {held.sum()} in the other; {LEAST_COUNT} in each are the least "
            f"to learn from: {_ADVICE}"
        )
    return fitted, held


def _vote_qualities(told: Sequence[Sequence[Call]], weights: Mapping[str, float], extract: str | None) -> np.ndarray:
    """Quality of the answer that a vote with these weights gives in each operation, as the strategy ensemble votes."""
    found = []
    for calls in told:
        names = [call.member.name for call in calls]
        counted = dict(zip(names, weights_that_count([weights[name] for name in names]), strict=True))
        # Samples of a member share its weight.
        shared = {name: counted[name] / names.count(name) for name in counted}
        groups = agreements(calls, extract=extract, weights=shared)
        found.append(0.0 if not groups else groups[0].calls[0].quality or 0.0)
    return np.array(found, np.float64)


def _whole_cascades(plan: Plan, cascade: Cascade, outcomes: Outcomes) -> tuple[list[str], list[int], np.ndarray, str]:
    """Members of the cascade, their columns, the operations in which all answered, and what these have."""
    names = [each.name for each in plan.members if each.role in ("primary", "secondary")]
    if len(names) < 2:  # noqa: PLR2004
        raise FusionError(f"a cascade has two members or more; {plan.name} has {len(names)} that answer")
    places = [outcomes.members.index(name) for name in names]
    whole = np.isfinite(outcomes.quality[:, places]).all(axis=1)
    whole &= np.isfinite(outcomes.confidence[:, places[:-1]]).all(axis=1)  # the last one's answer is taken anyway
    if cascade.measure == "self_agreement":
        whole &= np.array([_is_sampled(each, names) for each in outcomes.calls], bool)
    return names, places, whole, f"all of {', '.join(names)} answered alone with a confidence by {cascade.measure}"


def _is_sampled(calls: Sequence[Call], names: Sequence[str]) -> bool:
    told = [call.member.name for call in calls]
    return all(told.count(name) > 1 for name in names[:-1])


def _costs(outcomes: Outcomes, places: Sequence[int], whole: np.ndarray) -> tuple[np.ndarray, str]:
    """The first that is known of all answers."""
    for name in ("cost", "tokens", "latency_seconds"):
        found: np.ndarray = getattr(outcomes, name)[:, places]
        if np.isfinite(found[whole]).all():
            return found, "seconds until the answer" if name == "latency_seconds" else name
    raise FusionError("not even the latencies of all answers are known")


def _write_thresholds(session: Session, row: Reactor, thresholds: Mapping[str, float]) -> None:
    session.refresh(row, with_for_update=True)  # others may change another part of the config
    options = dict(row.config.get("options", {})) | {"thresholds": dict(thresholds)}
    row.config = dict(row.config) | {"options": options}
    session.flush()


def _fit(
    what: str,
    *,
    values: tuple[Mapping[str, float], Mapping[str, float]],
    quality: tuple[np.ndarray, np.ndarray],
    cost: tuple[np.ndarray, np.ndarray] | None,
    halves: tuple[np.ndarray, np.ndarray],
    questions: Sequence[bytes],
    is_applied: bool,
    used: tuple[str, ...],
) -> Fit:
    groups = [question for question, is_held in zip(questions, halves[1], strict=True) if is_held]
    costs = (None, None) if cost is None else tuple(bootstrap(each, groups=groups) for each in cost)
    return Fit(
        what=what,
        before=values[0],
        after=values[1],
        quality_before=bootstrap(quality[0], groups=groups),
        quality_after=bootstrap(quality[1], groups=groups),
        gain=paired_bootstrap(quality[1], quality[0], groups=groups),
        cost_before=costs[0],
        cost_after=costs[1],
        fitted_count=int(halves[0].sum()),
        held_out_count=int(halves[1].sum()),
        is_applied=is_applied,
        used=used,
    )
