"""What attention matrices come down to: entropies, distances, shares and the strongest keys, head by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from arc_halo.errors import CacheError
from arc_halo.inference.attention.checking import check_rows, check_shape, check_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

_BLOCK_ELEMENTS: Final = 1 << 20
"""Weights that are looked at together: what is computed of them takes some 30 MB, however many tokens there are."""
_MAX_TOP_COUNT: Final = 2**15 - 1
_LOW_BITS: Final = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class AttentionSummary:
    """Where the heads of one layer looked in one request of ``tokens`` tokens.

    Parameters
    ----------
    mean_entropy
        ``[heads]``, nats: the mean of ``entropies``.
    mean_distance
        ``[heads]``, tokens between query and key, weighted by attention; the mean over queries.
    first_token_share
        ``[heads]``, attention on the first token, the mean over all queries; of the first query of a causal head it is
        always 1. Large where the token is a sink (Xiao et al., 2023, "Efficient streaming language models with
        attention sinks").
    previous_token_share
        ``[heads]``, attention on the token before, the mean over all queries but the first; None of one token.
    induction_share
        ``[heads]``, attention on all places right behind an earlier one of the query's own token, the mean over queries
        that have such a place; None where none has. It is the prefix matching score of Olsson et al. (2022),
        "In-context learning and induction heads". The query's own place does not count, though the same token may
        stand before it.
    entropies
        ``[heads, tokens]``, nats (Shannon, 1948), float32.
    top_positions
        ``[heads, tokens, top_count]``, keys of each query, strongest first, of equal ones the earlier first; int32.
    top_weights
        ``[heads, tokens, top_count]``, their weights; float32.
    """

    mean_entropy: np.ndarray
    mean_distance: np.ndarray
    first_token_share: np.ndarray
    previous_token_share: np.ndarray | None
    induction_share: np.ndarray | None
    entropies: np.ndarray
    top_positions: np.ndarray
    top_weights: np.ndarray

    @property
    def head_count(self) -> int:
        """Heads of the layer."""
        return len(self.entropies)

    @property
    def token_count(self) -> int:
        """Tokens of the request."""
        return int(self.entropies.shape[1])

    @property
    def top_count(self) -> int:
        """Keys kept of each query."""
        return int(self.top_positions.shape[2])

    def strongest(self, head: int) -> np.ndarray:
        """``[tokens, tokens]`` of one head with the weights that were kept, float32, and zeros elsewhere."""
        matrix = np.zeros((self.token_count, self.token_count), np.float32)
        np.put_along_axis(matrix, self.top_positions[head], self.top_weights[head], axis=1)
        return matrix


def summarise_attention(
    matrices: np.ndarray, token_ids: Sequence[int] | np.ndarray, *, top_count: int = 8, where: str = "a layer"
) -> AttentionSummary:
    """Summarise the attention of one layer in one request.

    Parameters
    ----------
    matrices
        ``[heads, queries, keys]``, what the softmax gave; causal or not, of float32, float64, float16 or bfloat16.
    token_ids
        Of the request, one for each query and key.
    top_count
        Keys to keep of each query; no more than there are tokens.
    where
        What errors call the layer.

    Raises
    ------
    CacheError
        The shape or type is another, the tokens are not as many, or a row has NaN, a negative weight, or a sum that is
        further from 1 than rounding to its type explains.

    Examples
    --------
    >>> import numpy as np
    >>> summarise_attention(np.eye(3, dtype=np.float32)[None], [5, 6, 7]).mean_distance.tolist()
    [0.0]
    """
    if not 0 <= top_count <= _MAX_TOP_COUNT:
        raise CacheError(f"top_count is {top_count}; it must be from 0 to {_MAX_TOP_COUNT}")
    tokens = check_tokens(token_ids)
    tolerance = check_shape(matrices, len(tokens), where)
    sums = _Sums(len(matrices), tokens, min(top_count, len(tokens)))
    step = max(1, _BLOCK_ELEMENTS // len(tokens))
    for start in range(0, len(tokens), step):
        block = _Block(tokens, start, min(start + step, len(tokens)))
        for head, matrix in enumerate(matrices):
            # Adding zero makes -0.0 a zero, whose bits are in order with those of other weights.
            weights = matrix[block.rows].astype(np.float32) + np.float32(0)
            check_rows(weights, tolerance, f"{where}, head {head}", start)
            sums.add(head, weights, block)
    return sums.summary()


class _Block:
    """Consecutive queries, and what of their keys depends on the tokens alone."""

    def __init__(self, tokens: np.ndarray, start: int, stop: int) -> None:
        self.rows = slice(start, stop)
        queries, keys = np.arange(start, stop)[:, None], np.arange(len(tokens))
        self.distances = np.abs(queries - keys).astype(np.float32)
        self.behind = np.zeros((stop - start, len(tokens)), np.bool_)
        self.behind[:, 1:] = tokens[start:stop, None] == tokens[:-1]
        self.behind &= keys < queries
        self.before = np.arange(max(start, 1), stop)


class _Sums:
    """Sums over queries, filled block by block."""

    def __init__(self, heads: int, tokens: np.ndarray, top_count: int) -> None:
        self.tokens = len(tokens)
        self.distance, self.first, self.previous, self.induction = np.zeros((4, heads))
        self.induction_queries = np.zeros(heads, np.int64)
        self.entropies = np.empty((heads, self.tokens), np.float32)
        self.top_positions = np.empty((heads, self.tokens, top_count), np.int32)
        self.top_weights = np.empty((heads, self.tokens, top_count), np.float32)

    def add(self, head: int, weights: np.ndarray, block: _Block) -> None:
        logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
        # Rounded weights may sum to a little more than one, and one weight of more than one has a positive logarithm.
        self.entropies[head, block.rows] = np.maximum(-(weights * logs).sum(axis=1, dtype=np.float64), 0)
        self.distance[head] += (weights * block.distances).sum(dtype=np.float64)
        self.first[head] += weights[:, 0].sum(dtype=np.float64)
        self.previous[head] += weights[block.before - block.rows.start, block.before - 1].sum(dtype=np.float64)
        self.induction[head] += weights[block.behind].sum(dtype=np.float64)
        self.induction_queries[head] += block.behind.any(axis=1).sum()
        positions, strongest = _strongest(weights, self.top_positions.shape[2])
        self.top_positions[head, block.rows], self.top_weights[head, block.rows] = positions, strongest

    def summary(self) -> AttentionSummary:
        queries = self.induction_queries
        return AttentionSummary(
            self.entropies.mean(axis=1, dtype=np.float64),
            self.distance / self.tokens,
            self.first / self.tokens,
            self.previous / (self.tokens - 1) if self.tokens > 1 else None,
            self.induction / queries if queries.all() else None,
            self.entropies,
            self.top_positions,
            self.top_weights,
        )


def _strongest(weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and weights of the strongest keys of each row, the earlier of equal ones first.

    Bits of floats that are not negative are in the order of the floats: with the position below them each key has a
    number of its own, and which ones are chosen does not depend on how they are searched for.
    """
    bits = weights.view(np.uint32).astype(np.uint64) << np.uint64(32)
    ranked = bits | (_LOW_BITS - np.arange(weights.shape[1], dtype=np.uint64))
    if count < weights.shape[1]:
        ranked = np.partition(ranked, weights.shape[1] - count - 1, axis=1)[:, weights.shape[1] - count :]
    ranked = np.sort(ranked, axis=1)[:, ::-1]
    positions = (_LOW_BITS - (ranked & _LOW_BITS)).astype(np.int32)
    return positions, np.ascontiguousarray((ranked >> np.uint64(32)).astype(np.uint32)).view(np.float32)
