"""Token texts: a byte chooses the kind of file, the rest is the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from arc_halo.formats import vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKENS = (
    b'"model"',
    b'"vocab"',
    b'"added_tokens"',
    b'"id"',
    b'"content"',
    b"##ing",
    b"\\ud800",
    b"\\u0000",
    b"2147483648",
)
PARSERS = (vocabulary.from_tokenizer_json, vocabulary.from_vocab_json, vocabulary.from_vocab_txt)


def read(data: bytes, folder: Path) -> object:  # noqa: ARG001  # every target is given one
    texts = PARSERS[(data[0] if data else 0) % len(PARSERS)](data[1:])
    for token, text in texts.items():
        assert 0 <= token <= vocabulary.MAX_TOKEN_ID
        assert "\0" not in text
        text.encode()
    return texts


def mend(data: bytes) -> bytes:
    return data


def seeds() -> Iterator[bytes]:
    added = [{"id": 7, "content": "<s>", "special": True}]
    yield b"\0" + json.dumps({"model": {"vocab": {"the": 0, "##s": 1, "\ud800": 2}}, "added_tokens": added}).encode()
    yield b"\0" + json.dumps({"model": {"vocab": [["<unk>", 0], ["\u2581a", -1.5]]}}).encode()
    yield b"\1" + json.dumps({"the": 0, "\0": 1}).encode()
    yield b"\2[PAD]\r\n[UNK]\n\n\xc2\x85the\x00"
