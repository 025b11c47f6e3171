"""Nested Python values as JSON and arrays, and back without a difference.

PostgreSQL's JSON keeps no order of keys, no NaN, no sign of zero and no difference between 1e16 and an integer. What
it would change stands in an object whose only key begins with ``$``; numbers, texts and dicts that it keeps stand as
they are, so that SQL may ask for them.
"""

from __future__ import annotations

import json
import math
import struct
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.dtypes import by_name, of_array
from arc_halo.errors import CheckpointError, TensorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from arc_halo.training.checkpoint import Tree

INLINE_NBYTES: Final = 256
"""Smaller arrays and bytes stand in the JSON: the rows of a tensor take more than a kilobyte."""
MANY_INTS: Final = 64
"""As many plain integers or more are an array: the state of Python's generator is 625 of them."""
MAX_DEPTH: Final = 100
_MAX_NAME_LENGTH: Final = 300
_MAX_INT_BITS: Final = 1024  # Python refuses to read longer texts of digits than 4,300
_MIN_PLAIN: Final = 1e-30  # JSON of PostgreSQL writes out the zeros of smaller ones
_PAIRS: Final[Mapping[type, str]] = {dict: "$dict", OrderedDict: "$ordered", Counter: "$counter"}
_OF_PAIRS: Final = {tag: kind for kind, tag in _PAIRS.items()}


def encode_tree(tree: Tree, name: str) -> tuple[Any, dict[str, np.ndarray]]:
    """A value as JSON, and the arrays that it refers to by name.

    Parameters
    ----------
    tree
        Any nesting of dict, list and tuple (``OrderedDict`` and ``Counter``, too) over None, bool, int, float, str,
        bytes, numpy arrays and numpy scalars. Dicts may have keys of all those but arrays.
    name
        What the names of the arrays begin with.

    Raises
    ------
    CheckpointError
        It holds something else, or nests deeper than `MAX_DEPTH`; the message says where.
    """
    encoder = _Encoder()
    return encoder.encode(tree, (name,)), encoder.arrays


def decode_tree(encoded: Any, arrays: Mapping[str, np.ndarray]) -> Tree:
    """The value that `encode_tree` was given; arrays are little-endian and contiguous.

    Raises
    ------
    CheckpointError
        It was encoded by a later release.
    """
    if isinstance(encoded, list):
        return [decode_tree(each, arrays) for each in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if len(encoded) == 1:
        ((tag, content),) = encoded.items()
        if tag.startswith("$"):
            return _decode_tagged(tag, content, arrays)
    keys = encoded.get("$keys", encoded)
    return {key: decode_tree(encoded[key], arrays) for key in keys}


def canonical_json(encoded: Any) -> bytes:
    """The one spelling of an encoded value: equal exactly if values are, whatever order the database gives keys."""
    return json.dumps(encoded, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class _Encoder:
    """One walk through a tree."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._by_type: Mapping[type, Callable[[Any, tuple[str, ...]], Any]] = {
            bool: _as_is,
            type(None): _as_is,
            int: _int,
            float: _float,
            str: _text,
            bytes: self._bytes,
            list: self._list,
            tuple: lambda value, path: {"$tuple": self._list(value, path)},
            np.ndarray: self._array,
            np.memmap: self._array,
            **dict.fromkeys(_PAIRS, self._dict),
        }

    def encode(self, value: Any, path: tuple[str, ...]) -> Any:
        if len(path) > MAX_DEPTH:
            raise CheckpointError(f"{_shown(path[:8])}... nests deeper than {MAX_DEPTH}, or holds itself; flatten it")
        encode = self._by_type.get(type(value))
        if encode is None and isinstance(value, np.generic):
            encode = _scalar
        if encode is None:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise CheckpointError(
                f"{_shown(path)} is a {kind}; give dicts, lists, tuples, None, bools, numbers, text, bytes and arrays"
            )
        return encode(value, path)

    def _list(self, value: Sequence[Any], path: tuple[str, ...]) -> Any:
        if len(value) >= MANY_INTS and all(type(each) is int for each in value):
            for dtype in (np.uint32, np.int64):
                limits = np.iinfo(dtype)
                if limits.min <= min(value) and max(value) <= limits.max:
                    return {"$ints": self._name(np.array(value, dtype), path)}
        return [self.encode(each, (*path, str(index))) for index, each in enumerate(value)]

    def _dict(self, value: Mapping[Any, Any], path: tuple[str, ...]) -> Any:
        keys = list(value)
        if type(value) is not dict or not all(_is_plain_key(key) for key in keys):
            pairs = [
                [self.encode(key, (*path, f"key {index}")), self.encode(each, (*path, str(key)))]
                for index, (key, each) in enumerate(value.items())
            ]
            return {_PAIRS[type(value)]: pairs}
        encoded = {key: self.encode(each, (*path, key)) for key, each in value.items()}
        # The order that PostgreSQL gives keys need not be told.
        return encoded if keys == sorted(keys, key=_jsonb_order) else {"$keys": keys} | encoded

    def _bytes(self, value: bytes, path: tuple[str, ...]) -> Any:
        if len(value) <= INLINE_NBYTES:
            return {"$bytes": b64encode(value).decode()}
        return {"$bytes": self._array(np.frombuffer(value, np.uint8), path)}

    def _array(self, value: np.ndarray, path: tuple[str, ...]) -> Any:
        dtype = _dtype_of(value, path)
        if value.nbytes > INLINE_NBYTES:
            return {"$tensor": self._name(value, path)}
        raw = np.ascontiguousarray(value, dtype.numpy).tobytes()
        return {"$array": [dtype.name, list(value.shape), b64encode(raw).decode()]}

    def _name(self, array: np.ndarray, path: tuple[str, ...]) -> str:
        name = "/".join(path)
        if len(name) > _MAX_NAME_LENGTH or not name.isprintable() or name in self.arrays:
            name = f"{path[0]}/#{len(self.arrays)}"
        while name in self.arrays:  # somebody's key is spelt like that
            name += "#"
        self.arrays[name] = array
        return name


def _as_is(value: Any, _path: tuple[str, ...]) -> Any:
    return value


def _int(value: int, _path: tuple[str, ...]) -> Any:
    return value if value.bit_length() <= _MAX_INT_BITS else {"$int": hex(value)}


def _float(value: float, _path: tuple[str, ...]) -> Any:
    if math.isnan(value):
        return {"$float": "nan " + struct.pack(">d", value).hex()}
    text = repr(value)
    is_plain = "e" not in text or _MIN_PLAIN < abs(value) < 1
    return value if is_plain and math.isfinite(value) and text != "-0.0" else {"$float": text}


def _text(value: str, _path: tuple[str, ...]) -> Any:
    return value if _is_jsonb_text(value) else {"$text": b64encode(value.encode("utf-8", "surrogatepass")).decode()}


def _scalar(value: np.generic, path: tuple[str, ...]) -> Any:
    array = np.asarray(value)
    dtype = _dtype_of(array, path)
    return {"$scalar": [dtype.name, b64encode(array.astype(dtype.numpy).tobytes()).decode()]}


def _dtype_of(array: np.ndarray, path: tuple[str, ...]) -> Any:
    try:
        return of_array(array)
    except TensorError as error:
        raise CheckpointError(f"{_shown(path)}: {error}") from None


def _is_plain_key(key: Any) -> bool:
    return type(key) is str and _is_jsonb_text(key) and not key.startswith("$")


def _is_jsonb_text(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= each <= "\udfff" for each in value)


def _jsonb_order(key: str) -> tuple[int, bytes]:
    encoded = key.encode()
    return len(encoded), encoded


def _shown(path: Iterable[str]) -> str:
    return "/".join(f"{part:.60}" for part in path)


def _decode_tagged(tag: str, content: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if tag in _OF_PAIRS:
        made = _OF_PAIRS[tag]()
        made.update({decode_tree(key, arrays): decode_tree(each, arrays) for key, each in content})
        return made
    if tag in ("$tensor", "$ints"):
        return arrays[content] if tag == "$tensor" else arrays[content].tolist()
    if tag == "$tuple":
        return tuple(decode_tree(content, arrays))
    if tag == "$bytes" and not isinstance(content, str):
        return decode_tree(content, arrays).tobytes()
    if tag in _DECODERS:
        return _DECODERS[tag](content)
    raise CheckpointError(f"a state holds a value of kind {tag!r}, which this release does not know; use a later one")


def _decode_array(content: tuple[str, Sequence[int], str]) -> np.ndarray:
    name, shape, encoded = content
    return by_name(name).as_array(np.frombuffer(bytearray(b64decode(encoded)), np.uint8), shape)


def _decode_float(content: str) -> float:
    if not content.startswith("nan "):
        return float(content)
    value: float
    (value,) = struct.unpack(">d", bytes.fromhex(content.removeprefix("nan ")))
    return value


_DECODERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "$array": _decode_array,
    "$scalar": lambda content: _decode_array((content[0], (), content[1]))[()],
    "$bytes": b64decode,
    "$text": lambda content: b64decode(content).decode("utf-8", "surrogatepass"),
    "$int": lambda content: int(content, 16),
    "$float": _decode_float,
}
