"""The arguments of a call as arrays with names, and all else that a module's output depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from arc_halo.errors import CacheError
from arc_halo.integrations.torch import to_numpy

if TYPE_CHECKING:
    import inspect
    from collections.abc import Iterator, Mapping


def as_inputs(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arguments by the names of parameters, however they were passed; what was left to its default is not there.

    Raises
    ------
    CacheError
        An argument is neither tensor nor array nor plain value, nor a nesting of those: whether another is equal to it
        cannot be told.
    """
    bound = signature.bind(*args, **kwargs)
    return {path: array for name, value in bound.arguments.items() for path, array in _flatten(name, value)}


def surroundings(device: torch.device) -> dict[str, np.ndarray]:
    """What the output depends on besides arguments and weights, under names that no argument has."""
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    said = {"autocast": autocast, "device": device.type, "matmul": torch.get_float32_matmul_precision()}
    return {f"torch.{name}": _plain(str(value)) for name, value in said.items()}


def _flatten(path: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    match value:
        case torch.Tensor():
            yield path, to_numpy(value, path)
        case np.ndarray() | np.generic():
            yield path, np.asarray(value)
        case None | bool() | int() | float() | str() | torch.dtype() | torch.device():
            # The type is part of the name: True is not 1, and no text is an array of its bytes.
            yield f"{path}:{type(value).__name__}", _plain(repr(value))
        case dict():
            yield f"{path}:dict", _plain(repr(len(value)))
            for key, each in value.items():
                yield from _flatten(f"{path}[{_key(path, key)}]", each)
        case list() | tuple():
            yield f"{path}:list", _plain(repr(len(value)))
            for index, each in enumerate(value):
                yield from _flatten(f"{path}[{index}]", each)
        case _:
            raise CacheError(
                f"whether a {type(value).__name__} is equal to another cannot be told: pass tensors and plain values "
                f"for {path!r}, or compute without a cache"
            )


def _key(path: str, key: object) -> str:
    if not isinstance(key, str):
        raise CacheError(f"a key of {path!r} is a {type(key).__name__}, and inputs are told apart by text")
    return repr(key)


def _plain(said: str) -> np.ndarray:
    return np.frombuffer(said.encode(), np.uint8)
