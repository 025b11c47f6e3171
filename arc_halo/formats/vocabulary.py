"""Token texts out of tokenizer files, read as data: no tokenizer is built, no code of the model runs."""

from __future__ import annotations

import io
import json
from itertools import chain
from typing import TYPE_CHECKING, Any

from arc_halo.errors import ModelFolderError
from arc_halo.formats.strict_json import decoded, refuse_bloated

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_TOKEN_ID = 2**31 - 1

_LINE_NBYTES = 220  # of memory: a text, its id, and their share of a table that grows
_ADVICE = "restore the file, or import without embeddings"


def from_tokenizer_json(raw: bytes) -> dict[int, str]:
    """Read the ``tokenizer.json`` of Hugging Face tokenizers: BPE, WordPiece, WordLevel or Unigram.

    Texts are spelt as the vocabulary spells them (``##ing``, ``Ġking``, ``▁king``).

    Raises
    ------
    ModelFolderError
        Not JSON, more of it than 64 MiB and 16 times its size hold, or the vocabulary is not made as that format makes
        it.
    """
    parsed = _parse(raw, "tokenizer.json")
    model = parsed.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    pairs: Iterable[tuple[object, object]]
    if isinstance(vocabulary, dict):
        pairs = ((token, text) for text, token in vocabulary.items())
    elif isinstance(vocabulary, list):  # Unigram: [text, score], the position is the id
        pairs = ((token, piece[0]) for token, piece in enumerate(vocabulary) if isinstance(piece, list) and piece)
    else:
        raise ModelFolderError(f"tokenizer.json has no model.vocab; {_ADVICE}")
    added = parsed.get("added_tokens", [])
    more = (
        (token.get("id"), token.get("content"))
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict)
    )
    return _texts(chain(pairs, more), "tokenizer.json")


def from_vocab_json(raw: bytes, name: str = "vocab.json") -> dict[int, str]:
    """Read a JSON object of text -> id: ``vocab.json`` and ``added_tokens.json``.

    Raises
    ------
    ModelFolderError
        Not such an object.
    """
    return _texts(((token, text) for text, token in _parse(raw, name).items()), name)


def from_vocab_txt(raw: bytes) -> dict[int, str]:
    """Read WordPiece's ``vocab.txt``: one token a line, the line's number from 0 is the id.

    Raises
    ------
    ModelFolderError
        Not UTF-8, or more lines than 64 MiB and 16 times the file's size hold.
    """
    refuse_bloated(len(raw), (raw.count(b"\n") + raw.count(b"\r")) * _LINE_NBYTES, "vocab.txt", _ADVICE)
    try:
        lines = io.StringIO(raw.decode("utf-8"), newline=None)  # all line ends are newlines, as in transformers
    except UnicodeDecodeError as error:
        raise ModelFolderError(f"vocab.txt is not UTF-8: {error}; restore the file") from None
    return {token: storable(line.rstrip("\n")) for token, line in enumerate(lines)}


def from_tokens(tokens: Iterable[bytes], count: int, nbytes: int, name: str) -> dict[int, str]:
    """Number the texts of a list, of which there are ``count`` in a file, or a header, of so many bytes.

    What is not UTF-8 is spelt as escapes: early converters wrote tokens as the bytes that they stand for.

    Raises
    ------
    ModelFolderError
        More texts than 64 MiB and 16 times the file's size hold.
    """
    refuse_bloated(nbytes, count * _LINE_NBYTES, name, _ADVICE)
    return {token: storable(raw.decode("utf-8", "backslashreplace")) for token, raw in enumerate(tokens)}


def _parse(raw: bytes, name: str) -> dict[str, Any]:
    text = decoded(raw, name, _ADVICE)
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{name} is not JSON: {error}; restore the file") from None
    if not isinstance(parsed, dict):
        raise ModelFolderError(f"{name} holds {type(parsed).__name__}, not a JSON object; restore the file")
    return parsed


def _texts(pairs: Iterable[tuple[object, object]], name: str) -> dict[int, str]:
    texts: dict[int, str] = {}
    for token, text in pairs:
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token <= MAX_TOKEN_ID:
            raise ModelFolderError(
                f"{name} gives {text!r:.40} the id {token!r:.40}, no integer from 0; restore the file"
            )
        if not isinstance(text, str):
            raise ModelFolderError(f"{name} gives id {token} no text; restore the file")
        texts[token] = storable(text)
    return texts


def storable(text: str) -> str:
    """Spell what no text column holds, NUL and halves of surrogate pairs, as escapes."""
    spelled = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
    return text if spelled == text else spelled  # the one that is there already takes no memory
