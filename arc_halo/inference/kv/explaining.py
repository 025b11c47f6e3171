"""Why a prompt hits or misses: its blocks one by one, and what ends the stored prefix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import and_, exists, func, or_, select

from arc_halo.inference.kv import hashing
from arc_halo.inference.kv.hashing import TOKEN_NBYTES, common_tokens
from arc_halo.inference.kv.lookup import find_prefix
from arc_halo.inference.namespaces import find_namespace, stored_namespaces
from arc_halo.schema import KVCacheBlock, KVCachePayload, KVCacheStatistics, KVCacheUnloggedPayload

if TYPE_CHECKING:
    import datetime as dt
    import uuid
    from collections.abc import Sequence

    import numpy as np
    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import Session

    from arc_halo.inference.namespaces import Namespace
    from arc_halo.schema import Model

PrefixEnd = Literal["complete", "nothing_after", "other_tokens", "expired", "payloads_gone", "damaged", "retired"]

_EXPIRED: Final = and_(~KVCacheBlock.is_pinned, func.coalesce(KVCacheBlock.expires_at <= func.now(), False))

_COLUMNS: Final = ("block_hash", "token_ids", "position", "stored_nbytes", "is_logged", "is_pinned", "expires_at")


def _is_of_block(table: type[KVCachePayload | KVCacheUnloggedPayload | KVCacheStatistics]) -> ColumnElement[bool]:
    return and_(
        table.tenant_id == KVCacheBlock.tenant_id,
        table.namespace_id == KVCacheBlock.namespace_id,
        table.block_hash == KVCacheBlock.block_hash,
    )


_HAS_PAYLOADS: Final = or_(
    exists().where(_is_of_block(KVCachePayload)).correlate(KVCacheBlock),
    exists().where(_is_of_block(KVCacheUnloggedPayload)).correlate(KVCacheBlock),
)
_BLOCKS: Final[Select[*tuple[Any, ...]]] = select(
    KVCacheBlock, _EXPIRED, _HAS_PAYLOADS, KVCacheStatistics.hit_count, KVCacheStatistics.last_hit_at
).outerjoin(KVCacheStatistics, _is_of_block(KVCacheStatistics))


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A block as it is in the database.

    Parameters
    ----------
    is_expired
        By the database's clock; never of a pinned one.
    has_payloads
        False after a crash of the server that emptied the unlogged table.
    """

    block_hash: bytes
    token_ids: bytes
    position: int
    stored_nbytes: int
    is_logged: bool
    is_pinned: bool
    is_expired: bool
    has_payloads: bool
    expires_at: dt.datetime | None
    hit_count: int
    last_hit_at: dt.datetime | None

    @property
    def token_count(self) -> int:
        """Tokens it holds."""
        return len(self.token_ids) // TOKEN_NBYTES


@dataclass(frozen=True, slots=True)
class ExplainedBlock:
    """A block of the tokens that were asked for.

    Parameters
    ----------
    first_token, token_count
        Which of the tokens.
    block_hash
        Of the stored block if there is one, else under which it would be stored.
    used_token_count
        How many of them a lookup gives back.
    stored
        None if nothing is stored that begins with them.
    """

    position: int
    first_token: int
    token_count: int
    block_hash: bytes
    used_token_count: int
    stored: StoredBlock | None


@dataclass(frozen=True, slots=True)
class ExplainedPrefix:
    """What one namespace has of a row of tokens.

    Parameters
    ----------
    hit_token_count
        What a lookup finds and can read.
    end
        Why it goes no further: ``complete``, there is nothing more to find; ``nothing_after``, nothing is stored behind
        it; ``other_tokens`` are; what follows is ``expired``; its payloads are gone (``payloads_gone``) or its row is
        not what was stored (``damaged``); or all of it is ``retired`` with the version.
    """

    namespace_id: int
    namespace: Namespace
    asked_token_count: int
    hit_token_count: int
    blocks: tuple[ExplainedBlock, ...]
    end: PrefixEnd


def explain_prefix(
    session: Session, model: Model | uuid.UUID | str, token_ids: Sequence[int] | np.ndarray
) -> list[ExplainedPrefix]:
    """What each namespace of a version's weights has of a row of tokens, and why no more; counts no hits.

    A live model asks in one of these namespaces at most, which its config, tokenizer, types and blocks decide.

    Raises
    ------
    ModelNotFound
        There is no such version.
    WeightsNotFinal
        It has no digest of its weights.
    CacheError
        These are no token ids.
    """
    packed = hashing.pack_tokens(token_ids)
    namespaces = stored_namespaces(session, model, "kv")
    return [_explain(_Stored(session, namespace, number), packed) for number, namespace in namespaces.items()]


class _Stored:
    """The blocks of one namespace, those that no lookup finds included."""

    def __init__(self, session: Session, namespace: Namespace, namespace_id: int) -> None:
        self.session, self.namespace, self.id = session, namespace, namespace_id
        assert namespace.block_token_count is not None
        self.block_token_count = namespace.block_token_count
        self._here = and_(KVCacheBlock.tenant_id == namespace.tenant_id, KVCacheBlock.namespace_id == namespace_id)

    def named(self, hashes: Sequence[bytes]) -> dict[bytes, StoredBlock]:
        """Those of these hashes."""
        return {block.block_hash: block for block in self._read(_BLOCKS.where(KVCacheBlock.block_hash.in_(hashes)))}

    def nearest_expired(self, parent: bytes, tokens: bytes) -> StoredBlock | None:
        """Of the expired ones behind a parent the one that shares most with the tokens: next to them in order."""
        behind = _BLOCKS.where(self._is_behind(parent), _EXPIRED).limit(1)
        below = behind.where(KVCacheBlock.token_ids < tokens).order_by(KVCacheBlock.token_ids.desc())
        above = behind.where(KVCacheBlock.token_ids >= tokens).order_by(KVCacheBlock.token_ids)
        found = [*self._read(below), *self._read(above)]
        return max(found, key=lambda block: common_tokens(block.token_ids, tokens), default=None)

    def has_any_behind(self, parent: bytes) -> bool:
        """Whether anything at all is stored behind a parent."""
        return bool(self.session.scalar(select(exists().where(self._here, self._is_behind(parent)))))

    def _is_behind(self, parent: bytes) -> ColumnElement[bool]:
        is_first = parent == self.namespace.digest
        return KVCacheBlock.parent_hash.is_(None) if is_first else KVCacheBlock.parent_hash == parent

    def _read(self, statement: Select[*tuple[Any, ...]]) -> list[StoredBlock]:
        return [
            StoredBlock(
                **{name: getattr(row, name) for name in _COLUMNS},
                is_expired=is_expired,
                has_payloads=has_payloads,
                hit_count=hit_count or 0,
                last_hit_at=last_hit_at,
            )
            for row, is_expired, has_payloads, hit_count, last_hit_at in self.session.execute(
                statement.where(self._here), execution_options={"populate_existing": True}
            )
        ]


def _explain(stored: _Stored, packed: bytes) -> ExplainedPrefix:
    namespace, size = stored.namespace, stored.block_token_count
    prefix = find_prefix(stored.session, namespace, hashing.unpack_tokens(packed))
    names = _names(namespace.digest, packed, size)
    names[: len(prefix.blocks)] = [block.block_hash for block in prefix.blocks]  # the last may be another's beginning
    blocks = stored.named(names)
    used: dict[bytes, int] = {}
    for block in prefix.blocks:
        if block.block_hash not in blocks or not blocks[block.block_hash].has_payloads:
            break
        used[block.block_hash] = block.used_token_count
    end = _end(stored, packed, names, blocks, used, is_damaged=bool(prefix.suspects))
    count = len(packed) // TOKEN_NBYTES
    explained = tuple(
        ExplainedBlock(number, first, min(size, count - first), name, used.get(name, 0), blocks.get(name))
        for number, (first, name) in enumerate(zip(range(0, count, size), names, strict=True))
    )
    return ExplainedPrefix(stored.id, namespace, count, sum(used.values()), explained, end)


def _names(digest: bytes, packed: bytes, size: int) -> list[bytes]:
    """The hashes of all blocks, of a last one that is not whole, too."""
    names = hashing.chain(digest, packed, size)
    if rest := packed[len(names) * size * TOKEN_NBYTES :]:
        names.append(hashing.block_hash(names[-1] if names else digest, rest))
    return names


def _end(
    stored: _Stored,
    packed: bytes,
    names: list[bytes],
    blocks: dict[bytes, StoredBlock],
    used: dict[bytes, int],
    *,
    is_damaged: bool,
) -> PrefixEnd:
    """Why the prefix ends; an expired block that would go on with the tokens takes its place among the others."""
    if find_namespace(stored.session, stored.namespace) is None:
        return "retired"
    at, partly = divmod(sum(used.values()), stored.block_token_count)
    if at == len(names) or at * stored.block_token_count + partly == len(packed) // TOKEN_NBYTES:
        return "complete"
    last = blocks.get(names[at])
    if is_damaged or (last is not None and not last.has_payloads):
        return "damaged" if is_damaged else "payloads_gone"
    parent = names[at - 1] if at else stored.namespace.digest
    rest = packed[at * stored.block_token_count * TOKEN_NBYTES :][: stored.block_token_count * TOKEN_NBYTES]
    expired = stored.nearest_expired(parent, rest)
    if expired is not None and common_tokens(expired.token_ids, rest) > partly:
        if not partly:
            names[at], blocks[expired.block_hash] = expired.block_hash, expired
        return "expired"
    if partly:
        return "other_tokens" if last is not None and last.token_count > partly else "nothing_after"
    return "other_tokens" if stored.has_any_behind(parent) else "nothing_after"
