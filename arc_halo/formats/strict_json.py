"""JSON objects read strictly: one meaning only, and nothing that PostgreSQL's jsonb cannot hold."""

from __future__ import annotations

import json
import math
from typing import Any

from arc_halo.errors import ModelFolderError


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
        Not UTF-8, not JSON, no object; a key twice in one object; a number beyond float64; nesting too deep; a NUL
        character or half a surrogate pair, which no text column holds.
    """
    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=str, parse_float=_finite)
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
