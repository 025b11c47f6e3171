"""What tokens add to a text, with tokenizers of transformers; the extra ``transformers``."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


class TokenTexts:
    """Texts of tokens as they stand after others: with their leading space, which tokenizers take from a beginning.

    Tokens are decoded behind one more, whose text is taken off again. That is right for whatever a vocabulary is made
    of: bytes in letters, ``▁`` for spaces, ``##`` for parts of words.

    Parameters
    ----------
    word_count
        Of the logits; a model may have more than its tokenizer, which are empty texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, word_count: int) -> None:
        self._tokenizer: Any = tokenizer
        self._word_count = word_count
        self._lock = threading.Lock()
        self._before: list[int] = list(tokenizer("a", add_special_tokens=False).input_ids)
        self._before_text: str = self._decode(self._before)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """A text's tokens, with those that the tokenizer puts before it (unless it has them), and none after it."""
        tokenizer = self._tokenizer
        with self._lock:  # the fast ones may not be called by two threads at once
            found = list(tokenizer(text, add_special_tokens=add_special_tokens).input_ids)
        if not add_special_tokens:
            return found
        if len(found) > 1 and found[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
            found.pop()  # what ends a text does not begin an answer
        if not found and tokenizer.bos_token_id is not None:
            found = [tokenizer.bos_token_id]
        return found

    def decode(self, token_ids: Sequence[int]) -> str:
        """What tokens add to a text; of special ones nothing."""
        return self._added(self._decode([*self._before, *token_ids]), token_ids)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """What each token adds; special ones have their names, and parts of a character are U+FFFD."""
        known = min(len(self._tokenizer), self._word_count)
        rows = [[*self._before, token_id] for token_id in range(known)]
        special = set(self._tokenizer.all_special_ids)
        decoded = self._tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        texts = [
            _storable(self._tokenizer.convert_ids_to_tokens(row[-1]))
            if row[-1] in special
            else self._added(text, row[-1:])
            for row, text in zip(rows, decoded, strict=True)
        ]
        return (*texts, *[""] * (self._word_count - known))

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _added(self, text: str, token_ids: Sequence[int]) -> str:
        if self._before_text and text.startswith(self._before_text):
            return _storable(text[len(self._before_text) :])
        return _storable(self._decode(token_ids))


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd")  # a token of byte 0 is in every vocabulary of bytes, and in no text of a row
