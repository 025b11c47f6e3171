"""JSON objects read strictly: one meaning only, and nothing that PostgreSQL's jsonb cannot hold."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from arc_halo.errors import ModelFolderError

# What CPython takes for each of these characters of a JSON text, measured and rounded up: a member with its key and its
# share of a table that grows, a list, a dict; and for a comma an element with its slot, where texts are ASCII or not.
_COSTS = {":": 200, "[": 88, "{": 72}
_ASCII_ELEMENT, _WIDE_ELEMENT = 60, 92
_ALLOWED_NBYTES = 64 << 20
_ALLOWED_FACTOR = 16


def decoded(raw: bytes, name: str, advice: str = "restore the file") -> str:
    """The text of a JSON file that can be parsed in 64 MiB and 16 times its size.

    Three bytes of JSON make an object of 70, so a hostile file of 60 MB would take more than a gigabyte. The
    estimate is made of counts, before anything is parsed.

    Raises
    ------
    ModelFolderError
        Not UTF-8, or made of so many lists and objects that parsing it would take more.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFolderError(f"{name} is not UTF-8: {error}; {advice}") from None
    needed = len(raw) + sys.getsizeof(text) + text.count(",") * (_ASCII_ELEMENT if text.isascii() else _WIDE_ELEMENT)
    needed += sum(text.count(sign) * cost for sign, cost in _COSTS.items())
    refuse_bloated(len(raw), needed, name, advice)
    return text


def refuse_bloated(nbytes: int, needed: int, name: str, advice: str) -> None:
    """Raise `ModelFolderError` if a file of so many bytes may not take as much memory as it needs."""
    if needed > _ALLOWED_NBYTES + _ALLOWED_FACTOR * nbytes:
        raise ModelFolderError(
            f"{name} has {nbytes} bytes, but so many values that about {needed >> 20} MiB would be needed to parse "
            f"it; {advice}"
        )


def parse_object(raw: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object.

    ``NaN`` and ``Infinity``, which Python writes though JSON has no such numbers, become strings of that spelling:
    configs of published models contain them.

    Parameters
    ----------
    raw
        UTF-8, without a byte order mark.
    name
        The file's name, for messages.

    Raises
    ------
    ModelFolderError
        Not UTF-8, not JSON, no object; more values than 64 MiB and 16 times the file's size hold; a key twice in one
        object; a number beyond float64; nesting too deep; a NUL character or half a surrogate pair, which no text
        column holds.
    """
    text = decoded(raw, name)
    try:
        parsed = json.loads(text, object_pairs_hook=_unique, parse_constant=str, parse_float=_finite)
        _check_text(parsed)
    except RecursionError:
        raise ModelFolderError(f"{name} is nested too deeply to be a model's; restore the file") from None
    except ValueError as error:
        raise ModelFolderError(f"{name} is not strict JSON: {error}; restore the file") from None
    if not isinstance(parsed, dict):
        raise ModelFolderError(f"{name} holds a {type(parsed).__name__}, not a JSON object; restore the file")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"key {key!r:.80} stands twice in one object")
        unique[key] = value
    return unique


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"number {text:.40} is beyond float64")
    return number


def _check_text(value: object) -> None:
    if isinstance(value, str):
        if "\0" in value or not _is_unicode(value):
            raise ValueError(f"text {value!r:.80} has a NUL or half a surrogate pair")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check_text(item)
    elif isinstance(value, list):
        for item in value:
            _check_text(item)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
