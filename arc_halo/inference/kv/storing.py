"""Keys and values into the database: all blocks of a prefix in one transaction, the head first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from arc_halo.errors import CacheError, TransactionConflict
from arc_halo.inference.expiry import ttl_seconds
from arc_halo.inference.kv import hashing, payloads
from arc_halo.inference.kv.hashing import TOKEN_NBYTES
from arc_halo.inference.kv.layout import KVLayout, cut
from arc_halo.inference.kv.quotas import make_room
from arc_halo.inference.namespaces import ensure_namespace
from arc_halo.store.bulk import KV_CACHE_PAYLOADS, KV_CACHE_UNLOGGED_PAYLOADS
from arc_halo.store.connections import Reading, may_copy

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Sequence

    import numpy as np
    import psycopg
    from sqlalchemy.orm import Session

    from arc_halo.inference.kv.types import CodecName, Layers
    from arc_halo.inference.namespaces import Namespace

# Heads first, in the order of the chain: writers of one prefix wait for each other at its head and then find it done.
# A block that is there keeps what it has; it lives as long as what comes after it, and longer.
_INSERT: Final = """
WITH wanted AS (
    SELECT * FROM unnest(%(hashes)b::bytea[], %(parents)b::bytea[], %(tokens)b::bytea[], %(nbytes)b::bigint[],
                         %(positions)b::integer[]) AS w (block_hash, parent_hash, token_ids, nbytes, position)
     ORDER BY position)
INSERT INTO arc_halo.kv_cache (tenant_id, namespace_id, block_hash, parent_hash, position, token_ids, stored_nbytes,
                               is_logged, is_pinned, expires_at)
SELECT %(tenant)s, %(namespace)s, w.block_hash, w.parent_hash, w.position, w.token_ids, w.nbytes, %(is_logged)s,
       %(is_pinned)s, now() + make_interval(secs => %(ttl)s)
  FROM wanted AS w
ON CONFLICT (tenant_id, namespace_id, block_hash) DO NOTHING
RETURNING position
"""
_STORED: Final = """
SELECT w.position, b.token_ids = w.token_ids AND b.parent_hash IS NOT DISTINCT FROM w.parent_hash
  FROM unnest(%(hashes)b::bytea[], %(parents)b::bytea[], %(tokens)b::bytea[], %(positions)b::integer[])
       AS w (block_hash, parent_hash, token_ids, position)
  JOIN arc_halo.kv_cache AS b
    ON b.tenant_id = %(tenant)s AND b.namespace_id = %(namespace)s AND b.block_hash = w.block_hash
 ORDER BY w.position
   FOR KEY SHARE OF b
"""
_RENEW: Final = """
WITH kept AS (
    SELECT b.block_hash
      FROM arc_halo.kv_cache AS b
     WHERE b.tenant_id = %(tenant)s AND b.namespace_id = %(namespace)s AND b.block_hash = ANY(%(hashes)b::bytea[])
       AND ((%(is_pinned)s AND NOT b.is_pinned)
            OR b.expires_at < coalesce(now() + make_interval(secs => %(ttl)s), 'infinity'))
     ORDER BY b.position
       FOR NO KEY UPDATE)
UPDATE arc_halo.kv_cache AS b
   SET is_pinned = b.is_pinned OR %(is_pinned)s,
       expires_at = nullif(greatest(coalesce(b.expires_at, 'infinity'),
                                    coalesce(now() + make_interval(secs => %(ttl)s), 'infinity')), 'infinity')
  FROM kept AS k
 WHERE b.tenant_id = %(tenant)s AND b.namespace_id = %(namespace)s AND b.block_hash = k.block_hash
"""
# A block behind the same parent that begins with these tokens; parts of blocks that the new one begins with go, unless
# they are to live longer.
_COVERED: Final = """
SELECT b.block_hash, b.token_ids
  FROM arc_halo.kv_cache AS b
 WHERE b.tenant_id = %(tenant)s AND b.namespace_id = %(namespace)s AND b.parent_hash {parent}
   AND b.token_ids >= %(tokens)b AND (b.is_pinned OR b.expires_at IS NULL OR b.expires_at > now())
 ORDER BY b.token_ids
 LIMIT 1
   FOR KEY SHARE OF b
"""
_SUPERSEDED: Final = """
DELETE FROM arc_halo.kv_cache AS b
 USING (SELECT o.block_hash
          FROM arc_halo.kv_cache AS o
         WHERE o.tenant_id = %(tenant)s AND o.namespace_id = %(namespace)s AND o.parent_hash {parent}
           AND o.token_ids >= substr(%(tokens)b, 1, 4) AND o.token_ids < %(tokens)b
           AND o.token_ids = substr(%(tokens)b, 1, octet_length(o.token_ids)) AND NOT o.is_pinned
           AND coalesce(o.expires_at, 'infinity') <= coalesce(now() + make_interval(secs => %(ttl)s), 'infinity')
           FOR UPDATE SKIP LOCKED) AS s
 WHERE b.tenant_id = %(tenant)s AND b.namespace_id = %(namespace)s AND b.block_hash = s.block_hash
"""


class Encoded(NamedTuple):
    """A block, ready to be written."""

    block_hash: bytes
    parent_hash: bytes | None
    tokens: bytes
    position: int
    rows: list[tuple[int, str, bytes, bytes, Any, Any]]
    """Layer, codec, digests of keys and values, their payloads."""

    @property
    def nbytes(self) -> int:
        """Bytes of the payloads."""
        return sum(memoryview(keys).nbytes + memoryview(values).nbytes for *_, keys, values in self.rows)


@dataclass(slots=True)
class StoredPrefix:
    """What a call of `store_prefix` left in the database."""

    token_count: int = 0
    """Tokens that are stored now, by whomever."""
    new_token_count: int = 0
    stored_nbytes: int = 0
    """Of the payloads that this call wrote."""
    evicted_count: int = 0
    """Blocks that made room."""
    suspects: list[bytes] = field(default_factory=list)
    """Hashes under which other tokens stand: nothing is stored from there on."""
    has_room: bool = True
    """False if the quota has none for the rest."""


def store_prefix(
    session: Session,
    namespace: Namespace,
    token_ids: Sequence[int] | np.ndarray,
    layers: Layers,
    *,
    codec: CodecName = "none",
    logged: bool = True,
    ttl: dt.timedelta | float | None = None,
    pinned: bool = False,
    skip: int = 0,
) -> StoredPrefix:
    """Store the keys and values of a row of tokens; what is there already is left as it is.

    Parameters
    ----------
    layers
        Of each layer keys and values of shape [kv_heads, tokens, dim], of all tokens.
    codec
        ``int8`` goes with a namespace of that precision, and no other codec does.
    logged
        False: payloads are written faster, into a table that a crash of the server empties: the blocks are then found
        and missed. Replicas cannot read it at all.
    ttl
        Seconds, or a timedelta, by the database's clock. The whole prefix lives at least as long.
    pinned
        Neither expires nor makes room, until it is unpinned or its model is retired. The whole prefix is pinned.
    skip
        Tokens that `find_prefix` has just found: whole blocks of them are not encoded.

    Raises
    ------
    CacheError
        Tokens, layers, ttl or codec do not fit.
    """
    seconds = ttl_seconds(ttl)
    layout = check_layers(namespace, token_ids, layers, codec)
    blocks = list(encode_blocks(namespace, layout, token_ids, layers, codec=codec, skip=skip))
    return write_blocks(session, namespace, blocks, logged=logged, ttl=seconds, pinned=pinned)


def check_codec(codec: CodecName) -> None:
    """Refuse what payloads cannot be kept by."""
    if codec not in ("none", "lossless", "int8"):
        raise CacheError(f"there is no codec {codec!r}; none, lossless and int8 are")


def check_layers(
    namespace: Namespace, token_ids: Sequence[int] | np.ndarray, layers: Layers, codec: CodecName
) -> KVLayout:
    """The layout of layers that may be stored in a namespace."""
    check_codec(codec)
    if (codec == "int8") != (namespace.precision == "int8"):
        raise CacheError(f"codec {codec!r} does not keep the precision of the namespace, {namespace.precision!r}")
    layout = KVLayout.of(layers)
    if str(layout) != namespace.layout or layout.dtype != namespace.dtype:
        raise CacheError(
            f"keys and values of {layout.dtype}, {layout}, do not belong into a namespace of {namespace.dtype}, "
            f"{namespace.layout}"
        )
    layout.check(layers, len(token_ids))
    return layout


def encode_blocks(
    namespace: Namespace,
    layout: KVLayout,
    token_ids: Sequence[int] | np.ndarray,
    layers: Layers,
    *,
    codec: CodecName,
    skip: int = 0,
) -> Iterator[Encoded]:
    """The blocks of a row of tokens, the last of them perhaps not whole; needs no database."""
    assert namespace.block_token_count is not None
    packed, size = hashing.pack_tokens(token_ids), namespace.block_token_count
    parent: bytes | None = None
    for position, start in enumerate(range(0, len(token_ids), size)):
        tokens = packed[start * TOKEN_NBYTES : (start + size) * TOKEN_NBYTES]
        name = hashing.block_hash(namespace.digest if parent is None else parent, tokens)
        stop = start + len(tokens) // TOKEN_NBYTES
        rows = []
        if stop > skip:
            for index, (keys, values) in enumerate(cut(layers, start, stop)):
                codec_id, key_payload, key_content = payloads.encode(keys, layout.element, codec)
                other_id, value_payload, value_content = payloads.encode(values, layout.element, codec)
                if codec_id != other_id:  # one of both is no smaller compressed
                    codec_id, key_payload, key_content = payloads.encode(keys, layout.element, "none")
                    _, value_payload, value_content = payloads.encode(values, layout.element, "none")
                digests = (
                    payloads.payload_digest(payloads.place_of(name, index, b"k"), key_content),
                    payloads.payload_digest(payloads.place_of(name, index, b"v"), value_content),
                )
                rows.append((index, codec_id, *digests, key_payload, value_payload))
        yield Encoded(name, parent, tokens, position, rows)
        parent = name


def write_blocks(
    session: Session,
    namespace: Namespace,
    blocks: Sequence[Encoded],
    *,
    logged: bool,
    ttl: float | None,
    pinned: bool,
) -> StoredPrefix:
    """Publish encoded blocks, within the caller's transaction."""
    stored = StoredPrefix()
    if not blocks:
        return stored
    namespace_id = ensure_namespace(session, namespace)
    by_copy = may_copy(session.connection())
    with Reading(session)() as connection:
        shared = {
            "tenant": namespace.tenant_id,
            "namespace": namespace_id,
            "is_logged": logged,
            "is_pinned": pinned,
            "ttl": ttl,
        }
        chosen = _missing_and_there(connection, shared, blocks, stored)
        new = [block for block in chosen if block.rows]
        if new:
            room = make_room(connection, namespace.tenant_id, sum(block.nbytes for block in new), chosen)
            stored.has_room, stored.evicted_count = room
            if not stored.has_room:  # what is there lives on all the same
                stored.token_count -= sum(len(block.tokens) for block in new) // TOKEN_NBYTES
                chosen, new = [block for block in chosen if not block.rows], []
        written = _insert(connection, shared, new)
        table = KV_CACHE_PAYLOADS if logged else KV_CACHE_UNLOGGED_PAYLOADS
        rows = [
            (namespace.tenant_id, namespace_id, block.block_hash, *row)
            for block in new
            if block.position in written
            for row in block.rows
        ]
        table.insert(connection, rows, by_copy=by_copy)
        _settle(connection, shared, chosen, new, written)
    stored.new_token_count = sum(len(b.tokens) for b in new if b.position in written) // TOKEN_NBYTES
    stored.stored_nbytes = sum(b.nbytes for b in new if b.position in written)
    return stored


def _missing_and_there(
    connection: psycopg.Connection[Any], shared: dict[str, Any], blocks: Sequence[Encoded], stored: StoredPrefix
) -> list[Encoded]:
    """The blocks to write and those that are there, as far as the chain holds."""
    there = dict(connection.execute(_STORED, shared | _arrays(blocks)).fetchall())
    chosen: list[Encoded] = []
    seen: set[bytes] = set()
    for block in blocks:
        is_equal = there.get(block.position)
        if is_equal is False or block.block_hash in seen:
            stored.suspects.append(block.block_hash)
            break
        covering = _covering(connection, shared, block) if is_equal is None and block is blocks[-1] else None
        if is_equal is None and covering is None and not block.rows:
            break  # skipped as stored, and evicted since
        stored.token_count += len(block.tokens) // TOKEN_NBYTES
        seen.add(block.block_hash)
        if covering is not None:
            chosen.append(block._replace(block_hash=covering, rows=[]))
        else:
            chosen.append(block if is_equal is None else block._replace(rows=[]))
    return chosen


def _covering(connection: psycopg.Connection[Any], shared: dict[str, Any], block: Encoded) -> bytes | None:
    """The hash of a block that holds these tokens and more."""
    values = shared | {"tokens": block.tokens, "parent": block.parent_hash}
    row = connection.execute(_behind(_COVERED, block), values).fetchone()
    return bytes(row[0]) if row is not None and bytes(row[1]).startswith(block.tokens) else None


def _insert(connection: psycopg.Connection[Any], shared: dict[str, Any], new: Sequence[Encoded]) -> set[int]:
    """Positions of the blocks that are this transaction's own; others were just stored by somebody else."""
    if not new:
        return set()
    values = shared | _arrays(new) | {"nbytes": [block.nbytes for block in new]}
    written = {position for (position,) in connection.execute(_INSERT, values)}
    others = [block for block in new if block.position not in written]
    if others and not all(same for _, same in connection.execute(_STORED, shared | _arrays(others))):
        raise TransactionConflict("other tokens of the same hash were stored in the meantime: run the unit again")
    return written


def _settle(
    connection: psycopg.Connection[Any],
    shared: dict[str, Any],
    chosen: Sequence[Encoded],
    new: Sequence[Encoded],
    written: set[int],
) -> None:
    """Let what stands before live as long, and parts of blocks go that are part of a longer one now."""
    older = [block.block_hash for block in chosen if block.position not in written]
    if older:
        connection.execute(_RENEW, shared | {"hashes": older})
    for block in new:
        if block.position in written:
            connection.execute(
                _behind(_SUPERSEDED, block), shared | {"tokens": block.tokens, "parent": block.parent_hash}
            )


def _behind(statement: str, block: Encoded) -> str:
    return statement.format(parent="IS NULL" if block.parent_hash is None else "= %(parent)b")


def _arrays(blocks: Sequence[Encoded]) -> dict[str, list[Any]]:
    return {
        "hashes": [block.block_hash for block in blocks],
        "parents": [block.parent_hash for block in blocks],
        "tokens": [block.tokens for block in blocks],
        "positions": [block.position for block in blocks],
    }
