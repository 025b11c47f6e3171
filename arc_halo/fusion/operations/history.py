"""Operations read back: the newest, one of them, those that a model had a part in; and quality told later."""

from __future__ import annotations

import math
import re
import uuid
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, func, select, text, update
from sqlalchemy.dialects.postgresql import BYTEA, UUID
from sqlalchemy.orm import joinedload, selectinload

from arc_halo.errors import FusionError, OperationNotFound
from arc_halo.fusion.creating import find_reactor
from arc_halo.fusion.members.protocol import NOT_OWN
from arc_halo.fusion.metrics.quality import ALONE_ROLES, Standing, gain_and_gap
from arc_halo.fusion.operations.recording import store_metric
from arc_halo.registry.naming import find_model
from arc_halo.schema import FusionOperation, FusionOperationMember, Model, Reactor, ReactorMetric, ReactorStatus
from arc_halo.schema.columns import TENANT_ID

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

OPERATION_STATUSES: Final = ("completed", "failed", "timed_out", "cancelled")
_ID: Final = re.compile(r"[0-9a-f-]{4,36}")
_NEAR: Final = 5
_DIGITS: Final = 32  # of an id, without dashes
# Answers carry copies of the version and the weights that gave them, so this holds whatever the member is now. What
# did not answer (failed, skipped) had no part. An id is found by an index; digests have none, and are searched for.
_WITH_MODEL: Final = text("""
SELECT o.id AS operation_id, r.name AS reactor, o.started_at, o.status, o.input, o.output, o.quality,
       m.name AS member, c.role, c.position, c.answer, c.weights_digest,
       coalesce(o.output ->> 'member' = m.name, false) AS is_chosen
  FROM arc_halo.fusion_operation_members AS c
  JOIN arc_halo.fusion_operations AS o ON o.id = c.operation_id
  JOIN arc_halo.cognitive_fusion_reactors AS r ON r.id = o.reactor_id
  JOIN arc_halo.reactor_models AS m ON m.id = c.member_id
 WHERE o.tenant_id = :tenant_id AND c.status = 'answered'
   AND (c.model_id = :model_id OR c.weights_digest = :digest)
   AND (:reactor_id IS NULL OR o.reactor_id = :reactor_id)
 ORDER BY o.started_at DESC, o.id DESC, c.position
 LIMIT :limit
""").bindparams(
    bindparam("model_id", type_=UUID), bindparam("digest", type_=BYTEA), bindparam("reactor_id", type_=UUID)
)


@dataclass(frozen=True, slots=True)
class ModelUse:
    """An answer of a model within an operation.

    Attributes
    ----------
    member, role, position
        Of the call.
    answer
        What the model said.
    output
        What the reactor answered; None where it came to nothing.
    is_chosen
        Whether the joint answer is this member's, where the strategy chose one.
    """

    operation_id: uuid.UUID
    reactor: str
    started_at: dt.datetime
    status: str
    input: dict[str, Any]
    output: dict[str, Any] | None
    quality: float | None
    member: str
    role: str
    position: int
    answer: dict[str, Any]
    weights_digest: bytes | None
    is_chosen: bool


def operations_of(
    session: Session,
    reactor: Reactor | uuid.UUID | str,
    *,
    status: str | None = None,
    since: dt.datetime | None = None,
    limit: int = 30,
) -> Sequence[FusionOperation]:
    """The newest operations of a reactor, without their calls, which are read where they are looked at.

    Raises
    ------
    ReactorNotFound, FusionError
        There is no such reactor, or no such status.
    """
    if status is not None and status not in OPERATION_STATUSES:
        raise FusionError(f"no operation is {status!r:.80}; they are {', '.join(OPERATION_STATUSES)}")
    row = find_reactor(session, reactor)
    newest = select(FusionOperation).where(FusionOperation.reactor_id == row.id)
    if status is not None:
        newest = newest.where(FusionOperation.status == status)
    if since is not None:
        newest = newest.where(FusionOperation.started_at >= since)
    order = FusionOperation.started_at.desc(), FusionOperation.id.desc()
    return session.scalars(newest.order_by(*order).limit(limit)).all()


def find_operation(session: Session, reference: uuid.UUID | str) -> FusionOperation:
    """The operation of an id with its calls, their members and its reactor, by two statements.

    Parameters
    ----------
    reference
        An id; four and more of its first characters are enough where they tell it apart.

    Raises
    ------
    OperationNotFound
        There is none, or several ids begin so.
    """
    calls = selectinload(FusionOperation.members).joinedload(FusionOperationMember.member)
    whole = select(FusionOperation).options(joinedload(FusionOperation.reactor), calls)
    own = whole.where(FusionOperation.tenant_id == TENANT_ID)
    found: Sequence[FusionOperation] = ()
    if isinstance(reference, uuid.UUID):
        found = session.scalars(own.where(FusionOperation.id == reference)).all()
    elif _ID.fullmatch(reference.lower()) and len(reference.replace("-", "")) <= _DIGITS:
        digits = reference.lower().replace("-", "")
        # A range of the primary key, where a comparison of texts would read all operations.
        least, most = (uuid.UUID(digits.ljust(_DIGITS, each)) for each in "0f")
        begins = FusionOperation.id.between(least, most)
        found = session.scalars(own.where(begins).order_by(FusionOperation.id).limit(_NEAR + 1)).all()
    if len(found) > 1:
        ids = ", ".join(str(each.id) for each in found[:_NEAR])
        raise OperationNotFound(f"several ids begin with {reference!s}: {ids}; give more of it")
    if not found:
        raise OperationNotFound(
            f"no operation {str(reference)!r:.80}; write four or more characters of an id, as operations_of lists them"
        )
    return found[0]


def operations_with_model(
    session: Session,
    model: Model | uuid.UUID | str | bytes,
    *,
    reactor: Reactor | uuid.UUID | str | None = None,
    limit: int = 1000,
) -> list[ModelUse]:
    """All answers that a version had a part in, newest first: by one statement once it is found.

    Parameters
    ----------
    model
        As ``name@3``; or 32 bytes, the digest of weights, under whatever name they are: a search through all calls.
    reactor
        Of this one alone; by default of all.

    Raises
    ------
    ModelNotFound, ReactorNotFound
        There is no such model, or no such reactor.
    FusionError
        A digest is not of 32 bytes.
    """
    is_digest = isinstance(model, bytes)
    if isinstance(model, bytes) and len(model) != 32:  # noqa: PLR2004
        raise FusionError(f"a digest of weights is 32 bytes, not {len(model)}")
    asked = {
        "tenant_id": TENANT_ID,
        "model_id": None if isinstance(model, bytes) else find_model(session, model).id,
        "digest": model if is_digest else None,
        "reactor_id": None if reactor is None else find_reactor(session, reactor).id,
        "limit": limit,
    }
    return [ModelUse(**row) for row in session.execute(_WITH_MODEL, asked).mappings()]


def status_of(session: Session, reactor: Reactor | uuid.UUID | str) -> ReactorStatus:
    """A reactor's members, operations, latencies and last figures.

    Raises
    ------
    ReactorNotFound
        There is no such reactor.
    """
    row = find_reactor(session, reactor)
    own = select(ReactorStatus).where(ReactorStatus.reactor_id == row.id)
    return session.scalars(own.execution_options(populate_existing=True)).one()  # not what was read a while ago


def set_quality(
    session: Session,
    operation_id: uuid.UUID | str,
    quality: float,
    member_qualities: Mapping[str, float] | None = None,
) -> FusionOperation:
    """Tell how good an answer was, once somebody knows; gain and oracle gap follow from it.

    Parameters
    ----------
    operation_id
        As of `find_operation`.
    quality
        Of the joint answer, in the scale of the reactor's other qualities; 1 is best where it is a share.
    member_qualities
        By the member's name, of each of its answers to the question itself; those not named keep what they have.

    Raises
    ------
    OperationNotFound
        There is no such operation.
    FusionError
        The operation has no answer, a member gave none, or a quality is no finite number.
    """
    said = dict(member_qualities or {})
    for each in (quality, *said.values()):
        if not math.isfinite(each):
            raise FusionError(f"a quality is a finite number, not {each}")
    row = find_operation(session, operation_id)
    if row.output is None:
        raise FusionError(f"operation {row.id} {row.status}: it has no answer that could be good or bad")
    question = row.input.get("prompt")
    alone = [call for call in row.members if _is_alone(call, question)]
    if unknown := said.keys() - {call.member.name for call in alone}:
        raise FusionError(f"{', '.join(sorted(unknown))} gave no answer of its own in operation {row.id}")
    row.quality = float(quality)
    for call in alone:
        if call.member.name in said:
            call.quality = float(said[call.member.name])
    session.flush()
    _store_gain(session, row, row.quality, alone)
    return row


def _is_alone(call: FusionOperationMember, question: Any) -> bool:
    is_whole = call.prompt is not None and call.prompt.get("prompt") == question
    is_own = call.answer is not None and not call.answer.get("details", {}).keys() & NOT_OWN
    return is_own and call.role in ALONE_ROLES and is_whole


def _store_gain(session: Session, row: FusionOperation, quality: float, alone: Sequence[FusionOperationMember]) -> None:
    """Into the figures that the operation has; into new ones where it has none."""
    answers: dict[uuid.UUID, list[float]] = defaultdict(list)
    members = {}
    for call in alone:
        if call.quality is not None:
            answers[call.member_id].append(call.quality)
            members[call.member_id] = call.member
    best = None
    if members:
        best = Standing.read(session, row.reactor_id, without=row.id).best(members.values()).id
    gain, gap = gain_and_gap(quality, answers, best)
    figures = {"quality": quality, "gain": gain, "oracle_gap": gap}
    own = update(ReactorMetric).where(ReactorMetric.operation_id == row.id).values(figures)
    if not session.execute(own.returning(ReactorMetric.id)).all():
        now = session.scalar(select(func.clock_timestamp()))
        store_metric(session, {"reactor_id": row.reactor_id, "operation_id": row.id, "recorded_at": now} | figures)
