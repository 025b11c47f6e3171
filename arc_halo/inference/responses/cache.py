"""A cache of responses to hold on to: looks, computes once for all who ask, stores, and counts."""

from __future__ import annotations

import logging
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from arc_halo.errors import CacheError, DatabaseError
from arc_halo.inference.expiry import ttl_seconds
from arc_halo.inference.quota_warning import QuotaWarning
from arc_halo.inference.responses.counting import HitCounts
from arc_halo.inference.responses.finding import (
    FoundResponse,
    check_kind,
    check_similarity,
    find_response,
    find_similar_response,
)
from arc_halo.inference.responses.keys import checked_text, is_sampled, question
from arc_halo.inference.responses.putting import put_response
from arc_halo.inference.single_flight import WAIT_SECONDS, single_flight

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    import numpy as np

    from arc_halo.database import Database
    from arc_halo.inference.namespaces import Namespace

    Embed = Callable[[str], np.ndarray | Sequence[float]]

DEFAULT_SIMILARITY: Final = 0.95
_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """A response, and where it was found; ``found`` is None if it was computed for this call."""

    response: str
    found: FoundResponse | None


class _Prompt:
    """A prompt that is embedded once, and only if somebody asks."""

    def __init__(self, prompt: str, settings: Mapping[str, Any], embed: Embed | None) -> None:
        self.question = question(prompt, settings)
        self.text, self.settings, self._embed = prompt, settings, embed

    @cached_property
    def embedding(self) -> np.ndarray | Sequence[float] | None:
        return None if self._embed is None else self._embed(self.text)


class ResponseCache:
    """The responses of one namespace; threads may share it.

    Parameters
    ----------
    namespace
        Of kind ``response``.
    embed
        Gives the embedding of a prompt, shape (dimension,); never called inside a transaction. Without it only the same
        prompt is a hit.
    embedder
        The name of what ``embed`` does, with its version: embeddings of others are not compared.
    min_similarity
        Least cosine of a similar hit. What is near enough depends on the embedder; measure it.
    ttl
        How long what is put may be served, seconds or a timedelta.

    Raises
    ------
    CacheError
        The namespace is not one of responses, or an option makes no sense.

    Examples
    --------
    >>> with ResponseCache(db, namespace) as cache:  # doctest: +SKIP
    ...     cache.get_or_compute("2 + 2 =", {"temperature": 0}, lambda: generate("2 + 2 =")).response
    """

    def __init__(
        self,
        db: Database,
        namespace: Namespace,
        *,
        embed: Embed | None = None,
        embedder: str | None = None,
        min_similarity: float = DEFAULT_SIMILARITY,
        ttl: dt.timedelta | float | None = None,
    ) -> None:
        check_kind(namespace)
        check_similarity(min_similarity)
        if (embed is None) != (embedder is None):
            raise CacheError("embed needs the name of what it does, and the other way round: give both, or neither")
        if embedder is not None:
            checked_text(embedder, "the embedder's name")
        self.db, self.namespace = db, namespace
        self.embedder, self.min_similarity = embedder, min_similarity
        self.ttl = ttl_seconds(ttl)
        self._embed = embed
        self._counts = HitCounts(db, namespace)
        self._quota_warning = QuotaWarning(db, namespace)

    def get(self, prompt: str, settings: Mapping[str, Any]) -> FoundResponse | None:
        """The response to the same prompt, or to the nearest that is near enough.

        Raises
        ------
        CacheError
            Prompt or settings could not have been stored.
        """
        found = self._find(_Prompt(prompt, settings, self._embed))
        self._counts.add(found)
        return found

    def put(
        self,
        prompt: str,
        settings: Mapping[str, Any],
        response: str,
        *,
        details: Mapping[str, Any] | None = None,
        compute_seconds: float | None = None,
        pinned: bool = False,
    ) -> bool:
        """Store a response and commit; see `put_response`."""
        asked = _Prompt(prompt, settings, self._embed)
        return self._put(asked, response, details=details, compute_seconds=compute_seconds, pinned=pinned)

    def get_or_compute(
        self,
        prompt: str,
        settings: Mapping[str, Any],
        compute: Callable[[], str],
        *,
        allow_sampled: bool = False,
        wait_seconds: float = WAIT_SECONDS,
    ) -> Answer:
        """The stored response, or else what ``compute`` gives, which is stored; of all who ask at once one computes.

        A database that is away, or a response that cannot be stored, keeps nobody from an answer: the log says so.

        Parameters
        ----------
        compute
            Computes the response; no transaction is open while it runs.
        allow_sampled
            Keep one sample for all who ask: settings with a temperature, or ``do_sample``, and no ``seed``.
        wait_seconds
            How long somebody else's computation is waited for.

        Raises
        ------
        CacheError
            Prompt or settings cannot be stored, or what is asked for is a sample.
        """
        if is_sampled(settings) and not allow_sampled:
            raise CacheError(
                "these settings draw a sample, and everybody would get the same one: give a seed, or allow_sampled=True"
            )
        asked = _Prompt(prompt, settings, self._embed)

        def compute_and_keep() -> FoundResponse | str:
            began = time.perf_counter()
            response = compute()
            self._keep(asked, response, time.perf_counter() - began)
            return response

        key = asked.question.flight_digest(self.namespace)
        answer, _ = single_flight(
            self.db,
            self.namespace.tenant_id,
            key,
            lambda: self._find(asked),
            compute_and_keep,
            wait_seconds=wait_seconds,
        )
        found = answer if isinstance(answer, FoundResponse) else None
        self._counts.add(found)
        return Answer(answer if isinstance(answer, str) else answer.response, found)

    def flush(self) -> None:
        """Write the hits counted so far; where the database refuses they are lost, and the log says so."""
        self._counts.flush()

    def close(self) -> None:
        """Write the hits that are left. The database stays open; closing twice does nothing."""
        self.flush()

    def _find(self, asked: _Prompt) -> FoundResponse | None:
        with self.db.session() as session:
            found = find_response(session, self.namespace, asked.text, asked.settings)
            session.commit()  # an audit, if there was one
        if found is not None or asked.embedding is None or self.embedder is None:
            return found
        with self.db.session() as session:
            found = find_similar_response(
                session,
                self.namespace,
                asked.embedding,
                asked.settings,
                embedder=self.embedder,
                min_similarity=self.min_similarity,
            )
            session.commit()
        return found

    def _put(self, asked: _Prompt, response: str, **options: Any) -> bool:
        embedding = asked.embedding
        self._counts.flush()  # a quota drops what was used longest ago
        is_stored = self.db.transaction(
            lambda session: put_response(
                session,
                self.namespace,
                asked.text,
                asked.settings,
                response,
                embedding=embedding,
                embedder=self.embedder,
                ttl=self.ttl,
                **options,
            )
        )
        if not is_stored:
            self._quota_warning.tell()
        return is_stored

    def _keep(self, asked: _Prompt, response: str, seconds: float) -> None:
        if not isinstance(response, str):
            raise CacheError(f"compute gave {type(response).__name__}; a response is text")
        try:
            self._put(asked, response, compute_seconds=seconds)
        except (CacheError, DatabaseError) as error:
            _log.warning("a response was computed and could not be kept: %s", error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
