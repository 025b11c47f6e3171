"""What members answered alone in stored operations, and how good that was."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from arc_halo.errors import FusionError
from arc_halo.fusion.members.protocol import Answer, Question, TokenChoice
from arc_halo.fusion.metrics.quality import ALONE_ROLES
from arc_halo.fusion.operations.calls import Call, Member
from arc_halo.fusion.plan import Plan, load_plan
from arc_halo.fusion.strategies.cascade import Confidence, confidence

if TYPE_CHECKING:
    import datetime as dt
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.fusion.members.protocol import Answering

DEFAULT_LIMIT: Final = 10_000
# Tokens with their probabilities are most of an answer, and come only where confidences are made of them. Replays are
# no new operations; what marks texts of others answers nothing.
_CALLS: Final = text("""
SELECT o.id AS operation_id, o.input ->> 'prompt' AS question, c.member_id, c.position,
       c.answer ->> 'text' AS said, c.quality, c.score, c.cost,
       c.prompt_token_count + c.generated_token_count AS tokens, c.latency_seconds, c.propensity,
       CASE WHEN :with_choices THEN c.answer -> 'choices' END AS choices,
       CASE WHEN :with_failed
            THEN (SELECT count(*) FROM arc_halo.fusion_operation_members AS f
                   WHERE f.operation_id = o.id AND f.member_id = c.member_id AND f.status <> 'answered'
                     AND f.prompt ->> 'prompt' = o.input ->> 'prompt')
            ELSE 0 END AS failed_count
  FROM (SELECT p.id, p.started_at, p.input
          FROM arc_halo.fusion_operations AS p
         WHERE p.reactor_id = :reactor_id AND p.replay_of IS NULL
           AND (CAST(:since AS timestamptz) IS NULL OR p.started_at >= :since)
           AND EXISTS (SELECT FROM arc_halo.fusion_operation_members AS q
                        WHERE q.operation_id = p.id AND q.quality IS NOT NULL)
         ORDER BY p.started_at DESC, p.id DESC
         LIMIT :limit) AS o
  JOIN arc_halo.fusion_operation_members AS c ON c.operation_id = o.id
 WHERE c.status = 'answered' AND c.quality IS NOT NULL AND c.role = ANY(:roles)
   AND c.prompt ->> 'prompt' = o.input ->> 'prompt'
   AND c.answer #> '{details,scores}' IS NULL
 ORDER BY o.started_at, o.id, c.position
""").bindparams(bindparam("roles", type_=ARRAY(TEXT)))


@dataclass(frozen=True)
class Outcomes:
    """Members' own answers; floats of shape [operations, members], NaN where a member gave none of its own.

    Attributes
    ----------
    members
        Names, in the order of priority.
    quality, confidence, propensity
        Means over the answers of a member in an operation.
    cost, tokens
        Sums over them, as far as members count.
    latency_seconds
        Of the slowest of them.
    calls
        Of each operation, in the order of members; their answers have the text, and tokens where they were asked for.
    is_held_out
        Operations of half of the questions, by a hash of their text: nothing is fitted to those that are reported, nor
        to the same question asked another time. Bool of shape [operations].
    questions
        Digests of what was asked, the same for the same question: what belongs together when intervals are made.
    """

    operation_ids: tuple[uuid.UUID, ...]
    questions: tuple[bytes, ...]
    members: tuple[str, ...]
    quality: np.ndarray
    confidence: np.ndarray
    cost: np.ndarray
    tokens: np.ndarray
    latency_seconds: np.ndarray
    propensity: np.ndarray
    calls: tuple[tuple[Call, ...], ...]
    is_held_out: np.ndarray

    def __len__(self) -> int:
        return len(self.operation_ids)


def logged_outcomes(
    session: Session,
    reactor: Plan | uuid.UUID | str,
    *,
    since: dt.datetime | None = None,
    limit: int = DEFAULT_LIMIT,
    measure: Confidence | None = None,
    extract: str | None = None,
) -> Outcomes:
    """The newest operations in which somebody's answer has a quality, by one statement.

    Parameters
    ----------
    reactor
        Its name, id or plan; members that are disabled are not among the outcomes.
    measure, extract
        Confidences as `arc_halo.fusion.strategies.cascade.confidence` measures them; by default the scores that the
        strategy gave.

    Raises
    ------
    FusionError
        The limit is less than 1.
    ReactorNotFound
        There is no such reactor.
    """
    plan = reactor if isinstance(reactor, Plan) else load_plan(session, reactor)
    if limit < 1:
        raise FusionError(f"a limit is 1 or more, not {limit}")
    asked = {
        "reactor_id": plan.id,
        "since": since,
        "limit": limit,
        "roles": list(ALONE_ROLES),
        "with_failed": measure == "self_agreement",  # samples that failed agree with none
        "with_choices": measure in ("mean_log_probability", "margin"),
    }
    known = {each.id: Member(each, cast("Answering", None)) for each in plan.members if each.role in ALONE_ROLES}
    rows: dict[uuid.UUID, dict[uuid.UUID, list[Any]]] = defaultdict(lambda: defaultdict(list))
    questions: dict[uuid.UUID, bytes] = {}
    for row in session.execute(_CALLS, asked):
        if row.member_id in known:
            rows[row.operation_id][row.member_id].append(row)
            if row.operation_id not in questions:
                questions[row.operation_id] = _digest(row.question)
    return _outcomes(rows, tuple(questions.values()), known, measure, extract)


def is_held_out(question: str) -> bool:
    """Whether a question is of the half that nothing is fitted to."""
    return _is_odd(_digest(question))


def _digest(question: str) -> bytes:
    return hashlib.sha256(question.encode()).digest()


def _is_odd(digest: bytes) -> bool:
    return bool(digest[0] & 1)


def _outcomes(
    rows: Mapping[uuid.UUID, Mapping[uuid.UUID, list[Any]]],
    questions: tuple[bytes, ...],
    members: Mapping[uuid.UUID, Member],
    measure: Confidence | None,
    extract: str | None,
) -> Outcomes:
    tables = {
        name: np.full((len(rows), len(members)), np.nan)
        for name in ("quality", "confidence", "cost", "tokens", "latency_seconds", "propensity")
    }
    calls: list[tuple[Call, ...]] = []
    for at, of_operation in enumerate(rows.values()):
        own: list[Call] = []
        for place, (member_id, member) in enumerate(members.items()):
            found = of_operation.get(member_id)
            if not found:
                continue
            made = [_call(row, member) for row in found]
            own += made
            tables["quality"][at, place] = _mean([row.quality for row in found])
            tables["cost"][at, place] = _sum([row.cost for row in found])
            tables["tokens"][at, place] = _sum([row.tokens for row in found])
            tables["latency_seconds"][at, place] = max(row.latency_seconds or 0.0 for row in found)
            tables["propensity"][at, place] = _mean([row.propensity for row in found])
            failed = [Call(-1, member, Question(""), status="failed")] * found[0].failed_count
            sure = (
                _mean([row.score for row in found])
                if measure is None
                else confidence([*made, *failed], measure, extract=extract)
            )
            tables["confidence"][at, place] = np.nan if sure is None else sure
        calls.append(tuple(own))
    return Outcomes(
        operation_ids=tuple(rows),
        questions=questions,
        members=tuple(each.name for each in members.values()),
        calls=tuple(calls),
        is_held_out=np.array([_is_odd(each) for each in questions], bool),
        **tables,
    )


def _call(row: Any, member: Member) -> Call:
    choices = tuple(TokenChoice(*each) for each in row.choices or ())
    answer = Answer(row.said, choices)
    return Call(row.position, member, Question(""), status="answered", answer=answer, quality=row.quality)


def _mean(values: Sequence[float | None]) -> float:
    known = [each for each in values if each is not None]
    return sum(known) / len(known) if known else np.nan


def _sum(values: Sequence[float | None]) -> float:
    return float(sum(each for each in values if each is not None)) if None not in values else np.nan
