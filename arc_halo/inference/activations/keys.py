"""What an activation is found by: the digest of the inputs and the name of a hook point; and how long it is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blake3 import blake3

from arc_halo.codecs.digest import DIGEST_NBYTES, tensor_header
from arc_halo.errors import CacheError
from arc_halo.schema.columns import TENANT_ID
from arc_halo.store import ArraySource

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from arc_halo.inference.namespaces import Namespace

# BLAKE3's key derivation mode, see `arc_halo.codecs.digest`. Part of the stored format.
_CONTEXT: Final = "arc-halo 2026-11 activation inputs"
_PIECE_NBYTES: Final = 1 << 20
_MAX_HOOK_POINT_NBYTES: Final = 512  # it stands in the primary key, whose entries an index holds whole


def input_digest(inputs: Mapping[str, np.ndarray]) -> bytes:
    """The digest of all that goes into a model, 32 bytes.

    By ascending name, each input is preceded by the length of its name in UTF-8 (8 bytes, little-endian), the name,
    and the header of `arc_halo.codecs.digest.TensorHasher`, which says how many bytes follow: no two mappings share an
    input of the hash. Neither the order of the mapping counts, nor strides, nor the byte order of an array.

    Raises
    ------
    CacheError
        There are no inputs: everything would have the same digest.
    TensorError
        An input is no array, or has a type that cannot be stored.
    """
    if not inputs:
        raise CacheError("there are no inputs to tell activations apart by; give the arrays that go into the model")
    hasher = blake3(derive_key_context=_CONTEXT)
    for key, name in sorted((name.encode(), name) for name in inputs):
        source = ArraySource(name, inputs[name])
        hasher.update(len(key).to_bytes(8, "little") + key + tensor_header(source.dtype, source.shape))
        buffer = memoryview(bytearray(min(source.nbytes, _PIECE_NBYTES)))
        for start in range(0, source.nbytes, _PIECE_NBYTES):
            piece = buffer[: min(len(buffer), source.nbytes - start)]
            source.read_into(start, piece)
            hasher.update(piece)
    return hasher.digest()


def check_namespace(namespace: Namespace) -> None:
    """Raise `CacheError` if activations cannot be kept there."""
    if namespace.kind != "activation":
        raise CacheError(
            f"a namespace of kind {namespace.kind!r} has no activations; `namespace.of_kind('activation', ...)` makes "
            "that of the same model"
        )
    if namespace.tenant_id != TENANT_ID:
        raise CacheError(f"tensors are stored for tenant {TENANT_ID} alone; tell tenants apart by the salt")


def check_digest(digest: bytes) -> None:
    """Raise `CacheError` if it is none."""
    if len(digest) != DIGEST_NBYTES:
        raise CacheError(f"an input digest has {DIGEST_NBYTES} bytes, not {len(digest)}; `input_digest` makes one")


def check_hook_points(hook_points: Iterable[str]) -> list[str]:
    """The names without repetitions, in their order.

    Raises
    ------
    CacheError
        There are none, or one could not be a key.
    """
    names = list(dict.fromkeys(hook_points))
    if not names:
        raise CacheError("no hook point is named; name the modules whose outputs are wanted")
    for name in names:
        if not isinstance(name, str) or "\0" in name or not 0 < len(name.encode()) <= _MAX_HOOK_POINT_NBYTES:
            raise CacheError(
                f"a hook point has a name of 1 to {_MAX_HOOK_POINT_NBYTES} bytes without NUL, not {str(name)[:80]!r}"
            )
    return names


def check_milliseconds(milliseconds: float | None) -> None:
    """Raise `CacheError` if it is not a time that something took."""
    if milliseconds is not None and not 0 <= milliseconds < float("inf"):
        raise CacheError(f"recompute_ms is a time in milliseconds that was measured, not {milliseconds}")
