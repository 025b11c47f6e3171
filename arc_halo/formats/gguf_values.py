"""The values in a GGUF header: numbers, texts and arrays, read from the front and never past what there is."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from arc_halo.errors import GGUFError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_HEADER_NBYTES = 100_000_000  # a vocabulary of a quarter of a million tokens and its merges takes 10 MB
MAX_DEPTH = 4
"""Arrays of arrays: the format sets no limit, and no model is known that nests any."""
MIN_ENTRY_NBYTES = 8 + 1 + 4 + 1  # a key of one letter, a type, a value of one byte

_STEP_NBYTES = 1 << 16
_MAX_STEP_NBYTES = 8 << 20
_MAX_ARRAY = 1 << 40  # beyond any header; only keeps messages short

_REMEDY = "fetch the file again, or write it again with the gguf package"

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {
    0: ("uint8", struct.Struct("<B")),
    1: ("int8", struct.Struct("<b")),
    2: ("uint16", struct.Struct("<H")),
    3: ("int16", struct.Struct("<h")),
    4: ("uint32", struct.Struct("<I")),
    5: ("int32", struct.Struct("<i")),
    6: ("float32", struct.Struct("<f")),
    _BOOL: ("bool", struct.Struct("<?")),
    10: ("uint64", struct.Struct("<Q")),
    11: ("int64", struct.Struct("<q")),
    12: ("float64", struct.Struct("<d")),
}
_NAMES = {type_id: name for type_id, (name, _) in _NUMBERS.items()} | {_STRING: "string", _ARRAY: "array"}
_BY_NAME = dict(_NUMBERS.values())


@dataclass(frozen=True, slots=True)
class GGUFArray:
    """An array that stays in the header; ``start`` is the place of its first element there."""

    type_name: str
    count: int
    start: int


class Float32(float):
    """A number of 32 bits; its `shortest` decimal is not that of the same number in 64."""

    __slots__ = ()

    def shortest(self) -> float:
        """The number that people write for it: 1e-05, not 9.999999747378752e-06."""
        for digits in range(6, 10):
            text = f"{float(self):.{digits}g}"
            if _FLOAT.pack(float(text)) == _FLOAT.pack(self):
                return float(text)
        return float(self)


_FLOAT = struct.Struct("<f")

Value: TypeAlias = "str | int | float | bool | GGUFArray"


class HeaderReader:
    """A place in a file's header, moving forward; the file is read as far as that, and every refusal names it."""

    def __init__(self, read: Callable[[int, int], bytes], file_nbytes: int, where: str) -> None:
        self._read = read
        self._file_nbytes = file_nbytes
        self._limit = min(file_nbytes, MAX_HEADER_NBYTES)
        self._where = where
        self._buffer = bytearray()
        self.position = 0

    def refuse(self, problem: str, remedy: str = _REMEDY) -> NoReturn:
        """Raise `GGUFError` with the place and what to do."""
        raise GGUFError(f"{self._where}: {problem}, before byte {self.position}; {remedy}")

    def skip(self, nbytes: int, what: str) -> int:
        """Move on; returns the place where the bytes begin, which are there and can be looked at."""
        start = self.position
        if start + nbytes > len(self._buffer):
            self._fetch(start + nbytes, what)
        self.position = start + nbytes
        return start

    def u32(self, what: str) -> int:
        """Read the next four bytes as a number."""
        number: int
        (number,) = _U32.unpack_from(self._buffer, self.skip(4, what))
        return number

    def u64(self, what: str) -> int:
        """Read the next eight bytes as a number."""
        number: int
        (number,) = _U64.unpack_from(self._buffer, self.skip(8, what))
        return number

    def unpack(self, kind: struct.Struct, what: str) -> Any:
        """Read the next number of a kind."""
        (number,) = kind.unpack_from(self._buffer, self.skip(kind.size, what))
        return number

    def raw(self, nbytes: int, what: str) -> bytes:
        """Read the next bytes."""
        start = self.skip(nbytes, what)
        return bytes(memoryview(self._buffer)[start : start + nbytes])

    def text(self, what: str, max_nbytes: int = MAX_HEADER_NBYTES) -> str:
        """A length and that many bytes of UTF-8."""
        nbytes = self.u64(f"the length of {what}")
        if nbytes > max_nbytes:
            self.refuse(f"{what} is {nbytes} bytes long, at most {max_nbytes} are allowed")
        try:
            return self.raw(nbytes, what).decode()
        except UnicodeDecodeError as error:
            self.refuse(f"{what} is not UTF-8 ({error.reason})")

    def expect_items(self, count: int, least_nbytes: int, what: str, most: int = _MAX_ARRAY) -> None:
        """Refuse a count of items that there cannot be, before any of them is looked for."""
        if count > most or count * least_nbytes > self._limit - self.position:
            self.refuse(
                f"it announces {count} {what} of at least {least_nbytes} bytes, in the {self._limit - self.position} "
                f"bytes that a header may have here"
            )

    def content(self, nbytes: int) -> bytes:
        """The first bytes of the file, from the beginning."""
        if nbytes > len(self._buffer):
            self._fetch(nbytes, "the padding")
        return bytes(memoryview(self._buffer)[:nbytes])

    def _fetch(self, stop: int, what: str) -> None:
        """Have the buffer filled up to ``stop``."""
        if stop > self._limit:
            limit = "the file ends" if self._limit == self._file_nbytes else "a header may end"
            self.refuse(f"{what} ends at byte {stop}, {limit} at {self._limit}")
        step = min(max(_STEP_NBYTES, len(self._buffer)), _MAX_STEP_NBYTES)
        wanted = min(self._limit, max(stop, len(self._buffer) + step))
        self._buffer += self._read(len(self._buffer), wanted - len(self._buffer))
        if stop > len(self._buffer):
            self.refuse(f"{what} ends at byte {stop}, what is known of the file at {len(self._buffer)}")


def read_value(reader: HeaderReader, key: str) -> Value:
    """A typed value; an array is checked, and stays where it is."""
    type_id = reader.u32(f"the type of {key!r:.80}")
    what = f"the value of {key!r:.80}"
    if type_id == _STRING:
        return reader.text(what)
    if type_id == _ARRAY:
        return _read_array(reader, what, 1)
    if type_id not in _NUMBERS:
        reader.refuse(f"{what} has unknown type {type_id}; known are {', '.join(_NAMES.values())}")
    if type_id == _BOOL:
        return _read_bools(reader, 1, what) == b"\1"
    name, kind = _NUMBERS[type_id]
    number: int | float = reader.unpack(kind, what)
    return Float32(number) if name == "float32" else number


def array_values(content: bytes, array: GGUFArray) -> Iterator[Any]:
    """Elements of an array that was checked: numbers, ``bytes`` of strings, and iterators of arrays in it.

    Strings need not be UTF-8 here: early converters wrote tokens as the bytes that they stand for.
    """
    if array.type_name in _BY_NAME:
        kind = _BY_NAME[array.type_name]
        view = memoryview(content)[array.start : array.start + array.count * kind.size]
        yield from (number for (number,) in kind.iter_unpack(view))
        return
    position = array.start
    for _ in range(array.count):
        if array.type_name == "string":
            (nbytes,) = _U64.unpack_from(content, position)
            yield content[position + 8 : position + 8 + nbytes]
            position += 8 + nbytes
        else:
            inner, position = _inner(content, position)
            yield array_values(content, inner)


def _inner(content: bytes, position: int) -> tuple[GGUFArray, int]:
    """An array inside of another, and where it ends."""
    (type_id,) = _U32.unpack_from(content, position)
    (count,) = _U64.unpack_from(content, position + 4)
    array = GGUFArray(_NAMES[type_id], count, position + 12)
    end = array.start
    if type_id in _NUMBERS:
        return array, end + count * _NUMBERS[type_id][1].size
    for _ in range(count):
        if type_id == _STRING:
            end += 8 + _U64.unpack_from(content, end)[0]
        else:
            _, end = _inner(content, end)
    return array, end


def _read_array(reader: HeaderReader, what: str, depth: int) -> GGUFArray:
    if depth > MAX_DEPTH:
        reader.refuse(f"{what} is nested deeper than {MAX_DEPTH} arrays")
    type_id = reader.u32(what)
    if type_id not in _NAMES:
        reader.refuse(f"{what} is an array of unknown type {type_id}; known are {', '.join(_NAMES.values())}")
    count = reader.u64(what)
    least_nbytes = _NUMBERS[type_id][1].size if type_id in _NUMBERS else 8 if type_id == _STRING else 12
    reader.expect_items(count, least_nbytes, f"elements of {what}")
    array = GGUFArray(_NAMES[type_id], count, reader.position)
    if type_id == _BOOL:
        _read_bools(reader, count, what)
    elif type_id in _NUMBERS:
        reader.skip(count * least_nbytes, what)
    elif type_id == _STRING:
        for _ in range(count):
            reader.skip(reader.u64(what), what)
    else:
        for _ in range(count):
            _read_array(reader, what, depth + 1)
    return array


def _read_bools(reader: HeaderReader, count: int, what: str) -> bytes:
    values = reader.raw(count, what)
    if values.translate(None, b"\0\1"):
        reader.refuse(f"{what} has a truth value that is neither 0 nor 1")
    return values
