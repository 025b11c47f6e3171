"""The header of a safetensors file: its grammar, what makes it valid, and how to write one."""

from __future__ import annotations

import json
import re
import struct
from math import prod
from typing import TYPE_CHECKING, NoReturn

from arc_halo.dtypes import DTYPES
from arc_halo.errors import SafetensorsError
from arc_halo.formats.weights_file import TensorEntry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from arc_halo.dtypes import DType

LENGTH = struct.Struct("<Q")
MAX_HEADER_NBYTES = 100_000_000  # the reference implementation's
MAX_RANK = 32
MAX_NAME_NBYTES = 1024  # an indexed column of PostgreSQL holds 2.7 kB
METADATA_KEY = "__metadata__"

_MAX_INTEGER = (1 << 63) - 1  # sizes are bigint in the database
_FIELDS = ("dtype", "shape", "data_offsets")
_REWRITE = "write the file again with the safetensors library"
_FETCH = "fetch the file again"

# Possessive quantifiers: a hostile header of 100 MB is matched without one step back.
_BLANK = re.compile(rb"[ \t\n\r]*+")
_BLANKS = frozenset({b" ", b"\t", b"\n", b"\r"})
_STRING = re.compile(rb'"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"')
_INTEGERS = re.compile(rb"\[[ \t\n\r]*+((?:(?:0|[1-9][0-9]{0,18}+)[ \t\n\r]*+(?:,[ \t\n\r]*+(?=[0-9])|(?=\])))*+)\]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def parse_header(header: bytes, data_nbytes: int, where: str) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """Parse a header and check that its tensors fill the data without gap or overlap.

    The grammar is read directly, not through a JSON library: what does not belong is refused where it stands, before
    anything is built from it, so memory stays proportional to the entries of a valid header.

    Parameters
    ----------
    header
        The file's first bytes: the length and the JSON after it, as long as it says.
    data_nbytes
        Number of bytes after the header.
    where
        The file's name, for messages.

    Returns
    -------
    metadata, tensors
        The free-form strings, and the tensors by name in the header's order.

    Raises
    ------
    SafetensorsError
        The header breaks the format, https://github.com/huggingface/safetensors#format, or is outside what any model
        needs: rank above 32, names above 1024 bytes, with control characters, or like a path out of the folder.
    """
    reader = _Reader(header, where)
    metadata: dict[str, str] | None = None
    tensors: dict[str, TensorEntry] = {}
    if not header.startswith(b"{", LENGTH.size):
        reader.refuse("the header does not begin with '{'")
    for name in reader.members():
        if name == METADATA_KEY:
            if metadata is not None:
                reader.refuse(f"{METADATA_KEY} stands twice")
            metadata = _read_metadata(reader)
            continue
        if problem := name_problem(name):
            reader.refuse(f"tensor name {name!r:.80} {problem}")
        if name in tensors:
            reader.refuse(f"tensor {name!r} stands twice")
        tensors[name] = _read_entry(reader, name)
    reader.expect_end()
    _check_places(tensors.values(), len(header), len(header) + data_nbytes, where)
    return metadata or {}, tensors


def build_header(
    tensors: Iterable[tuple[str, DType, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The header of a file whose data are these tensors, one after the other.

    Parameters
    ----------
    tensors
        Name, type and shape of each tensor, in the order of their bytes. In `aligned_order` each tensor starts at a
        multiple of its element's size.
    metadata
        Free-form strings.

    Returns
    -------
    bytes
        The length and the JSON, padded with spaces so that the data start at a multiple of eight.

    Raises
    ------
    SafetensorsError
        `parse_header` would refuse the result.
    """
    fields: dict[str, object] = {METADATA_KEY: dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        if dtype.name not in DTYPES:
            raise SafetensorsError(
                f"tensor {name!r} is of type {dtype.name}, which safetensors files do not have; dequantise the model "
                f"first, or export the version that was imported"
            )
        nbytes = dtype.nbytes(prod(shape))
        if nbytes is None or name in fields:
            problem = (
                "stands twice" if name in fields else f"of {dtype.name} with shape {list(shape)} ends inside a byte"
            )
            raise SafetensorsError(f"tensor {name!r} {problem}; it cannot be written as it is")
        fields[name] = {"dtype": dtype.name, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = LENGTH.pack(len(text)) + text
    parse_header(header, offset, "the new file")
    return header


def aligned_order(tensors: Iterable[tuple[str, DType, Sequence[int]]]) -> list[tuple[str, DType, Sequence[int]]]:
    """Tensors with the widest elements first, then by name: every one starts at a multiple of its element's size."""
    return sorted(tensors, key=lambda tensor: (-tensor[1].bits, tensor[0]))


def name_problem(name: str) -> str | None:
    """Why a tensor may not have that name, as the end of a sentence; None if it may."""
    if not name:
        return "is empty"
    if len(name.encode()) > MAX_NAME_NBYTES:
        return f"is longer than {MAX_NAME_NBYTES} bytes"
    if _CONTROL.search(name):
        return "has control characters"
    if name[0] in "/\\" or ".." in re.split(r"[/\\]", name):
        return "is a path that leads out of its folder"
    return None


class _Reader:
    """A place in the header, moving forward; every refusal names it."""

    def __init__(self, header: bytes, where: str) -> None:
        self._header = header
        self._where = where
        self.data_start = len(header)
        self._position = LENGTH.size

    def refuse(self, problem: str) -> NoReturn:
        raise SafetensorsError(f"{self._where}: {problem}, at byte {self._position}; {_REWRITE}")

    def members(self) -> Iterator[str]:
        """The keys of an object, each when its value is next to be read."""
        self._expect(b"{")
        if self._accept(b"}"):
            return
        while True:
            key = self.string()
            self._expect(b":")
            yield key
            if self._accept(b"}"):
                return
            self._expect(b",")

    def string(self) -> str:
        literal = self._match(_STRING, "a string")
        try:
            text = literal.decode()
            if b"\\" in literal:
                text = str(json.loads(f'"{text}"'))
                text.encode()  # half a surrogate pair is no text
        except ValueError as error:
            self.refuse(f"a string is not valid UTF-8 or has a wrong escape ({error})")
        return text

    def integers(self, limit: int, what: str) -> tuple[int, ...]:
        literal = self._match(_INTEGERS, f"{what}: integers from 0 to 2**63 - 1")
        if literal.count(b",") >= limit:
            self.refuse(f"{what} has more than {limit} numbers")
        numbers = tuple(map(int, literal.split(b","))) if literal else ()
        if numbers and max(numbers) > _MAX_INTEGER:
            self.refuse(f"{what} has a number above 2**63 - 1")
        return numbers

    def expect_end(self) -> None:
        if self._position != len(self._header):
            self.refuse("the header goes on after its closing '}'")

    def _match(self, pattern: re.Pattern[bytes], what: str) -> bytes:
        match = pattern.match(self._header, self._position)
        if match is None:
            self._refuse_unexpected(what)
        self._position = match.end()
        self._skip_blank()
        literal: bytes = match[1]
        return literal

    def _accept(self, token: bytes) -> bool:
        if not self._header.startswith(token, self._position):
            return False
        self._position += len(token)
        self._skip_blank()
        return True

    def _expect(self, token: bytes) -> None:
        if not self._accept(token):
            self._refuse_unexpected(repr(token.decode()))

    def _refuse_unexpected(self, what: str) -> NoReturn:
        found = self._header[self._position : self._position + 16]
        self.refuse(f"expected {what}, found {found!r}" if found else f"the header ends where {what} should stand")

    def _skip_blank(self) -> None:
        """Called after each token: compact headers, which is what everybody writes, pay one comparison for it."""
        if self._header[self._position : self._position + 1] in _BLANKS:
            match = _BLANK.match(self._header, self._position)
            assert match is not None  # it matches nothing, too
            self._position = match.end()


def _read_metadata(reader: _Reader) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for key in reader.members():
        value = reader.string()
        if key in metadata:
            reader.refuse(f"{METADATA_KEY} has {key!r:.80} twice")
        if "\0" in key or "\0" in value:
            reader.refuse(f"{METADATA_KEY} has a NUL character, which no text column holds")
        metadata[key] = value
    return metadata


def _read_entry(reader: _Reader, name: str) -> TensorEntry:
    dtype: DType | None = None
    shape: tuple[int, ...] | None = None
    span: tuple[int, ...] | None = None
    seen: set[str] = set()
    for field in reader.members():
        if field in seen:
            reader.refuse(f"tensor {name!r} has {field} twice")
        seen.add(field)
        if field == "dtype":
            spelling = reader.string()
            dtype = DTYPES.get(spelling)
            if dtype is None:
                reader.refuse(f"tensor {name!r} has unknown dtype {spelling!r:.80}; known are {', '.join(DTYPES)}")
        elif field == "shape":
            shape = reader.integers(MAX_RANK, f"shape of {name!r}")
        elif field == "data_offsets":
            span = reader.integers(2, f"data_offsets of {name!r}")
        else:
            reader.refuse(f"tensor {name!r} has an unknown field {field!r:.80}; known are {', '.join(_FIELDS)}")
    if dtype is None or shape is None or span is None:
        missing = ", ".join(field for field in _FIELDS if field not in seen)
        reader.refuse(f"tensor {name!r} lacks {missing}")
    return _entry(reader, name, dtype, shape, span)


def _entry(reader: _Reader, name: str, dtype: DType, shape: tuple[int, ...], span: tuple[int, ...]) -> TensorEntry:
    """Check a tensor's fields against each other."""
    if len(span) != 2:  # noqa: PLR2004, begin and end
        reader.refuse(f"data_offsets of {name!r} are two numbers, here {len(span)}")
    begin, end = span
    if begin > end:
        reader.refuse(f"data_offsets of {name!r} are reversed: [{begin}, {end}]")
    # A zero among the dimensions hides any other from their product, but not from whoever allocates by them.
    if prod(filter(None, shape)) * dtype.bits > _MAX_INTEGER * 8:
        reader.refuse(f"shape of {name!r} is beyond 2**63 - 1 bytes: {list(shape)}")
    nbytes = dtype.nbytes(prod(shape))
    if nbytes != end - begin:
        takes = "no whole number of bytes" if nbytes is None else f"{nbytes} bytes"
        reader.refuse(f"tensor {name!r} of {dtype.name} {list(shape)} takes {takes}, its data_offsets {end - begin}")
    return TensorEntry(name, dtype, shape, reader.data_start + begin, nbytes)


def _check_places(tensors: Iterable[TensorEntry], start: int, stop: int, where: str) -> None:
    """Refuse tensors that do not fill the file's bytes from ``start`` to ``stop``, each byte once."""
    filled, before = start, "the header"
    for entry in sorted(tensors, key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset != filled:
            relation = "overlaps" if entry.offset < filled else "leaves a hole after"
            raise SafetensorsError(
                f"{where}: tensor {entry.name!r} at byte {entry.offset} {relation} {before}, "
                f"which ends at {filled}; {_REWRITE}"
            )
        filled, before = entry.offset + entry.nbytes, repr(entry.name)
        if filled > stop:
            raise SafetensorsError(
                f"{where}: tensor {before} ends at byte {filled}, the file at {stop}: it is cut short; {_FETCH}"
            )
    if filled != stop:
        raise SafetensorsError(
            f"{where}: {stop - filled} bytes follow the last tensor, which ends at {filled}; {_REWRITE}"
        )
