"""The tensors a module holds now, hashed fast each time, and by BLAKE3 only where they are new."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from xxhash import xxh3_128_digest

from arc_halo.codecs.digest import TensorHasher, manifest_root
from arc_halo.dtypes import of_array
from arc_halo.errors import CacheError
from arc_halo.integrations.torch import to_numpy
from arc_halo.integrations.torch_identity.structure import OF_ANY_MODULE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from arc_halo.dtypes import DType

# Subclasses (quantised, distributed) keep beside their memory what their memory means.
_PLAIN: Final = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
_WITHOUT_TENSORS: Final = frozenset({bool, float, int, str, type(None)})


class Content(NamedTuple):
    """Type, shape and a 128-bit hash of a tensor's bytes, which is no digest: whoever wants to can make it collide."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    fast: bytes


Contents = dict[str, Content]


@dataclass(frozen=True, slots=True)
class Held:
    """The tensors of a module by name; tied ones under each of their names.

    Attributes
    ----------
    weights
        Parameters and persistent buffers, under the names of ``state_dict``.
    parameters
        Which of them are parameters.
    rest
        Buffers that no ``state_dict`` has, such as the frequencies of rotary embeddings, and tensors that are plain
        attributes, or in lists, tuples and dicts that are.
    """

    weights: dict[str, torch.Tensor]
    parameters: frozenset[str]
    rest: dict[str, torch.Tensor]

    @classmethod
    def by(cls, module: torch.nn.Module) -> Held:
        """What a module and its submodules hold.

        Raises
        ------
        CacheError
            One of them is of a class whose meaning is not in its memory alone.
        """
        weights: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
        parameters = frozenset(weights)
        rest: dict[str, torch.Tensor] = {}
        beside: dict[str, torch.Tensor] = {}
        walked: set[int] = set()
        for path, part in module.named_modules(remove_duplicate=False):
            prefix = f"{path}." if path else ""
            held = vars(part)
            hidden = held["_non_persistent_buffers_set"]  # torch has no other word for it
            for name, buffer in held["_buffers"].items():
                if buffer is not None:
                    (rest if name in hidden else weights)[prefix + name] = buffer
            for name, value in held.items():
                if name in OF_ANY_MODULE or type(value) in _WITHOUT_TENSORS or id(value) in walked:
                    continue
                walked.add(id(value))  # parts share configs, and lists
                beside.update(_inside(prefix + name, value))
        own = {id(each) for each in (*weights.values(), *rest.values())}
        rest |= {name: tensor for name, tensor in beside.items() if id(tensor) not in own}
        for name, tensor in (weights | rest).items():
            if type(tensor) not in _PLAIN:
                kind = type(tensor).__qualname__
                raise CacheError(
                    f"{name!r} is a {kind}: what it means is not in its memory alone; make plain tensors of it first"
                )
        return cls(weights, parameters, rest)


@dataclass(frozen=True, slots=True)
class Stamp:
    """A tensor as torch counts its changes; it stays equal only as long as the very same tensor is meant."""

    tensor: weakref.ref[torch.Tensor]
    place: tuple[object, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Stamp:
        """The stamp of a tensor now."""
        return cls(weakref.ref(tensor), _place(tensor))

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Whether nothing that torch counts has happened to it since."""
        return self.tensor() is tensor and self.place == _place(tensor) and self.place[0] is not None


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    version = None if tensor.is_inference() else tensor._version  # noqa: SLF001  # the counter has no public name
    return version, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _inside(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of an attribute; what else can hold any is refused by `describe_structure`."""
    match value:
        case torch.Tensor():
            yield name, value
        case dict():
            for key, each in value.items():
                yield from _inside(f"{name}[{key!r}]", each)
        case list() | tuple():
            for index, each in enumerate(value):
                yield from _inside(f"{name}[{index}]", each)
        case partial():
            yield from _inside(f"{name}.args", value.args)
            yield from _inside(f"{name}.keywords", value.keywords)
        case SimpleNamespace():
            yield from _inside(name, vars(value))
        case _ if is_dataclass(value) and not isinstance(value, type):
            yield from _inside(name, {each.name: getattr(value, each.name, None) for each in fields(value)})
            yield from _inside(name, getattr(value, "__dict__", {}))


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> Contents:
    """Hash the memory of tensors; what is tied once, what is on another device by a copy, one after another.

    Raises
    ------
    TensorError
        A tensor has no plain memory, or a type that cannot be stored.
    """
    # On one thread: a 128-bit xxh3 reads memory as fast as it comes, and a second thread gains nothing.
    known: dict[tuple[object, ...], Content] = {}
    contents = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)
        content = known.get(place) if tensor.data_ptr() else None
        if content is None:
            fast = xxh3_128_digest(_raw(to_numpy(tensor, name)))
            content = known[place] = Content(tensor.dtype, tuple(tensor.shape), fast)
        contents[name] = content
    return contents


class Digests:
    """BLAKE3 digests of tensors by their fast hashes, so that what was seen before is not read twice."""

    def __init__(self) -> None:
        self._known: dict[Content, bytes] = {}

    def root(self, tensors: Mapping[str, torch.Tensor], contents: Contents) -> bytes:
        """The Merkle root of tensors, as a model's in the database; see `manifest_root`."""
        entries = []
        for name, content in contents.items():
            dtype = stored_type(content.dtype)
            if content not in self._known:
                hasher = TensorHasher(dtype, content.shape)
                hasher.update(_raw(to_numpy(tensors[name], name)))
                self._known[content] = hasher.digest()
            entries.append((name, dtype, content.shape, self._known[content]))
        return manifest_root(entries)

    def keep(self, *contents: Contents) -> None:
        """Forget what is not among these."""
        current = {content for each in contents for content in each.values()}
        self._known = {content: digest for content, digest in self._known.items() if content in current}


@cache
def stored_type(dtype: torch.dtype) -> DType:
    """The type under which a tensor is stored."""
    return of_array(to_numpy(torch.empty(0, dtype=dtype)))


def main_type(held: Held) -> str:
    """The name, as safetensors has it, of the floating type that most elements of the parameters have."""
    counts: dict[torch.dtype, int] = {}
    for dtype, count in _counted(held):
        counts[dtype] = counts.get(dtype, 0) + count
    chosen = max(counts, key=lambda dtype: (dtype.is_floating_point, counts[dtype]), default=torch.get_default_dtype())
    return stored_type(chosen).name


def _counted(held: Held) -> Iterator[tuple[torch.dtype, int]]:
    chosen = held.parameters or held.weights
    yield from ((held.weights[name].dtype, held.weights[name].numel()) for name in chosen)


def _raw(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
