"""Inference sessions: a model in use, and what each request to it took."""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, SupportsIndex

import numpy as np
from sqlalchemy import func, select

from arc_halo.errors import ConfigurationError, MetricError
from arc_halo.inference.figures import (
    DatabaseClock,
    RequestFigures,
    checked_count,
    checked_nbytes,
    checked_number,
    checked_tokens,
    peak_memory_nbytes,
    token_rate,
)
from arc_halo.inference.recording import MetricRecorder
from arc_halo.registry.naming import check_name, find_model
from arc_halo.schema import InferenceSession, Model

if TYPE_CHECKING:
    import datetime as dt
    import uuid
    from collections.abc import Iterator, Mapping

    from sqlalchemy.orm import Session

    from arc_halo.database import Database

CLOSE_SECONDS: Final = 30.0
"""How long the end of a session waits for a database that is away."""
_log = logging.getLogger(__name__)


class ServedRequest:
    """One request while it is answered; made by `ModelInUse.request`, for one thread at a time.

    Examples
    --------
    >>> with inference.request(prompt_token_count=12) as request:  # doctest: +SKIP
    ...     for number, token in enumerate(generate(prompt), 1):
    ...         request.first_token()
    ...     request.finish(number)
    """

    def __init__(self, owner: ModelInUse, number: int, prompt: int | None, cached: int | None) -> None:
        self.number = number
        """Unique in its session, from 0 on."""
        self._owner, self._prompt, self._cached = owner, prompt, cached
        self._started = time.perf_counter()
        self._first: float | None = None
        self._is_finished = False

    def first_token(self) -> None:
        """The first token is there; only the first call counts, so it may be called at each."""
        if self._first is None:
            self._first = time.perf_counter() - self._started

    def finish(
        self, generated_token_count: SupportsIndex | None = None, *, memory_nbytes: SupportsIndex | None = None
    ) -> None:
        """The answer is complete.

        Parameters
        ----------
        generated_token_count
            Tokens; None where nobody counts them.
        memory_nbytes
            Peak bytes, such as of a device; by default the peak of this process so far.

        Raises
        ------
        MetricError
            It was finished before, its session has ended, or a number is none.
        """
        latency = time.perf_counter() - self._started
        if self._is_finished:
            raise MetricError(f"request {self.number} is finished already; begin another one")
        generated = checked_count("generated_token_count", generated_token_count)
        memory = checked_nbytes("memory_nbytes", memory_nbytes)
        self._is_finished = True
        self._owner._put(  # noqa: SLF001  this module's own
            number=self.number,
            latency_seconds=latency,
            time_to_first_token_seconds=self._first,
            tokens_per_second=token_rate(generated, latency, self._first),
            tokens=(self._prompt, generated, self._cached),
            memory_nbytes=peak_memory_nbytes() if memory is None else memory,
        )

    def _finish_if_open(self) -> None:
        if not self._is_finished:
            self.finish()


class ModelInUse:
    """A session that is active: measures requests, and never waits for the database meanwhile.

    Attributes
    ----------
    id
        Of its row.
    model_id, weights_digest
        The version in use, and the digest of its weights when the session began; 32 bytes, or None if it has none.
    """

    def __init__(self, row: InferenceSession, recorder: MetricRecorder, clock: DatabaseClock) -> None:
        self.id, self.model_id, self.weights_digest = row.id, row.model_id, row.weights_digest
        self._recorder, self._clock = recorder, clock

    @contextmanager
    def request(
        self, prompt_token_count: SupportsIndex | None = None, cached_token_count: SupportsIndex | None = 0
    ) -> Iterator[ServedRequest]:
        """Measure one request from here to `ServedRequest.finish`, or to the end of the block.

        A request whose block raises before it is finished is not recorded: it has no answer to be measured.

        Parameters
        ----------
        prompt_token_count
            Tokens of the prompt.
        cached_token_count
            How many of these came from the cache.

        Raises
        ------
        MetricError
            The session has ended, this process was forked from the one that began it, or a number is none.
        """
        prompt, cached = checked_tokens(prompt_token_count, cached_token_count)
        request = ServedRequest(self, self._recorder.next_number(), prompt, cached)
        yield request
        request._finish_if_open()  # noqa: SLF001  this module's own

    def record(
        self,
        latency_seconds: float,
        *,
        time_to_first_token_seconds: float | None = None,
        tokens_per_second: float | None = None,
        prompt_token_count: SupportsIndex | None = None,
        generated_token_count: SupportsIndex | None = None,
        cached_token_count: SupportsIndex | None = None,
        memory_nbytes: SupportsIndex | None = None,
        recorded_at: dt.datetime | None = None,
    ) -> int:
        """Take the figures of a request that was measured elsewhere; returns its number.

        Parameters
        ----------
        latency_seconds, time_to_first_token_seconds
            From the arrival of the request.
        tokens_per_second
            Generated, after the first; by default computed from the others.
        recorded_at
            When, with a time zone; by default now, by the database's clock.

        Raises
        ------
        MetricError
            A number is none, the first token came after the last, or the session has ended.
        """
        latency = checked_number("latency_seconds", latency_seconds)
        first, rate = time_to_first_token_seconds, tokens_per_second
        if first is not None and (first := checked_number("time_to_first_token_seconds", first)) > latency:
            raise MetricError(f"the first token came after {first:g} seconds and the whole answer after {latency:g}")
        prompt, cached = checked_tokens(prompt_token_count, cached_token_count)
        generated = checked_count("generated_token_count", generated_token_count)
        memory = checked_nbytes("memory_nbytes", memory_nbytes)
        if recorded_at is not None and recorded_at.utcoffset() is None:
            raise MetricError(f"recorded_at {recorded_at} has no time zone; give it one, such as datetime.UTC")
        number = self._recorder.next_number()
        self._put(
            number=number,
            latency_seconds=latency,
            time_to_first_token_seconds=first,
            tokens_per_second=(
                token_rate(generated, latency, first) if rate is None else checked_number("tokens_per_second", rate)
            ),
            tokens=(prompt, generated, cached),
            memory_nbytes=memory,
            recorded_at=recorded_at,
        )
        return number

    def flush(self, timeout: float = CLOSE_SECONDS) -> None:
        """Wait until what was recorded so far can be seen by others; at most so many seconds.

        Raises
        ------
        DatabaseUnavailable
            It is not yet: it waits in memory, and is stored as soon as the database takes it.
        MetricsLost
            The session was deleted.
        """
        self._recorder.flush(timeout)

    def _put(
        self,
        *,
        number: int,
        latency_seconds: float,
        time_to_first_token_seconds: float | None,
        tokens_per_second: float | None,
        tokens: tuple[int | None, int | None, int | None],
        memory_nbytes: int | None,
        recorded_at: dt.datetime | None = None,
    ) -> None:
        self._recorder.put(
            RequestFigures(
                number,
                self._clock.now() if recorded_at is None else recorded_at,
                latency_seconds,
                time_to_first_token_seconds,
                tokens_per_second,
                *tokens,
                memory_nbytes,
            )
        )


@contextmanager
def inference_session(
    db: Database,
    model: Model | uuid.UUID | str,
    *,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    close_timeout: float = CLOSE_SECONDS,
) -> Iterator[ModelInUse]:
    """Use a model: a session that is active until the block is left, with the figures of its requests.

    A block that ends has completed, and so has one that is stopped, by ``KeyboardInterrupt`` or ``SystemExit`` without
    an error; one that raises has failed. While the database is away figures wait in memory. A process that is killed
    leaves its session active, with all figures but those of its last second.

    Parameters
    ----------
    model
        What is used, or a reference to it; the digest of its weights is kept as it is now.
    name
        Of the session; any number may have it.
    config
        How it generates: temperature, top_k, top_p, seed. Stored as it is and shown to whoever may read the table:
        no secrets, such as keys of an endpoint.
    close_timeout
        Seconds that the end waits for a database that is away.

    Raises
    ------
    ModelNotFound, InvalidName, ConfigurationError
        What was given cannot be used.
    MetricsLost
        At the end: not everything could be stored. Where the block raises, it is a note on that error instead.

    Examples
    --------
    >>> with inference_session(db, "minilm", config={"temperature": 0.7}) as inference:  # doctest: +SKIP
    ...     with inference.request(prompt_token_count=12) as request:
    ...         request.first_token()
    ...         request.finish(40)
    """
    if name is not None:
        check_name("session name", name)
    settings = _plain_config(config)

    def begin(session: Session) -> tuple[InferenceSession, dt.datetime]:
        # Read again if it is a Model: it may be one of a session that has ended, with the digest of then.
        found = find_model(session, model.id if isinstance(model, Model) else model)
        row = InferenceSession(model_id=found.id, weights_digest=found.weights_digest, name=name, config=settings)
        session.add(row)
        session.flush()
        return row, session.execute(select(func.clock_timestamp())).scalar_one()

    row, now = db.transaction(begin)
    clock = DatabaseClock(now)
    recorder = MetricRecorder(db, row.id, clock)
    try:
        yield ModelInUse(row, recorder, clock)
    except BaseException as error:
        _end_with(recorder, error, close_timeout)
        raise
    recorder.close("completed", close_timeout)


def _end_with(recorder: MetricRecorder, error: BaseException, timeout: float) -> None:
    """End a session whose block raised; trouble on the way is noted on what was raised, which is not hidden by it."""
    is_exit = isinstance(error, SystemExit) and error.code in {None, 0}
    is_stopped = is_exit or isinstance(error, KeyboardInterrupt | GeneratorExit)
    try:
        recorder.close("completed" if is_stopped else "failed", timeout)
    except Exception as trouble:  # noqa: BLE001
        error.add_note(f"and the inference session did not end well: {trouble}")
        _log.warning("the inference session did not end well: %s", trouble)


def _plain_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The config as JSON, in which numpy's numbers are numbers."""
    try:
        written = json.dumps(dict(config or {}), allow_nan=False, default=_number)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"config cannot be stored as JSON: {error}; write numbers, text, lists, mappings"
        ) from error
    if r"\u0000" in written:
        raise ConfigurationError("config has a NUL character, which PostgreSQL's JSON cannot hold; leave it out")
    plain: dict[str, Any] = json.loads(written)
    return plain


def _number(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is none of its types")
