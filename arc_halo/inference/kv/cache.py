"""A cache of keys and values as an application holds it: short transactions of its own, audits, counts, single flight."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3
from sqlalchemy import insert, text

from arc_halo.errors import CacheError, ConstraintViolation
from arc_halo.inference.expiry import ttl_seconds
from arc_halo.inference.kv import hashing
from arc_halo.inference.kv.costs import BreakEven, Costs
from arc_halo.inference.kv.counting import Counter
from arc_halo.inference.kv.loading import Fault, load_prefix
from arc_halo.inference.kv.lookup import Prefix, find_prefix
from arc_halo.inference.kv.storing import StoredPrefix, check_layers, encode_blocks, write_blocks
from arc_halo.inference.single_flight import single_flight
from arc_halo.schema import CacheAudit, KVCacheBlock

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.inference.kv.layout import KVLayout
    from arc_halo.inference.kv.types import CodecName, Layers
    from arc_halo.inference.namespaces import Namespace

    Tokens = Sequence[int] | np.ndarray
    Arrays = list[tuple[np.ndarray, np.ndarray]]

_STORE_ATTEMPTS: Final = 5
_FLIGHT: Final = "arc-halo 2026-11 computation of keys and values"
_MEASURED: Final = text("""
SELECT read_nbytes_per_second, computed_tokens_per_second
  FROM arc_halo.v_cache_status AS s
  JOIN arc_halo.cache_namespaces AS n ON n.tenant_id = s.tenant_id AND n.id = s.namespace_id
 WHERE n.tenant_id = :tenant_id AND n.digest = :digest
""")


class KVCache:
    """Keys and values of one model, for one tenant; threads may share it.

    Each call is a transaction of its own. What is found is compared token by token and digest by digest; whatever does
    not hold is a miss, reported in ``cache_audits``, and deleted.

    Parameters
    ----------
    namespace
        Of kind ``kv``; its digest is that of all that must be equal.
    layout
        Layers, heads, widths and type of the keys and values.
    codec
        ``none``, ``lossless``, or ``int8`` with a namespace of that precision.
    logged
        False for payloads in a table that is written faster and that a crash of the server empties.
    ttl
        Of what is stored: seconds, or a timedelta; None: until there is no room.

    Examples
    --------
    >>> with KVCache(db, namespace, layout) as cache:  # doctest: +SKIP
    ...     layers, hit = cache.get_or_compute(token_ids, prefill)
    """

    def __init__(
        self,
        db: Database,
        namespace: Namespace,
        layout: KVLayout,
        *,
        codec: CodecName = "none",
        logged: bool = True,
        ttl: dt.timedelta | float | None = None,
    ) -> None:
        if namespace.kind != "kv":
            raise CacheError(f"a namespace of kind {namespace.kind!r} has no keys and values")
        if str(layout) != namespace.layout or layout.dtype != namespace.dtype:
            raise CacheError(f"{layout.dtype}, {layout}, is not the namespace's {namespace.dtype}, {namespace.layout}")
        self.db = db
        self.namespace = namespace
        self.layout = layout
        self.codec: CodecName = codec
        self.logged = logged
        self.ttl = ttl_seconds(ttl)
        self._counter = Counter(db, namespace.tenant_id)
        self._costs = Costs(self._measured_before())

    @property
    def break_even(self) -> BreakEven:
        """What reading and computing take, from this process's measurements and those of others before it."""
        return self._costs.break_even

    def lookup(self, token_ids: Tokens) -> Prefix:
        """The longest stored prefix, in one round trip; counted as a hit if there is one."""
        prefix = self.db.transaction(lambda session: find_prefix(session, self.namespace, token_ids))
        if prefix.suspects:
            self._audit(prefix, [("other_tokens", {"block": each.hex()}) for each in prefix.suspects])
        self._counter.note_lookup(prefix)
        return prefix

    def load(self, prefix: Prefix) -> Arrays:
        """The keys and values of a prefix, [kv_heads, tokens, dim] for each layer; of fewer tokens where some are gone.

        Whatever was evicted, retired or damaged since the lookup ends the prefix before it: never half, never wrong.
        """
        if not prefix:
            return self.layout.empty(0)
        begun = time.perf_counter()
        layers, faults = self.db.transaction(
            lambda session: load_prefix(session, self.namespace, self.layout, prefix)
        )
        seconds = time.perf_counter() - begun
        nbytes = layers[0][0].shape[1] * self.layout.token_nbytes
        assert prefix.namespace_id is not None
        if nbytes:
            self._costs.note_read(nbytes, seconds)
            self._counter.note_read(prefix.namespace_id, nbytes, seconds)
        if faults:
            self._drop(prefix, faults)
        return layers

    def restore(self, token_ids: Tokens) -> tuple[Arrays, int]:
        """Find and read; nothing where measurements say that computing is faster. Returns layers and tokens."""
        prefix = self.lookup(token_ids)
        if not prefix or not self._costs.reads():
            return self.layout.empty(0), 0
        layers = self.load(prefix)
        return layers, layers[0][0].shape[1]

    def store(self, token_ids: Tokens, layers: Layers, *, pinned: bool = False, skip: int = 0) -> StoredPrefix:
        """Store the keys and values of all tokens, in one transaction; see `store_prefix`.

        Encoded before the transaction begins. A model version that was retired in the meantime stores nothing that
        could be found.
        """
        check_layers(self.namespace, token_ids, layers, self.codec)
        blocks = list(
            encode_blocks(self.namespace, self.layout, token_ids, layers, codec=self.codec, skip=skip)
        )

        def unit(session: Session) -> StoredPrefix:
            return write_blocks(
                session, self.namespace, blocks, logged=self.logged, ttl=self.ttl, pinned=pinned
            )

        for attempt in range(_STORE_ATTEMPTS):
            try:
                stored = self.db.transaction(unit)
                break
            except ConstraintViolation as error:
                # What it stands behind was evicted, or its namespace swept, between two statements.
                if not error.is_dangling or attempt == _STORE_ATTEMPTS - 1:
                    raise
        if stored.suspects:
            self._audit(None, [("other_tokens", {"block": each.hex()}) for each in stored.suspects])
        return stored

    def get_or_compute(
        self, token_ids: Tokens, compute: Callable[[Arrays, int], Layers], *, pinned: bool = False
    ) -> tuple[Arrays, int]:
        """The keys and values of all tokens, and how many of them were not computed here.

        Of processes that ask for the same tokens at the same time one computes, and the others read what it stored.

        Parameters
        ----------
        compute
            Given the layers of what is stored, [kv_heads, hit, dim], and ``hit``, returns layers of all tokens. It is
            called with no transaction open.
        """
        count = len(token_ids)

        def look() -> tuple[Arrays, int] | None:
            layers, hit = self.restore(token_ids)
            return (layers, hit) if hit == count else None

        def work() -> tuple[Arrays, int]:
            layers, hit = self.restore(token_ids)
            begun = time.perf_counter()
            computed = [(np_keys, np_values) for np_keys, np_values in compute(layers, hit)]
            self.note_computed(count - hit, time.perf_counter() - begun)
            self.store(token_ids, computed, pinned=pinned, skip=hit)
            return computed, hit

        found, _computed_here = single_flight(
            self.db, self.namespace.tenant_id, self._flight_key(token_ids), look, work
        )
        return found

    def note_computed(self, token_count: int, seconds: float) -> None:
        """Take a measurement of computing: tokens of a prompt, and how long that took."""
        if token_count < 1:
            return
        self._costs.note_computed(token_count, seconds)
        prefix_namespace = self._namespace_id()
        if prefix_namespace is not None:
            self._counter.note_computed(prefix_namespace, token_count, seconds)

    def flush(self) -> None:
        """Write the counts of hits now; a thread does it every second."""
        self._counter.flush()

    def close(self) -> None:
        """Write the counts that are left."""
        self._counter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
