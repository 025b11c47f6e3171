"""How much answers differ: by being right or wrong, by their words, or by their vectors."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import combinations
from typing import TYPE_CHECKING, Final

import numpy as np

from arc_halo.fusion.metrics.vectors import unit_vectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WORD: Final = re.compile(r"\w+|[^\w\s]")
_PAIR: Final = 2


def pairwise_disagreement(right: np.ndarray) -> float | None:
    """Share of questions of which one of two members is right and the other wrong; mean of all pairs.

    (N01 + N10) / N (Skalak 1996; Kuncheva and Whitaker, Measures of diversity in classifier ensembles, 2003).

    Parameters
    ----------
    right
        1, 0, or NaN where a member gave no answer; shape [questions, members]. A pair is judged by what both answered.

    Returns
    -------
    float or None
        None where no two members answered the same question.
    """
    found = [float((first != second).mean()) for first, second in _pairs(right)]
    return float(np.mean(found)) if found else None


def q_statistic(right: np.ndarray) -> float | None:
    """Yule's Q, mean of all pairs of members: 1 where they are right together, 0 independent, below 0 in turn.

    (N11 N00 - N01 N10) / (N11 N00 + N01 N10) (Yule 1900; Kuncheva and Whitaker 2003). A pair for which the denominator
    is 0 has none, and is left out.

    Parameters
    ----------
    right
        As of `pairwise_disagreement`.
    """
    found = []
    for first, second in _pairs(right):
        both, neither = float((first & second).sum()), float((~first & ~second).sum())
        one, other = float((first & ~second).sum()), float((~first & second).sum())
        if together := both * neither + one * other:
            found.append((both * neither - one * other) / together)
    return float(np.mean(found)) if found else None


def vendi_score(vectors: np.ndarray) -> float:
    r"""The effective number of different answers, from 1 to how many there are.

    :math:`\exp(-\sum_i \lambda_i \log \lambda_i)` with the eigenvalues of K / n, K being the cosines of all pairs
    (Friedman and Dieng, The Vendi Score, 2023).

    Raises
    ------
    FusionError
        They are no vectors with a direction.
    """
    unit = unit_vectors(vectors)
    # The singular values' squares are the eigenvalues, without forming K.
    values = np.linalg.svd(unit, compute_uv=False) ** 2 / len(unit)
    known = values[values > 0]
    return float(np.clip(np.exp(-(known * np.log(known)).sum()), 1.0, len(unit)))


def bleu(text: str, references: Sequence[str], *, order: int = 4) -> float:
    r"""BLEU of one text, from 0 to 1.

    :math:`\min(1, e^{1 - r/c}) \, (\prod_{n=1}^{N} p_n)^{1/N}`: p are the clipped precisions of n-grams, c is the
    length of the text, r that of the reference nearest to it, the shorter of two (Papineni et al. 2002). Precisions
    beyond single words have one added above and below (Lin and Och 2004), as one sentence has few long n-grams; N is at
    most the length of the text. Words are compared without case.
    """
    words, others = _words(text), [_words(each) for each in references]
    if not words or not others:
        return float(not words and any(not each for each in others))
    nearest = min((len(each) for each in others), key=lambda length: (abs(length - len(words)), length))
    total = 0.0
    highest = min(order, len(words))
    for size in range(1, highest + 1):
        counts = Counter(_grams(words, size))
        most: Counter[tuple[str, ...]] = Counter()
        for each in others:
            most |= Counter(_grams(each, size))
        matched, added = (counts & most).total(), int(size > 1)
        if matched + added == 0:
            return 0.0
        total += math.log((matched + added) / (counts.total() + added))
    return math.exp(min(0.0, 1 - nearest / len(words)) + total / highest)


def self_bleu(texts: Sequence[str], *, order: int = 4) -> float | None:
    """Mean BLEU of each text against all others: 1 where all are the same (Zhu et al., Texygen, 2018).

    Returns
    -------
    float or None
        None for less than two texts.
    """
    if len(texts) < _PAIR:
        return None
    scores = [bleu(text, [*texts[:at], *texts[at + 1 :]], order=order) for at, text in enumerate(texts)]
    return min(1.0, math.fsum(scores) / len(scores))


def _pairs(right: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    table = np.asarray(right, np.float64)
    for first, second in combinations(table.T, 2):
        known = ~(np.isnan(first) | np.isnan(second))
        if known.any():
            yield first[known] > 0, second[known] > 0


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _grams(words: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[at : at + size]) for at in range(len(words) - size + 1))
