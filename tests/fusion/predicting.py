"""Members of level N to test with: a table says what follows what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class TableMember:
    """After the last token come others with the probabilities that a table gives; all else ends the answer.

    Questions are taken for one token, whatever they say; an answer is read by the longest tokens that fit.
    """

    level = "N"

    def __init__(
        self,
        table: Mapping[str, Mapping[str, float]],
        vocabulary: Sequence[str],
        *,
        before: Callable[[Sequence[int]], object] = lambda _: None,
        prompt: str = "?",
    ) -> None:
        self._table, self._before, self._prompt = table, before, prompt
        self.vocabulary = ["<q>", "<end>", *vocabulary]
        self.end_ids = frozenset({1})

    def encode(self, text: str) -> list[int]:
        ids, rest = [0], text.removeprefix(self._prompt)
        while rest:
            token = max((each for each in self.vocabulary[2:] if rest.startswith(each)), key=len)
            ids.append(self.vocabulary.index(token))
            rest = rest[len(token) :]
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.vocabulary[each] for each in token_ids)

    def next_logits(self, token_ids: Sequence[int]) -> np.ndarray:
        self._before(token_ids)
        follows = self._table.get(self.vocabulary[token_ids[-1]], {"<end>": 1.0})
        probabilities = [follows.get(each, 0.0) for each in self.vocabulary]
        with np.errstate(divide="ignore"):
            return np.log(np.array(probabilities, np.float32))
