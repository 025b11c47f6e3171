"""Plain trees of what torch keeps in dicts and lists, and back: tensors become arrays that say so."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from arc_halo.errors import CheckpointError
from arc_halo.integrations.torch import from_numpy, to_numpy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TENSOR: Final = "torch.Tensor"
_DEQUE: Final = "collections.deque"
_DICT: Final = "dict"
_TAGS: Final = frozenset({TENSOR, _DEQUE, _DICT})
_LEAVES: Final = (bool, int, float, str, bytes, np.ndarray, np.generic)


def to_plain(value: Any, path: str) -> Any:
    """The same value of dicts, lists, tuples, numbers, text, bytes and arrays alone.

    A tensor becomes ``{"torch.Tensor": array}`` over its own memory where that is contiguous and on the CPU.

    Parameters
    ----------
    path
        What the value is called in errors, such as ``scheduler``.

    Raises
    ------
    CheckpointError
        Something is neither of these, nor a `Counter`, `OrderedDict` or `deque` of such; the message says where.
    """
    for kind, convert in _CONVERTED.items():
        if isinstance(value, kind):
            return convert(value, path)
    if value is None or isinstance(value, _LEAVES):
        return value
    raise CheckpointError(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which is no plain value and not stored; "
        "keep numbers, text, arrays, tensors, lists and dicts there, and make the object from them"
    )


def _dict(value: dict[Any, Any], path: str) -> dict[Any, Any]:
    kind = type(value) if isinstance(value, Counter | OrderedDict) else dict
    plain = kind({key: to_plain(each, f"{path}[{key!r}]") for key, each in value.items()})
    return {_DICT: plain} if _is_tagged(plain) else plain


def _list(value: Iterable[Any], path: str) -> list[Any]:
    return [to_plain(each, f"{path}[{index}]") for index, each in enumerate(value)]


_CONVERTED: Final[dict[type, Callable[[Any, str], Any]]] = {
    torch.Tensor: lambda value, path: {TENSOR: to_numpy(value, path)},
    dict: _dict,
    deque: lambda value, path: {_DEQUE: [_list(value, path), value.maxlen]},
    list: _list,
    tuple: lambda value, path: tuple(_list(value, path)),
}


def from_plain(value: Any, device: torch.device | str = "cpu") -> Any:
    """What `to_plain` was given; tensors are on ``device``, in memory of their own."""
    match value:
        case dict() if _is_tagged(value):
            ((tag, content),) = value.items()
            return _untagged(tag, content, device)
        case dict():
            return _mapped(value, device)
        case list():
            return [from_plain(each, device) for each in value]
        case tuple():
            return tuple(from_plain(each, device) for each in value)
        case _:
            return value


def _is_tagged(value: dict[Any, Any]) -> bool:
    return len(value) == 1 and next(iter(value)) in _TAGS


def _untagged(tag: str, content: Any, device: torch.device | str) -> Any:
    if tag == TENSOR:
        return own_tensor(content, device)
    if tag == _DEQUE:
        return deque(from_plain(content[0], device), content[1])
    return _mapped(content, device)


def _mapped(value: dict[Any, Any], device: torch.device | str) -> dict[Any, Any]:
    return type(value)({key: from_plain(each, device) for key, each in value.items()})


def own_tensor(array: np.ndarray | np.generic | float, device: torch.device | str = "cpu") -> torch.Tensor:
    """A tensor in memory that torch allocated.

    Kernels may choose their order of summation by the alignment of their input, so a tensor over an array of another
    allocator could go on otherwise than the one it was made from; and who restores twice gets the same both times.
    """
    tensor = from_numpy(np.asarray(array))
    return tensor.clone() if torch.device(device).type == "cpu" else tensor.to(device)
