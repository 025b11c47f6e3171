"""The identity of a module now: of a model in this database while every byte is that model's, else its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakKeyDictionary

from blake3 import blake3

from arc_halo.errors import CacheError
from arc_halo.inference.namespaces import Namespace
from arc_halo.integrations.torch_identity.adapters import split_adapters
from arc_halo.integrations.torch_identity.contents import Contents, Digests, Held, Stamp, hash_tensors, main_type
from arc_halo.integrations.torch_identity.spelling import canonical
from arc_halo.integrations.torch_identity.structure import describe_structure, refuse_hidden_changes, wrappers
from arc_halo.integrations.torch_identity.tokenizers import tokenizer_digest
from arc_halo.integrations.torch_training.naming import unwrapped
from arc_halo.schema.columns import TENANT_ID

if TYPE_CHECKING:
    import uuid

    import torch

    from arc_halo.inference.namespaces import CacheKind, Precision

Changes = Literal["content", "versions"]

# BLAKE3's key derivation mode. Part of what caches are named by.
_CONFIG_CONTEXT: Final = "arc-halo 2026-11 module identity"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What a module computes with.

    Attributes
    ----------
    weights_digest
        Merkle root over parameters and persistent buffers, 32 bytes: of the model in the database if ``is_registered``,
        else of what the module holds. Of a PEFT model those of its base.
    config_digest
        Of classes, settings, config and the other buffers, 32 bytes.
    tokenizer_digest, adapter_digest
        32 bytes; None without one.
    is_registered, model_id
        Whether the weights are, byte for byte, those of a model in the database, and which.
    dtype
        Name, as safetensors has it, of the type that most parameters have.
    """

    weights_digest: bytes
    config_digest: bytes
    tokenizer_digest: bytes | None
    adapter_digest: bytes | None
    is_registered: bool
    model_id: uuid.UUID | None
    dtype: str


@dataclass(frozen=True, slots=True)
class _Registered:
    model_id: uuid.UUID
    weights_digest: bytes
    contents: Contents


@dataclass(slots=True)
class _State:
    """What is remembered of a module: as it was loaded, and as it was when last looked at."""

    registered: _Registered | None = None
    stamps: dict[str, Stamp] = field(default_factory=dict)
    contents: Contents = field(default_factory=dict)
    digests: Digests = field(default_factory=Digests)
    lock: RLock = field(default_factory=RLock)


# Beside modules, not in them: a copy of a module starts with nothing known of it, and state dicts stay as they are.
_states: WeakKeyDictionary[torch.nn.Module, _State] = WeakKeyDictionary()


def identify(
    module: torch.nn.Module,
    *,
    tokenizer: Any = None,
    changes: Changes = "content",
    allow_hooks: bool = False,
) -> ModelIdentity:
    """What a module computes with, as it is now.

    Modules with equal identities compute the same, but for how machines, numbers of threads and batches round; one that
    was changed in any way has another. What no digest could tell is refused. Not seen is code that was replaced in a
    class or in a library, and an installed release that computes otherwise.

    Parameters
    ----------
    tokenizer
        The one that makes its input, of transformers or ``tokenizers``.
    changes
        ``content`` reads all weights each time, by a fast hash (128-bit xxh3, at the speed of memory), which is
        compared with that of what was loaded; BLAKE3 reads only what is new. ``versions`` trusts torch's counters,
        which do not see what is written through ``tensor.data`` (merges of adapters do that), through numpy or from
        other processes: for modules that nobody but torch's own operations changes.
    allow_hooks
        Take a module with forward hooks, or with methods of its own; they must change no result.

    Raises
    ------
    CacheError
        No digest could tell its results: hooks, random numbers in training mode, state or tensors that are more than
        plain memory.
    TensorError
        A tensor is on the device ``meta``, or has a type that cannot be stored.

    Examples
    --------
    >>> identify(module, tokenizer=tokenizer).is_registered  # doctest: +SKIP
    True
    """
    inner = unwrapped(module)
    around = list(wrappers(module, inner))
    refuse_hidden_changes(inner, around, allow_hooks=allow_hooks)
    state = _states.setdefault(inner, _State())
    with state.lock:  # threads may share a module
        return _identify(inner, around, state, tokenizer=tokenizer, changes=changes)


def _identify(
    inner: torch.nn.Module, around: list[torch.nn.Module], state: _State, *, tokenizer: Any, changes: Changes
) -> ModelIdentity:
    held = Held.by(inner)
    weights = _contents(state, held, changes)
    rest = hash_tensors(held.rest)
    base, adapter = split_adapters(inner, held)
    own = {name: weights[held_name] for name, held_name in base.items()}
    loaded = _registered(inner, state, own, has_adapter=bool(adapter))
    structure = describe_structure(inner, around) | {"rest": state.digests.root(held.rest, rest).hex()}
    identity = ModelIdentity(
        weights_digest=loaded.weights_digest
        if loaded
        else state.digests.root({name: held.weights[held_name] for name, held_name in base.items()}, own),
        config_digest=blake3(canonical(structure), derive_key_context=_CONFIG_CONTEXT).digest(),
        tokenizer_digest=None if tokenizer is None else tokenizer_digest(tokenizer),
        adapter_digest=state.digests.root(held.weights, {name: weights[name] for name in adapter}) if adapter else None,
        is_registered=loaded is not None,
        model_id=loaded.model_id if loaded else None,
        dtype=main_type(held),
    )
    state.digests.keep(weights, rest)
    return identity


def remember_registered(module: torch.nn.Module, model_id: uuid.UUID, weights_digest: bytes) -> None:
    """Take a module's content as that of a model in the database, until it is changed.

    The caller has compared them.
    """
    inner = unwrapped(module)
    contents = hash_tensors(Held.by(inner).weights)
    _states.setdefault(inner, _State()).registered = _Registered(model_id, weights_digest, contents)


def namespace_of(
    identity: ModelIdentity,
    *,
    kind: CacheKind,
    layout: str,
    dtype: str | None = None,
    precision: Precision = "exact",
    block_token_count: int | None = None,
    salt: bytes = b"",
    tenant_id: int = TENANT_ID,
) -> Namespace:
    """The namespace of what a module with this identity computes; ``dtype`` is by default that of its parameters.

    Raises
    ------
    CacheError
        Blocks of tokens that do not fit the kind.
    """
    return Namespace(
        kind=kind,
        weights_digest=identity.weights_digest,
        config_digest=identity.config_digest,
        dtype=identity.dtype if dtype is None else dtype,
        layout=layout,
        is_registered=identity.is_registered,
        model_id=identity.model_id,
        adapter_digest=identity.adapter_digest,
        tokenizer_digest=identity.tokenizer_digest,
        precision=precision,
        block_token_count=block_token_count,
        salt=salt,
        tenant_id=tenant_id,
    )


def _contents(state: _State, held: Held, changes: Changes) -> Contents:
    """The weights' hashes, from memory or, where torch's counters are trusted, from the last look at it."""
    if changes == "versions":
        unchanged = held.weights.keys() == state.stamps.keys() and all(
            state.stamps[name].is_of(tensor) for name, tensor in held.weights.items()
        )
        if unchanged:
            return state.contents
    elif changes != "content":
        raise CacheError(f"changes are seen by 'content' or by 'versions', not by {changes!r}")
    # Stamps first: what is written while the hash is made is then seen the next time.
    state.stamps = {name: Stamp.of(tensor) for name, tensor in held.weights.items()}
    state.contents = hash_tensors(held.weights)
    return state.contents


def _registered(module: torch.nn.Module, state: _State, contents: Contents, *, has_adapter: bool) -> _Registered | None:
    """What a module was loaded as, if its content is still that; of a PEFT model its base."""
    peft: Any = module  # typed where it is installed
    known = _states.get(peft.get_base_model()) if has_adapter else state
    loaded = None if known is None else known.registered
    return loaded if loaded is not None and loaded.contents == contents else None
