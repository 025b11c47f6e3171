"""The longest stored prefix of a row of tokens, in one round trip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from arc_halo.errors import CacheError
from arc_halo.inference.kv import hashing
from arc_halo.inference.kv.hashing import TOKEN_NBYTES, common_tokens
from arc_halo.store.connections import Reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.inference.namespaces import Namespace

# One statement, so one moment and one round trip. Hashes lead to the whole blocks of the chain; a block counts only if
# it holds the very tokens, stands behind the very block before it, and so do all before it. What follows the last of
# them is found by its tokens: of the blocks behind it in the order of their tokens, the one before and the one after
# the query's share the most with it.
SERVABLE: Final = """
namespace AS MATERIALIZED (
    SELECT n.id
      FROM arc_halo.cache_namespaces AS n
     WHERE n.tenant_id = %(tenant)s AND n.digest = %(namespace)b
       AND arc_halo.is_servable(n.tenant_id, n.weights_digest, n.is_registered)
       AND (%(model)s::uuid IS NULL
            OR EXISTS (SELECT FROM arc_halo.models AS m
                        WHERE m.id = %(model)s::uuid AND m.tenant_id = n.tenant_id
                          AND m.weights_digest = n.weights_digest AND m.status <> 'archived')))"""
_COLUMNS: Final = "b.block_hash, b.parent_hash, b.token_ids, b.is_logged, b.stored_nbytes"
_ALIVE: Final = "(b.is_pinned OR b.expires_at IS NULL OR b.expires_at > now())"


def _neighbour(parent: str, condition: str, comparison: str, direction: str) -> str:
    return f"""
    (SELECT {_COLUMNS}
       FROM arc_halo.kv_cache AS b
      WHERE b.tenant_id = %(tenant)s AND b.namespace_id = d.namespace_id AND b.parent_hash {parent} AND {condition}
        AND b.token_ids {comparison} d.tokens AND {_ALIVE}
      ORDER BY b.parent_hash {direction}, b.token_ids {direction}
      LIMIT 1)"""  # noqa: S608  (of constants)


_NEIGHBOURS: Final = "\n     UNION ALL".join(
    _neighbour(parent, condition, comparison, direction)
    for parent, condition in (("IS NULL", "d.parent_hash IS NULL"), ("= d.parent_hash", "TRUE"))
    for comparison, direction in (("<", "DESC"), (">=", "ASC"))
)
_FIND: Final = f"""
WITH {SERVABLE},
chained AS MATERIALIZED (
    SELECT w.number, {_COLUMNS},
           bool_and(b.token_ids = substr(%(tokens)b, ((w.number - 1) * %(step)s)::integer + 1, %(step)s)) OVER line
           AND bool_and(b.parent_hash IS NOT DISTINCT FROM w.parent_hash) OVER line AS is_equal,
           row_number() OVER line = w.number AS is_next
      FROM namespace AS n
      CROSS JOIN unnest(%(hashes)b::bytea[], %(parents)b::bytea[]) WITH ORDINALITY
                 AS w (block_hash, parent_hash, number)
      CROSS JOIN LATERAL (
           SELECT k.* FROM arc_halo.kv_cache AS k
            WHERE k.tenant_id = %(tenant)s AND k.namespace_id = n.id AND k.block_hash = w.block_hash
            LIMIT 1) AS b
     WHERE {_ALIVE}
    WINDOW line AS (ORDER BY w.number)),
deepest AS MATERIALIZED (
    SELECT n.id AS namespace_id, found.depth, found.parent_hash,
           substr(%(tokens)b, (found.depth * %(step)s)::integer + 1, %(step)s) AS tokens
      FROM namespace AS n
      CROSS JOIN (SELECT coalesce(max(number), 0) AS depth,
                         (array_agg(block_hash ORDER BY number DESC))[1] AS parent_hash
                    FROM chained
                   WHERE is_equal AND is_next) AS found)
SELECT d.namespace_id, 0 AS number, NULL::bytea, NULL::bytea, NULL::bytea, NULL::boolean, NULL::bigint, TRUE
  FROM deepest AS d
UNION ALL
SELECT d.namespace_id, c.number, c.block_hash, c.parent_hash, CASE WHEN NOT c.is_equal THEN c.token_ids END,
       c.is_logged, c.stored_nbytes, c.is_equal
  FROM deepest AS d
  JOIN chained AS c ON c.is_next
UNION ALL
SELECT d.namespace_id, -1, t.block_hash, t.parent_hash, t.token_ids, t.is_logged, t.stored_nbytes, TRUE
  FROM deepest AS d
  CROSS JOIN LATERAL ({_NEIGHBOURS}) AS t
 WHERE d.tokens <> ''
 ORDER BY 2
"""  # noqa: S608  (of constants)


class CachedBlock(NamedTuple):
    """A stored block, and how much of it a prefix uses."""

    block_hash: bytes
    is_logged: bool
    stored_nbytes: int
    token_count: int
    used_token_count: int
    """Fewer than it holds where what was asked for ends, or goes on otherwise, inside it."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """What is stored of a row of tokens; false if that is nothing.

    Parameters
    ----------
    namespace_id
        None if there is no such namespace, or nothing may be served from it.
    token_count
        Tokens whose keys and values are stored.
    blocks
        From the first to the last.
    suspects
        Hashes under which other tokens, or another parent, were found: collisions, or rows that were changed.
    damaged
        Those of the suspects whose tokens and parent do not have that hash.
    """

    namespace_id: int | None
    token_count: int
    asked_token_count: int
    blocks: tuple[CachedBlock, ...] = ()
    suspects: tuple[bytes, ...] = ()
    damaged: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return self.token_count > 0

    @property
    def stored_nbytes(self) -> int:
        """Bytes of the payloads that `load_prefix` will read."""
        return sum(block.stored_nbytes for block in self.blocks)


def find_prefix(session: Session, namespace: Namespace, token_ids: Sequence[int] | np.ndarray) -> Prefix:
    """The longest stored prefix, by one statement.

    Whole blocks are found by their hashes and compared token by token; after the last of them any block that begins
    with the same tokens serves as far as these go, so a prefix may end anywhere. Counts no hits; `KVCache` does.

    Raises
    ------
    CacheError
        The namespace is not one of keys and values, or these are no token ids.
    """
    size = namespace.block_token_count
    if size is None:
        raise CacheError(f"a namespace of kind {namespace.kind!r} has no keys and values")
    packed = hashing.pack_tokens(token_ids)
    hashes = hashing.chain(namespace.digest, packed, size)
    values = {
        "tenant": namespace.tenant_id,
        "namespace": namespace.digest,
        "model": namespace.model_id,
        "tokens": packed,
        "step": size * TOKEN_NBYTES,
        "hashes": hashes,
        "parents": [None, *hashes[:-1]] if hashes else [],
    }
    with Reading(session)() as connection, connection.cursor(binary=True) as cursor:
        rows = cursor.execute(_FIND, values).fetchall()
    return _assemble(rows, namespace.digest, packed, size)


def _assemble(rows: Sequence[tuple[Any, ...]], digest: bytes, packed: bytes, size: int) -> Prefix:
    asked = len(packed) // TOKEN_NBYTES
    if not rows:
        return Prefix(None, 0, asked)
    blocks: list[CachedBlock] = []
    suspects: list[bytes] = []
    damaged: list[bytes] = []

    def suspect(name: bytes, parent: bytes | None, tokens: bytes) -> None:
        suspects.append(bytes(name))
        if hashing.block_hash(digest if parent is None else parent, tokens) != name:
            damaged.append(bytes(name))

    for _namespace, number, name, parent, tokens, is_logged, nbytes, is_equal in rows:
        if number < 1:
            continue
        if not is_equal:
            suspect(name, parent, tokens)
            break  # those after it stand behind the wrong one
        blocks.append(CachedBlock(bytes(name), is_logged, nbytes, size, size))
    wanted = memoryview(packed)[len(blocks) * size * TOKEN_NBYTES :][: size * TOKEN_NBYTES]
    best: CachedBlock | None = None
    for _namespace, number, name, parent, tokens, is_logged, nbytes, _is_equal in rows:
        if number != -1:
            continue
        if hashing.block_hash(digest if parent is None else parent, tokens) != name:
            suspect(name, parent, tokens)  # its row was changed: whose keys and values are these?
        elif (used := common_tokens(tokens, wanted)) > (best.used_token_count if best else 0):
            best = CachedBlock(bytes(name), is_logged, nbytes, len(tokens) // TOKEN_NBYTES, used)
    if best is not None:
        blocks.append(best)
    count = sum(block.used_token_count for block in blocks)
    return Prefix(rows[0][0], count, asked, tuple(blocks), tuple(suspects), tuple(damaged))
