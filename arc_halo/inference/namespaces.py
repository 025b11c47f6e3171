"""Namespaces: under which digest content is cached, and whether a model may still be served from there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

from blake3 import blake3
from sqlalchemy import select, text

from arc_halo.errors import CacheError, WeightsNotFinal
from arc_halo.registry.naming import find_model
from arc_halo.schema import CacheNamespace
from arc_halo.schema.caches import MAX_BLOCK_TOKENS
from arc_halo.schema.columns import TENANT_ID

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session

    from arc_halo.schema import Model

CacheKind = Literal["kv", "activation", "response"]
Precision = Literal["exact", "int8"]

# BLAKE3's key derivation mode: a namespace's digest cannot be one of another kind. Part of the stored format.
_CONTEXT: Final = "arc-halo 2026-11 cache namespace"

# A version that is asked for by id must itself be there, not be archived, and have these weights now.
IS_SERVABLE: Final = """
n.tenant_id = :tenant_id AND n.digest = :digest
   AND arc_halo.is_servable(n.tenant_id, n.weights_digest, n.is_registered)
   AND (CAST(:model_id AS uuid) IS NULL
        OR EXISTS (SELECT FROM arc_halo.models AS m
                    WHERE m.id = :model_id AND m.tenant_id = n.tenant_id AND m.weights_digest = n.weights_digest
                      AND m.status <> 'archived'))
"""
"""The condition that a namespace ``n`` may be served from; its parameters are those of `key_of`."""
_FIND: Final = text(f"SELECT n.id FROM arc_halo.cache_namespaces AS n WHERE {IS_SERVABLE}")  # noqa: S608  # of constants
_STORED: Final = text("SELECT id FROM arc_halo.cache_namespaces WHERE tenant_id = :tenant_id AND digest = :digest")
_HAS_MODEL: Final = text("""
SELECT EXISTS (SELECT FROM arc_halo.models WHERE tenant_id = :tenant_id AND weights_digest = :weights_digest)
""")
_INSERT: Final = text("""
INSERT INTO arc_halo.cache_namespaces (
       tenant_id, digest, kind, weights_digest, is_registered, adapter_digest, tokenizer_digest, config_digest, dtype,
       layout, precision, block_token_count, salt)
VALUES (:tenant_id, :digest, :kind, :weights_digest, :is_registered, :adapter_digest, :tokenizer_digest,
        :config_digest, :dtype, :layout, :precision, :block_token_count, :salt)
ON CONFLICT (tenant_id, digest) DO NOTHING
""")

_COLUMNS: Final = (
    "kind",
    "weights_digest",
    "is_registered",
    "adapter_digest",
    "tokenizer_digest",
    "config_digest",
    "dtype",
    "layout",
    "precision",
    "block_token_count",
    "salt",
)


@dataclass(frozen=True)
class Namespace:
    """Everything that must be equal for cached content to be the same.

    Parameters
    ----------
    kind
        What is cached.
    weights_digest
        Merkle root of the weights that compute, 32 bytes: of those themselves, never of a name for them.
    config_digest
        Of the architecture's config with its position encoding, 32 bytes.
    dtype, layout
        Element type, and layers and axes, of what is stored.
    is_registered
        The weights are those of a model in this database: nothing is served once no model has them that is not
        archived.
    model_id
        The version that asks. It is no part of the digest, so versions of equal weights share; but nothing is served to
        a version that is archived, deleted, or has other weights by now.
    adapter_digest, tokenizer_digest
        32 bytes each, None without one.
    precision
        ``int8`` is not what was computed, and never served to somebody who asked for ``exact``.
    block_token_count
        Tokens of a whole block; of keys and values only.
    salt
        The tenant's.
    """

    kind: CacheKind
    weights_digest: bytes
    config_digest: bytes
    dtype: str
    layout: str
    is_registered: bool = False
    model_id: uuid.UUID | None = None
    adapter_digest: bytes | None = None
    tokenizer_digest: bytes | None = None
    precision: Precision = "exact"
    block_token_count: int | None = None
    salt: bytes = b""
    tenant_id: int = TENANT_ID

    def __post_init__(self) -> None:
        for name in ("weights_digest", "config_digest", "adapter_digest", "tokenizer_digest"):
            digest = getattr(self, name)
            if digest is not None and len(digest) != blake3.digest_size:
                raise CacheError(f"{name} has {len(digest)} bytes; a BLAKE3-256 digest has {blake3.digest_size}")
        if (self.block_token_count is not None) != (self.kind == "kv"):
            raise CacheError("keys and values are cached in blocks of tokens, and nothing else is")
        if self.block_token_count is not None and not 1 <= self.block_token_count <= MAX_BLOCK_TOKENS:
            raise CacheError(f"a block has 1 to {MAX_BLOCK_TOKENS} tokens, not {self.block_token_count}")
        if self.model_id is not None and not self.is_registered:
            raise CacheError("a model of this database has registered weights")
        if not isinstance(self.salt, bytes):
            raise CacheError(f'the salt is {type(self.salt).__name__}; give bytes, as b"alice"')

    @cached_property
    def digest(self) -> bytes:
        """BLAKE3-256 over all that must be equal; 32 bytes.

        Each part is preceded by its length (8 bytes, little-endian), one that is not there by ones in all bits, so no
        two namespaces share an input.
        """
        hasher = blake3(derive_key_context=_CONTEXT)
        block = None if self.block_token_count is None else str(self.block_token_count).encode()
        for part in (
            self.kind.encode(),
            self.weights_digest,
            b"registered" if self.is_registered else b"",
            self.adapter_digest,
            self.tokenizer_digest,
            self.config_digest,
            self.dtype.encode(),
            self.layout.encode(),
            self.precision.encode(),
            block,
            self.salt,
        ):
            hasher.update(b"\xff" * 8 if part is None else len(part).to_bytes(8, "little") + part)
        return hasher.digest()

    def of_kind(self, kind: CacheKind, *, dtype: str, layout: str, block_token_count: int | None = None) -> Namespace:
        """The namespace of the same model for something else."""
        return replace(self, kind=kind, dtype=dtype, layout=layout, block_token_count=block_token_count)


def weights_of_model(session: Session, model: Model | uuid.UUID | str) -> tuple[Model, bytes]:
    """A version and the digest of its weights as they are now.

    Raises
    ------
    ModelNotFound
        There is no such version.
    WeightsNotFinal
        It has no digest: it has no weights, or they were changed since it was computed.
    CacheError
        It is archived.
    """
    found = find_model(session, model)
    if found.status == "archived":
        raise CacheError(
            f"{found.name}@{found.version} is archived, and nothing is cached for it; give it another status"
        )
    return weights_of_version(session, found)


def weights_of_version(session: Session, model: Model | uuid.UUID | str) -> tuple[Model, bytes]:
    """As `weights_of_model`, of an archived version, too: what was cached for it may be there still.

    Raises
    ------
    ModelNotFound
        There is no such version.
    WeightsNotFinal
        It has no digest.
    """
    found = find_model(session, model)
    if found.weights_digest is None:
        raise WeightsNotFinal(
            f"{found.name}@{found.version} has no weights, or they were changed and not published: nothing computed "
            "with them can be kept; `arc_halo.store.manifest.set_weights_digest(session, model.id)` computes it"
        )
    return found, found.weights_digest


def stored_namespaces(session: Session, model: Model | uuid.UUID | str, kind: CacheKind) -> dict[int, Namespace]:
    """All namespaces with what was computed by the weights of a version, by their ids, the oldest first.

    They ask as that version: nothing is found in them once it is archived.

    Raises
    ------
    ModelNotFound
        There is no such version.
    WeightsNotFinal
        It has no digest.
    """
    found, digest = weights_of_version(session, model)
    of_weights = select(CacheNamespace).where(
        CacheNamespace.tenant_id == found.tenant_id,
        CacheNamespace.weights_digest == digest,
        CacheNamespace.kind == kind,
    )
    return {
        row.id: Namespace(
            **{name: getattr(row, name) for name in _COLUMNS},
            model_id=found.id if row.is_registered else None,
            tenant_id=row.tenant_id,
        )
        for row in session.scalars(of_weights.order_by(CacheNamespace.id))
    }


def find_namespace(session: Session, namespace: Namespace) -> int | None:
    """The id of a namespace that may be served from; None if nothing is cached there, or it was retired."""
    found: int | None = session.scalar(_FIND, key_of(namespace))
    return found


def ensure_namespace(session: Session, namespace: Namespace) -> int:
    """The id of a namespace, which is made if it is not there.

    Raises
    ------
    CacheError
        It is of registered weights that no model of its tenant has, of whatever status: nothing would be served.
    """
    key = key_of(namespace)
    # Looked for first: an upsert would lock the row to the end of a transaction that may write for long.
    found: int | None = session.scalar(_STORED, key)
    if found is None:
        row = key | {name: getattr(namespace, name) for name in _COLUMNS}
        if namespace.is_registered and not session.scalar(_HAS_MODEL, row):
            raise CacheError(
                f"tenant {namespace.tenant_id} has no model with these weights: nothing that is kept for them would be "
                "served; register it there, or tell tenants apart by the salt"
            )
        session.execute(_INSERT, row)
        found = session.execute(_STORED, key).scalar_one()
    return found


def key_of(namespace: Namespace) -> dict[str, object]:
    """The parameters of `IS_SERVABLE`."""
    return {"tenant_id": namespace.tenant_id, "digest": namespace.digest, "model_id": namespace.model_id}
