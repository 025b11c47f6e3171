"""A cache of keys and values as an application holds it: short transactions, audits, counts, single flight."""

from __future__ import annotations

import logging
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3
from sqlalchemy import insert, text

from arc_halo.errors import CacheError, CodecError, ConstraintViolation, DatabaseError
from arc_halo.inference.expiry import ttl_seconds
from arc_halo.inference.kv import hashing
from arc_halo.inference.kv.costs import BreakEven, Costs
from arc_halo.inference.kv.counting import Counter
from arc_halo.inference.kv.loading import load_prefix
from arc_halo.inference.kv.lookup import find_prefix
from arc_halo.inference.kv.storing import check_codec, check_layers, encode_blocks, write_blocks
from arc_halo.inference.quota_warning import QuotaWarning
from arc_halo.inference.single_flight import single_flight
from arc_halo.schema import CacheAudit

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.inference.kv.layout import KVLayout
    from arc_halo.inference.kv.loading import Fault
    from arc_halo.inference.kv.lookup import Prefix
    from arc_halo.inference.kv.storing import StoredPrefix
    from arc_halo.inference.kv.types import CodecName, Layers
    from arc_halo.inference.namespaces import Namespace

    Tokens = Sequence[int] | np.ndarray
    Arrays = list[tuple[np.ndarray, np.ndarray]]

_ATTEMPTS: Final = 5
_FLIGHT: Final = "arc-halo 2026-11 computation of keys and values"
_MEASURED: Final = text("""
SELECT s.read_nbytes / nullif(s.read_seconds, 0), s.computed_token_count / nullif(s.computed_seconds, 0)
  FROM arc_halo.cache_statistics AS s
  JOIN arc_halo.cache_namespaces AS n ON n.tenant_id = s.tenant_id AND n.id = s.namespace_id
 WHERE n.tenant_id = :tenant_id AND n.digest = :digest
""")
# Blocks that were stored anew in the meantime are others.
_DROP: Final = text("""
WITH dropped AS (
    SELECT b.block_hash
      FROM unnest(CAST(:hashes AS bytea[]), CAST(:times AS timestamptz[])) AS d (block_hash, created_at)
      JOIN arc_halo.kv_cache AS b
        ON b.tenant_id = :tenant AND b.namespace_id = :namespace AND b.block_hash = d.block_hash
           AND b.created_at = coalesce(d.created_at, b.created_at)
     ORDER BY b.position DESC
       FOR UPDATE OF b SKIP LOCKED)
DELETE FROM arc_halo.kv_cache AS b
 USING dropped AS d
 WHERE b.tenant_id = :tenant AND b.namespace_id = :namespace AND b.block_hash = d.block_hash
""")
_NOTHING: Final[Mapping[bytes, Any]] = MappingProxyType({})
_log = logging.getLogger(__name__)


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
        check_codec(codec)
        self.db = db
        self.namespace = namespace
        self.layout = layout
        self.codec: CodecName = codec
        self.logged = logged
        self.ttl = ttl_seconds(ttl)
        self._counter = Counter(db, namespace)
        self._quota_warning = QuotaWarning(db, namespace)
        self._costs = Costs(self._measured_before())

    @property
    def break_even(self) -> BreakEven:
        """What reading and computing take, from this process's measurements and those of others before it."""
        return self._costs.break_even

    def lookup(self, token_ids: Tokens) -> Prefix:
        """The longest stored prefix, in one round trip; counted as a hit if there is one."""
        prefix = self._find(token_ids)
        self._counter.note_lookup(prefix)
        return prefix

    def load(self, prefix: Prefix) -> Arrays:
        """The keys and values of a prefix, [kv_heads, tokens, dim] for each layer; of fewer tokens where some are gone.

        Whatever was evicted, retired or damaged since the lookup ends the prefix before it: never half, never wrong.
        """
        if prefix.namespace_id is None or not prefix:
            return self.layout.empty(0)
        begun = time.perf_counter()
        layers, faults = self.db.read(lambda session: load_prefix(session, self.namespace, self.layout, prefix))
        seconds = time.perf_counter() - begun
        if nbytes := _token_count(layers) * self.layout.token_nbytes:
            self._costs.note_read(nbytes, seconds)
            self._counter.note_read(nbytes, seconds)
        if faults:
            drop = {each.block_hash: each.created_at for each in faults}
            self._audit(prefix.namespace_id, [(each.reason, _details(each)) for each in faults], drop)
        return layers

    def load_if_faster(self, prefix: Prefix) -> Arrays:
        """As `load`; nothing where measurements say that computing is faster."""
        return self.load(prefix) if prefix and self._costs.reads() else self.layout.empty(0)

    def restore(self, token_ids: Tokens) -> tuple[Arrays, int]:
        """Find, and read what is sooner read than computed. Returns layers and tokens."""
        layers = self.load_if_faster(self.lookup(token_ids))
        return layers, _token_count(layers)

    def store(self, token_ids: Tokens, layers: Layers, *, pinned: bool = False, skip: int = 0) -> StoredPrefix:
        """Store the keys and values of all tokens, in one transaction; parameters and errors are `store_prefix`'s.

        They are encoded before it begins. For a version that was retired in the meantime nothing is stored that could
        be found.
        """
        check_layers(self.namespace, token_ids, layers, self.codec)
        blocks = list(encode_blocks(self.namespace, self.layout, token_ids, layers, codec=self.codec, skip=skip))

        def unit(session: Session) -> StoredPrefix:
            return write_blocks(session, self.namespace, blocks, logged=self.logged, ttl=self.ttl, pinned=pinned)

        stored = self._run(unit)
        self._counter.note_stored()
        if not stored.has_room:
            self._quota_warning.tell()
        if stored.suspects:
            self._audit(None, [("other_tokens", {"block": each.hex()}) for each in stored.suspects])
        return stored

    def get_or_compute(
        self, token_ids: Tokens, compute: Callable[[Arrays, int], Layers], *, pinned: bool = False
    ) -> tuple[Arrays, int]:
        """The keys and values of all tokens, and how many of them were not computed here.

        Of processes that ask for the same tokens at the same time one computes, and the others read what it stored.
        Where computing is measured to be faster than reading, each computes. What was computed is returned even where
        it could not be stored.

        Parameters
        ----------
        compute
            Given the layers of what is stored, [kv_heads, hit, dim], and ``hit``, returns layers of all tokens. It is
            called with no transaction open.

        Raises
        ------
        CacheError
            What was computed does not fit the tokens or the layout.
        """
        count = len(token_ids)
        prefix = self.lookup(token_ids)
        unread = [prefix]

        def read(found: Prefix) -> tuple[Arrays, int]:
            layers = self.load(found)
            return layers, _token_count(layers)

        def look() -> tuple[Arrays, int] | None:
            found = unread.pop() if unread else self._find(token_ids)
            if found.token_count < count:
                return None
            layers, hit = read(found)
            return (layers, hit) if hit == count else None

        def work() -> tuple[Arrays, int]:
            layers, hit = read(self._find(token_ids))
            return self._compute(token_ids, layers, hit, compute, pinned=pinned), hit

        if not self._costs.reads():
            nothing = self.layout.empty(0)
            return self._compute(token_ids, nothing, 0, compute, pinned=pinned, skip=prefix.token_count), 0
        found, _ = single_flight(self.db, self.namespace.tenant_id, self._flight_key(token_ids), look, work)
        return found

    def note_computed(self, token_count: int, seconds: float) -> None:
        """Take a measurement of computing: tokens of a prompt, and how long that took."""
        if token_count < 1:
            return
        self._costs.note_computed(token_count, seconds)
        self._counter.note_computed(token_count, seconds)

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

    def _find(self, token_ids: Tokens) -> Prefix:
        prefix = self.db.read(lambda session: find_prefix(session, self.namespace, token_ids))
        if prefix.suspects:
            found = [("other_tokens", {"block": each.hex()}) for each in prefix.suspects]
            self._audit(prefix.namespace_id, found, dict.fromkeys(prefix.damaged))
        return prefix

    def _compute(
        self,
        token_ids: Tokens,
        layers: Arrays,
        hit: int,
        compute: Callable[[Arrays, int], Layers],
        *,
        pinned: bool,
        skip: int | None = None,
    ) -> Arrays:
        """Compute what is missing, note how long that took, and store it."""
        if hit == len(token_ids):
            return layers
        begun = time.perf_counter()
        computed = list(compute(layers, hit))
        seconds = time.perf_counter() - begun
        check_layers(self.namespace, token_ids, computed, self.codec)
        skip = hit if skip is None else skip
        if skip < len(token_ids) or pinned:
            try:
                self.store(token_ids, computed, pinned=pinned, skip=skip)
            except (CacheError, DatabaseError, CodecError) as error:  # layers that do not fit were refused above
                _log.warning("keys and values that were computed are not kept: %s", error)
        self.note_computed(len(token_ids) - hit, seconds)
        return computed

    def _run(self, unit: Callable[[Session], StoredPrefix]) -> StoredPrefix:
        """Commit a unit, again if what it stands behind was evicted, or its namespace swept, between two statements."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self.db.transaction(unit)
            except ConstraintViolation as error:
                if not error.is_dangling or attempt == _ATTEMPTS:
                    raise
        raise AssertionError("attempts are positive")

    def _audit(
        self,
        namespace_id: int | None,
        found: Sequence[tuple[str, dict[str, Any]]],
        drop: Mapping[bytes, dt.datetime | None] = _NOTHING,
    ) -> None:
        """Report what was not served, and delete blocks that cannot be read, with all that follows them."""
        tenant_id = self.namespace.tenant_id
        rows = [
            {"tenant_id": tenant_id, "namespace_id": namespace_id, "kind": "kv", "reason": reason, "details": details}
            for reason, details in found
        ]
        key = {"tenant": tenant_id, "namespace": namespace_id, "hashes": list(drop), "times": list(drop.values())}

        def unit(session: Session) -> None:
            session.execute(insert(CacheAudit), rows)
            if drop:
                session.execute(_DROP, key)

        try:
            self.db.transaction(unit)
        except DatabaseError as error:  # a replica, perhaps: what is wrong is not served, and found again
            _log.warning("what was not served could not be reported: %s", error)
        for reason, details in found:
            _log.warning("cached keys and values were not served: %s %s", reason, details)

    def _flight_key(self, token_ids: Tokens) -> bytes:
        hasher = blake3(self.namespace.digest, derive_key_context=_FLIGHT)
        hasher.update(hashing.pack_tokens(token_ids))
        return hasher.digest()

    def _measured_before(self) -> BreakEven:
        """Where others have measured, the first call need not find out again."""
        key = {"tenant_id": self.namespace.tenant_id, "digest": self.namespace.digest}
        row = self.db.read(lambda session: session.execute(_MEASURED, key).one_or_none())
        return BreakEven(self.layout.token_nbytes, *(row or (None, None)))


def _token_count(layers: Layers) -> int:
    return int(layers[0][0].shape[1])


def _details(fault: Fault) -> dict[str, Any]:
    return {"block": fault.block_hash.hex(), "layer": fault.layer_index, "message": fault.message}
