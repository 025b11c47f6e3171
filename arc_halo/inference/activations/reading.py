"""Activations out of the database: every byte checked; what is damaged is a miss, with an audit that says why."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from arc_halo.errors import (
    BlobStoreError,
    CodecError,
    ConfigurationError,
    CorruptionError,
    DatabaseError,
    MissingChunk,
    TensorError,
    TensorNotFound,
)
from arc_halo.inference.activations.keys import check_digest, check_hook_points, check_namespace
from arc_halo.inference.namespaces import IS_SERVABLE, find_namespace, key_of
from arc_halo.store import Wanted, get_arrays

if TYPE_CHECKING:
    import datetime as dt
    import uuid
    from collections.abc import Iterable, Mapping

    import numpy as np
    from sqlalchemy.orm import Session

    from arc_halo.inference.namespaces import Namespace

_log = logging.getLogger(__name__)
_Reason = Literal["bad_payload", "missing_payload", "unreadable"]
UNREADABLE: Final = (CorruptionError, TensorNotFound, CodecError, TensorError, BlobStoreError, ConfigurationError)

# Expired by the clock of the statement: a transaction may have begun long before.
_FIND: Final = text(f"""
SELECT a.hook_point, a.tensor_id, t.dtype, t.shape, t.nbytes, a.recompute_ms, a.read_ms, a.hit_count, a.last_hit_at,
       a.is_pinned, a.expires_at
  FROM arc_halo.cache_namespaces AS n
  JOIN arc_halo.activation_cache AS a ON a.tenant_id = n.tenant_id AND a.namespace_id = n.id
  JOIN arc_halo.tensor_metadata AS t ON t.tenant_id = a.tenant_id AND t.id = a.tensor_id
 WHERE {IS_SERVABLE}
   AND a.input_digest = :input_digest AND a.hook_point = ANY(CAST(:hook_points AS text[]))
   AND (a.is_pinned OR a.expires_at IS NULL OR a.expires_at > statement_timestamp())
""")  # noqa: S608  # of constants
# Only of an entry that is still there: what was evicted and pruned while it was read is no damage.
_AUDIT: Final = text("""
INSERT INTO arc_halo.cache_audits (tenant_id, namespace_id, kind, reason, details)
SELECT a.tenant_id, a.namespace_id, 'activation', :reason, :details
  FROM arc_halo.activation_cache AS a
 WHERE a.tenant_id = :tenant_id AND a.namespace_id = :namespace_id AND a.input_digest = :input_digest
   AND a.hook_point = :hook_point AND a.tensor_id = :tensor_id
""").bindparams(bindparam("details", type_=JSONB))


@dataclass(frozen=True, slots=True)
class StoredActivation:
    """An entry that would be served.

    Attributes
    ----------
    nbytes
        Of the array, before compression.
    recompute_ms, read_ms
        What computing took, and the entry's part of what reading took; milliseconds, None before it was measured.
    hit_count, last_hit_at
        As far as they were written: `ActivationCache` collects them for a while.
    """

    hook_point: str
    tensor_id: uuid.UUID
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    recompute_ms: float | None
    read_ms: float | None
    hit_count: int
    last_hit_at: dt.datetime | None
    is_pinned: bool
    expires_at: dt.datetime | None


@dataclass(slots=True)
class Readout:
    """Arrays that are what was stored, and the entries whose are not."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    damaged: dict[str, StoredActivation] = field(default_factory=dict)


def find_activations(
    session: Session, namespace: Namespace, hook_points: Iterable[str], input_digest: bytes
) -> dict[str, StoredActivation]:
    """The entries of hook points for an input, without their bytes; what is expired or retired is not there.

    Raises
    ------
    CacheError
        The namespace is not one of activations, or a name or digest is none.
    """
    check_namespace(namespace)
    check_digest(input_digest)
    names = check_hook_points(hook_points)
    asked = {"input_digest": input_digest, "hook_points": names}
    rows = session.execute(_FIND, key_of(namespace) | asked).mappings()
    found = {row["hook_point"]: StoredActivation(**{**row, "shape": tuple(row["shape"])}) for row in rows}
    return {name: found[name] for name in names if name in found}


def get_activations(
    session: Session, namespace: Namespace, hook_points: Iterable[str], input_digest: bytes
) -> dict[str, np.ndarray] | None:
    """The outputs of hook points for an input, in the order asked; None if not all of them are there and sound.

    Hits are not counted here: that is a write. `ActivationCache` counts them beside.

    Raises
    ------
    CacheError
        The namespace is not one of activations, or a name or digest is none.
    """
    names = check_hook_points(hook_points)
    found = find_activations(session, namespace, names, input_digest)
    if len(found) < len(names):
        return None
    readout = read_activations(session, namespace, input_digest, found)
    return readout.arrays if len(readout.arrays) == len(names) else None


def read_sound(session: Session, found: Mapping[str, StoredActivation]) -> dict[str, np.ndarray]:
    """Read entries that are sound; one of `UNREADABLE` is raised if one of them is not."""
    return dict(zip(found, get_arrays(session, map(_wanted, found.values())), strict=True))


def read_activations(
    session: Session, namespace: Namespace, input_digest: bytes, found: Mapping[str, StoredActivation]
) -> Readout:
    """Read entries; each that is damaged has an audit, as far as the caller's transaction may write one."""
    try:
        return Readout(read_sound(session, found))
    except UNREADABLE:
        # One by one: an error while reading ahead does not say which of them are sound.
        readout = Readout()
    for name, entry in found.items():
        try:
            (readout.arrays[name],) = get_arrays(session, [_wanted(entry)])
        except TensorNotFound:
            continue  # evicted and pruned meanwhile
        except UNREADABLE as error:
            readout.damaged[name] = entry
            _audit(session, namespace, input_digest, entry, error)
    return readout


def _wanted(entry: StoredActivation) -> Wanted:
    return Wanted(entry.hook_point, entry.tensor_id, entry.nbytes)


def _audit(
    session: Session, namespace: Namespace, input_digest: bytes, entry: StoredActivation, error: Exception
) -> None:
    reason = _reason(error)
    _log.warning("the activation of %r is not served (%s): %s", entry.hook_point, reason, error)
    details = {"hook_point": entry.hook_point, "input_digest": input_digest.hex(), "tensor_id": str(entry.tensor_id)}
    values = {
        "tenant_id": namespace.tenant_id,
        "namespace_id": find_namespace(session, namespace),
        "input_digest": input_digest,
        "hook_point": entry.hook_point,
        "tensor_id": entry.tensor_id,
        "reason": reason,
        "details": details | {"message": str(error)},
    }
    try:
        with session.begin_nested():
            session.execute(_AUDIT, values)
    except DatabaseError as refused:  # a replica, for one: the miss counts, not its record
        _log.warning("no audit could be written: %s", refused)


def _reason(error: Exception) -> _Reason:
    if isinstance(error, MissingChunk):
        return "missing_payload"
    return "bad_payload" if isinstance(error, CorruptionError) else "unreadable"
