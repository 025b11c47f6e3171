"""Distributions over different vocabularies, brought to one: the union of each member's most likely tokens.

After Yao et al. (2025, Determine-Then-Ensemble: Necessity of Top-k Union for Large Language Model Ensembling, ICLR),
with another rule for tokens that a member does not know:

1. The union is the end, and the texts of the ``count`` most likely tokens of each member.
2. A member gives a text of the union the probability of its token of that text, also where it is not among its most
   likely ones. All its tokens that end an answer are one, the end.
3. What it gives to tokens outside the union it shares evenly among the texts of the union that it has no token for;
   they may begin as such tokens do. Where it knows all of them that rest is left out.
4. What comes of it is scaled to sum to 1, which `Pool` does.

Tokens without a text of their own (a part of a character in UTF-8) match nothing; of several with the same text the
first counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

END: Final = ""
"""Stands for all tokens that end an answer."""
_NO_TEXT: Final = "\ufffd"


@dataclass(frozen=True)
class Vocabulary:
    """A member's tokens.

    Attributes
    ----------
    texts
        By their ids.
    end_ids
        Those that end an answer.
    """

    texts: Sequence[str]
    end_ids: frozenset[int]

    def is_same_as(self, other: Vocabulary) -> bool:
        """Whether ids mean the same in both."""
        if self.end_ids != other.end_ids or len(self.texts) != len(other.texts):
            return False
        return self.texts is other.texts or all(a == b for a, b in zip(self.texts, other.texts, strict=True))

    @cached_property
    def ids(self) -> dict[str, int]:
        """The token of each text that can be matched."""
        found: dict[str, int] = {}
        for token_id, text in enumerate(self.texts):
            if text and _NO_TEXT not in text and token_id not in self.end_ids:
                found.setdefault(text, token_id)
        return found

    def best(self, logits: np.ndarray, count: int) -> list[str]:
        """Texts of the most likely tokens, best first; those that match nothing are left out."""
        ordered = best_ids(logits, count).tolist()
        return [self.texts[each] for each in ordered if self.ids.get(self.texts[each]) == each]


def best_ids(logits: np.ndarray, count: int) -> np.ndarray:
    """The ids of the greatest logits, greatest first; of equals the lesser id first."""
    width = len(logits) // max(count, 1)
    least = -np.inf
    if width > 1:
        # At least `count` logits are not below the least of the greatest of `count` parts: sorting those few costs a
        # tenth of a partition of all.
        least = logits[: width * count].reshape(count, width).max(axis=1).min()
    ids = np.flatnonzero(logits >= least)
    return ids[np.lexsort((ids, -logits[ids]))][:count]


def to_union(
    vocabularies: Sequence[Vocabulary], logits: Sequence[np.ndarray], count: int
) -> tuple[list[str], np.ndarray]:
    """Bring logits over different vocabularies to one.

    Parameters
    ----------
    vocabularies, logits
        Of each member; logits float32 of shape [its vocabulary].
    count
        How many tokens each member brings in.

    Returns
    -------
    texts
        The union; the first is `END`.
    log_probabilities
        float32 of shape [members, texts], not scaled to sum to 1.
    """
    known: dict[str, None] = {END: None}
    for vocabulary, each in zip(vocabularies, logits, strict=True):
        known.update(dict.fromkeys(vocabulary.best(each, count)))
    texts = list(known)
    shares = np.empty((len(logits), len(texts)), np.float32)
    for vocabulary, each, row in zip(vocabularies, logits, shares, strict=True):
        _fill(row, texts, vocabulary, each)
    with np.errstate(divide="ignore"):  # log 0 is the minus infinity that is meant
        return texts, np.log(shares, out=shares)


def _fill(row: np.ndarray, texts: list[str], vocabulary: Vocabulary, logits: np.ndarray) -> None:
    powers = np.exp(logits - logits.max())
    total = float(powers.sum())
    ids = np.fromiter((vocabulary.ids.get(text, -1) for text in texts[1:]), np.intp, len(texts) - 1)
    is_known = ids >= 0
    row[0] = powers[sorted(vocabulary.end_ids)].sum() / total
    row[1:] = np.where(is_known, powers[ids] / total, 0)
    unknown = len(ids) - int(is_known.sum())
    if unknown:
        row[1:][~is_known] = max(0.0, 1 - float(row.sum(dtype=np.float64))) / unknown
