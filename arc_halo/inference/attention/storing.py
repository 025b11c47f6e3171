"""Attention into the database: a row for each head, and its matrix where that is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.errors import CacheError, ConstraintViolation
from arc_halo.inference.attention.checking import check_tokens
from arc_halo.inference.attention.layers import ModelLayers, find_inference_session
from arc_halo.inference.attention.packing import pack_matrix
from arc_halo.inference.attention.summary import summarise_attention
from arc_halo.store import ArraySource, put_tensors
from arc_halo.store.bulk import ATTENTION_PATTERNS
from arc_halo.store.connections import destination
from arc_halo.store.put import SMALL_NBYTES

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Row
    from sqlalchemy.orm import Session

    from arc_halo.inference.attention.layers import LayerKey
    from arc_halo.inference.attention.summary import AttentionSummary
    from arc_halo.schema import InferenceSession


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """Attention of one layer about to be stored: its summary, and of each head a packed matrix if those are kept."""

    summary: AttentionSummary
    packed: Sequence[np.ndarray] | None = None


def reduce_attention(
    matrices: np.ndarray,
    token_ids: Sequence[int] | np.ndarray,
    *,
    top_count: int = 8,
    keep_matrices: bool = False,
    where: str = "a layer",
) -> LayerAttention:
    """What is stored of one layer's matrices, which may be dropped then; as `summarise_attention`."""
    summary = summarise_attention(matrices, token_ids, top_count=top_count, where=where)
    return LayerAttention(summary, [pack_matrix(each) for each in matrices] if keep_matrices else None)


def put_attention(
    session: Session,
    inference_session: InferenceSession | uuid.UUID,
    request_number: int,
    token_ids: Sequence[int] | np.ndarray,
    matrices: Mapping[LayerKey, np.ndarray],
    *,
    top_count: int = 8,
    keep_matrices: bool = False,
) -> int:
    """Store where the heads of layers looked in one request: summaries, and matrices on request. Never commits.

    Parameters
    ----------
    inference_session
        Its model has the layers.
    request_number
        Of the session, from 0.
    matrices
        Of each layer ``[heads, queries, keys]``, by its path, its row, or the number of its block.
    top_count
        Keys to keep of each query.
    keep_matrices
        Also store the matrices, every bit as it is; of causal ones the lower triangle.

    Returns
    -------
    int
        Heads stored.

    Raises
    ------
    CacheError
        The model has no such layer, or other heads; the request is there; matrices as in `summarise_attention`.
    NotFound
        There is no such inference session.

    Examples
    --------
    >>> put_attention(session, served, 0, [5, 6, 7], {0: first, 1: second})  # doctest: +SKIP
    """
    reduced = {
        key: reduce_attention(
            each, token_ids, top_count=top_count, keep_matrices=keep_matrices, where=f"layer {_name(key)!r}"
        )
        for key, each in matrices.items()
    }
    return put_summaries(session, inference_session, request_number, token_ids, reduced)


def put_summaries(
    session: Session,
    inference_session: InferenceSession | uuid.UUID,
    request_number: int,
    token_ids: Sequence[int] | np.ndarray,
    layers: Mapping[LayerKey, LayerAttention],
) -> int:
    """Store what `reduce_attention` left of matrices, by one statement; else as `put_attention`."""
    tokens = check_tokens(token_ids)
    served = find_inference_session(session, inference_session)
    known = ModelLayers(session, served.model_id)
    found = {known.find(key).path: (known.find(key), each) for key, each in layers.items()}
    if len(found) < len(layers):
        raise CacheError("two of the layers that were given are one; give each once")
    for layer, attention in found.values():
        _check_heads(layer, attention.summary, len(tokens))
    rows = [
        row
        for layer, attention in found.values()
        for row in _rows((served.id, request_number, layer.id), tokens, attention, _put_matrices(session, attention))
    ]
    try:
        with destination(session, 0, small_nbytes=SMALL_NBYTES) as target, target.batch(writes=True) as connection:
            ATTENTION_PATTERNS.insert(connection, rows, by_copy=target.by_copy)
    except ConstraintViolation as error:
        if not error.is_duplicate:
            raise
        raise CacheError(
            f"attention of request {request_number} is stored already for some of these heads; give another number"
        ) from error
    return len(rows)


def _name(key: LayerKey) -> str | int:
    return key if isinstance(key, str | int) else key.path


def _check_heads(layer: Row[Any], summary: AttentionSummary, token_count: int) -> None:
    if layer.heads and layer.heads != summary.head_count:
        raise CacheError(f"layer {layer.path!r} has {layer.heads} heads, its attention {summary.head_count}")
    if summary.token_count != token_count:
        raise CacheError(
            f"attention of layer {layer.path!r} is of {summary.token_count} tokens, token_ids has {token_count}"
        )


def _put_matrices(session: Session, attention: LayerAttention) -> Sequence[uuid.UUID | None]:
    """Layer by layer, so that what is encoded of them fits into memory."""
    if attention.packed is None:
        return [None] * attention.summary.head_count
    return put_tensors(session, [ArraySource(f"head {head}", each) for head, each in enumerate(attention.packed)])


def _rows(
    key: tuple[Any, ...], tokens: np.ndarray, attention: LayerAttention, tensor_ids: Sequence[uuid.UUID | None]
) -> Iterator[tuple[Any, ...]]:
    summary = attention.summary
    nothing = np.full(summary.head_count, None)
    for head, tensor_id in enumerate(tensor_ids):
        yield (
            *(*key, head, tokens),
            *(summary.mean_entropy[head], summary.mean_distance[head], summary.first_token_share[head]),
            (nothing if summary.previous_token_share is None else summary.previous_token_share)[head],
            (nothing if summary.induction_share is None else summary.induction_share)[head],
            *(summary.entropies[head], summary.top_count),
            *(summary.top_positions[head].reshape(-1), summary.top_weights[head].reshape(-1), tensor_id),
        )
