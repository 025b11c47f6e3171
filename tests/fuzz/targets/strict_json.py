"""Configs and indexes: JSON of one meaning, which the standard library must agree with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from arc_halo.formats.strict_json import parse_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENS = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00",
    b"true",
    b"null",
    b'{"a":',
    b"[[[[",
    b"\\",
)


def read(data: bytes, folder: Path) -> object:  # noqa: ARG001  # every target is given one
    value = parse_object(data, "config.json")
    assert value == json.loads(data.decode(), parse_constant=str)
    assert parse_object(json.dumps(value).encode(), "again") == value
    return value


def mend(data: bytes) -> bytes:
    return data


def seeds() -> Iterator[bytes]:
    yield b'{"model_type": "bert", "hidden_size": 384, "layer_norm_eps": 1e-12, "pad": null, "tie": true, "x": [1]}'
    yield b'{"a": NaN, "b": -Infinity, "c": "\\ud83d\\ude00\\n", "d": {"e": {}}, "f": -0.0, "g": 12345678901234567890}'
    yield b'{"a": 1, "a": 2}'
    yield b"[" * 2000
    yield b"\xef\xbb\xbf{}"
