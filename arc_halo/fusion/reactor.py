"""A reactor in this process: it answers questions, and stores how."""

from __future__ import annotations

import queue
import secrets
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arc_halo.errors import DatabaseError, FusionError, OperationFailed, ReactorNotFound
from arc_halo.fusion.html import plan_html
from arc_halo.fusion.metrics.measuring import measure_operation
from arc_halo.fusion.metrics.quality import Standing
from arc_halo.fusion.opening import MemberOpener
from arc_halo.fusion.operations.alone import ask_alone
from arc_halo.fusion.operations.calls import Input
from arc_halo.fusion.operations.operation import Operation
from arc_halo.fusion.operations.receiving import plain_fused, plain_text, said_by
from arc_halo.fusion.operations.recording import Outcome, store_outcome
from arc_halo.fusion.plan import load_plan
from arc_halo.fusion.strategies.known import strategy_named
from arc_halo.fusion.vectors import checked_vector

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    import numpy as np

    from arc_halo.database import Database
    from arc_halo.fusion.operations.operation import Listener
    from arc_halo.fusion.operations.recording import OperationStatus
    from arc_halo.fusion.plan import Budget, Plan
    from arc_halo.fusion.strategies.protocol import Fused

    Scorer = Callable[[Input, str], float]
    Embed = Callable[[Sequence[str]], np.ndarray]
    from arc_halo.fusion.opening import Given as Members

    Given = Input | str | Mapping[str, Any]

_SEEDS = 1 << 31
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in an operation.

    Attributes
    ----------
    kind
        ``asked``, a status of a call (``answered``, ``failed``, ...), ``noted``, or ``finished``.
    details
        Position and member's name of a call, or what was noted.
    outcome
        Of ``finished``.
    """

    kind: str
    details: Mapping[str, Any]
    outcome: Outcome | None = None


class Reactor:
    """Several members that answer as one; several threads may use it.

    Each operation begins with the reactor's row as it is then, and is stored in one transaction when it is over,
    whatever became of it.

    Parameters
    ----------
    database
        Where the reactor is.
    name
        Of the reactor, or its id.
    members
        What answers for each member, by the member's name, its endpoint, or ``name@version`` of its model: something
        that `level_of` knows, or a function from prompt to text. A function of a `MemberPlan` may be given in its
        place.
    scorer
        Gives the quality of an answer to an input, greater for better; by default that is 1 for the reference, and 0.
    embed
        Vectors of texts, float32 of shape [texts, dimension]: for coherence of answers, and for routes by likeness.

    Raises
    ------
    ReactorNotFound
        There is none of that name.
    FusionError
        Members are given as neither.
    """

    def __init__(
        self,
        database: Database,
        name: str | uuid.UUID,
        members: Members,
        *,
        scorer: Scorer | None = None,
        embed: Embed | None = None,
    ) -> None:
        self._database = database
        self._opener = MemberOpener(members)
        self._scorer = scorer
        self._embed = embed
        self._standing_lock = threading.Lock()
        self._standing: Standing | None = None
        self.id = self.plan(name).id

    @property
    def database(self) -> Database:
        """Where it is."""
        return self._database

    @property
    def opener(self) -> MemberOpener:
        """What answers for its members."""
        return self._opener

    def plan(self, name: str | uuid.UUID | None = None) -> Plan:
        """The reactor as it is in the database now."""
        return self._database.read(lambda session: load_plan(session, self.id if name is None else name))

    def _repr_html_(self) -> str | None:
        try:
            return plan_html(self.plan())
        except (DatabaseError, FusionError, ReactorNotFound):
            return None  # a repr is no place to say so

    def run(
        self,
        given: Given,
        *,
        seed: int | None = None,
        budget: Budget | None = None,
        check: bool = True,
        listener: Listener | None = None,
    ) -> Outcome:
        """Answer a question, and store how.

        Parameters
        ----------
        given
            A prompt, or an `Input`.
        seed
            Of all chance; drawn and stored where none is given.
        budget
            In the place of the reactor's own.
        check
            False to get an operation without an answer back, too, in the place of an error.
        listener
            Called with each kind of event and its details, from the threads where they happen; it must not raise.

        Raises
        ------
        OperationFailed
            It came to no answer; it is stored nevertheless, under the id that the error has.
        FusionError
            The reactor cannot be run as it is: nothing is stored.
        """
        return self.finish(self._begin(given, seed, budget, listener), check=check)

    def stream(
        self, given: Given, *, seed: int | None = None, budget: Budget | None = None
    ) -> Generator[Event, None, None]:
        """Answer a question, event by event; the last one has the outcome. Closing it early cancels the operation.

        Raises
        ------
        FusionError
            As `run`, but for operations without an answer, which the outcome tells.
        """
        events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        operation = self._begin(given, seed, budget, lambda kind, details: events.put(Event(kind, details)))
        failure: list[BaseException] = []

        def work() -> None:
            try:
                outcome = self.finish(operation, check=False)
                events.put(Event("finished", {"status": outcome.status}, outcome))
            except BaseException as error:  # noqa: BLE001  # raised where the events are read
                failure.append(error)
            finally:
                events.put(None)

        thread = threading.Thread(target=work, name="arc-halo-operation", daemon=True)
        thread.start()
        try:
            while (event := events.get()) is not None:
                yield event
        finally:
            operation.cancel()  # does nothing to one that is over
            thread.join()
        if failure:
            raise failure[0]

    def run_many(
        self, inputs: Iterable[Given], *, concurrency: int = 4, seed: int | None = None, budget: Budget | None = None
    ) -> Generator[Outcome, None, None]:
        """Answer many questions, so many at once, in their order; those without an answer are told by their outcome.

        Inputs are taken only as fast as they are answered. With a seed the n-th input has the seed ``seed + n``.
        Closing it early, or an error, cancels the operations that run.
        """
        if concurrency < 1:
            raise FusionError(f"at least one operation runs at once, not {concurrency}")
        begun: dict[uuid.UUID, Operation] = {}
        is_over = threading.Event()

        def work(given: Given, own: int | None) -> Outcome:
            operation = self._begin(given, own, budget, None)
            begun[operation.id] = operation
            if is_over.is_set():  # set before those that have begun are cancelled: none is missed
                operation.cancel()
            outcome = self.finish(operation, check=False)
            del begun[operation.id]
            return outcome

        with ThreadPoolExecutor(concurrency, "arc-halo-reactor") as pool:
            running: deque[Future[Outcome]] = deque()
            try:
                for number, given in enumerate(inputs):
                    running.append(pool.submit(work, given, None if seed is None else seed + number))
                    if len(running) >= 2 * concurrency:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                is_over.set()
                for future in running:
                    future.cancel()
                for operation in list(begun.values()):
                    operation.cancel()

    def _begin(self, given: Given, seed: int | None, budget: Budget | None, listener: Listener | None) -> Operation:
        plan = self.plan()
        if plan.status in ("paused", "retired"):
            raise FusionError(f"the reactor {plan.name} is {plan.status}: give it the status active to run it")
        if seed is not None and not 0 <= seed <= _MAX_SEED:
            raise FusionError(f"a seed is from 0 to {_MAX_SEED}, not {seed}")
        members, left_out = self.opener.open_all(plan)
        operation = Operation(
            plan,
            members,
            Input.of(given),
            seed=secrets.randbelow(_SEEDS) if seed is None else seed,
            budget=budget,
            listener=listener,
            read=self._database.read,
        )
        self.prepare(operation, left_out)
        return operation

    def prepare(self, operation: Operation, left_out: Mapping[str, str]) -> None:
        """Give an operation what it needs beside its plan, and check that somebody answers in it.

        Parameters
        ----------
        left_out
            Members that are not asked, and why.
        """
        plan = operation.plan
        is_measured = self._scorer is not None or operation.input.reference is not None
        if operation.is_measured is None:
            operation.is_measured = is_measured
        if is_measured:
            with self._standing_lock:
                if self._standing is None:
                    self._standing = self._database.read(lambda session: Standing.read(session, self.id))
        if self._embed is not None and operation.input_vector is None:
            try:
                operation.input_vector = checked_vector(self._embed([operation.input.prompt])[0])
            except Exception as error:  # noqa: BLE001  # of somebody else's code: the question is answered without
                operation.note("not_measured", what="input_vector", error=f"{type(error).__name__}: {error}"[:500])
        for name, reason in left_out.items():
            operation.note("left_out", member=name, reason=reason)
        if not operation.members and left_out:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
            raise FusionError(f"no member of the reactor {plan.name} can be asked: {reasons}")
        if not operation.members:
            raise FusionError(f"the reactor {plan.name} has no member that is enabled: `arc-halo reactor add` adds one")

    def finish(self, operation: Operation, *, check: bool, replay_of: uuid.UUID | None = None) -> Outcome:
        """Run the strategy and store what came of it; what interrupts it is stored, too, and raised again.

        Parameters
        ----------
        check
            As of `run`.
        replay_of
            The operation that is run again.
        """
        strategy = strategy_named(operation.plan.strategy).of(operation.plan.config.options)
        fused: Fused | None = None
        error: str | None = None
        status: OperationStatus = "completed"
        interrupt: BaseException | None = None
        seconds: float | None = None
        try:
            fused = plain_fused(strategy.fuse(operation))
            seconds = operation.elapsed_seconds
            self._check_answers(operation)
            if operation.is_measured and operation.plan.config.measure_alone:
                ask_alone(operation)
        except OperationFailed as failed:
            fused, error, status = None, plain_text(str(failed)), _status_without_answer(operation)
        except BaseException as raised:  # noqa: BLE001  # raised again once the operation is stored
            fused, error, status = None, said_by(raised), "failed"
            interrupt = raised
            if not isinstance(raised, Exception):
                status = "cancelled"
                operation.cancel()
        outcome = self._outcome(operation, fused, error, status, seconds)
        self._database.transaction(lambda session: store_outcome(session, operation, outcome, replay_of=replay_of))
        if self._standing is not None and replay_of is None:
            self._standing.add(outcome.calls)
        if interrupt is not None:
            raise interrupt
        if check and outcome.fused is None:
            raise OperationFailed(f"{operation.plan.name}: {error}", operation.id, outcome.status)
        return outcome

    def _check_answers(self, operation: Operation) -> None:
        answered = {call.member.id for call in operation.calls if call.is_answered}
        least = operation.plan.config.min_answers
        if operation.is_cancelled:
            raise OperationFailed("the operation was cancelled")
        if len(answered) < least:
            raise OperationFailed(f"{len(answered)} members answered, and {least} must")

    def _outcome(
        self,
        operation: Operation,
        fused: Fused | None,
        error: str | None,
        status: OperationStatus,
        seconds: float | None,
    ) -> Outcome:
        if seconds is None:
            seconds = operation.elapsed_seconds
        operation.end()
        figures = measure_operation(operation, fused, scorer=self._scorer, embed=self._embed, standing=self._standing)
        return Outcome(
            operation.id,
            status,
            fused,
            error,
            tuple(operation.calls),
            tuple(operation.trace),
            seconds,
            operation.seed,
            figures,
        )


def _status_without_answer(operation: Operation) -> OperationStatus:
    if operation.is_cancelled:
        return "cancelled"
    return "timed_out" if operation.is_out_of_time else "failed"
