"""Attention out of the database: matrices that were kept, and summaries of any request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from sqlalchemy import text

from arc_halo.errors import NotFound, TensorNotFound
from arc_halo.inference.attention.layers import ModelLayers, find_inference_session
from arc_halo.inference.attention.packing import unpack_matrix
from arc_halo.inference.attention.summary import AttentionSummary
from arc_halo.store import Wanted, get_arrays
from arc_halo.store.arrays import decode_array

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Row
    from sqlalchemy.orm import Session

    from arc_halo.inference.attention.layers import LayerKey
    from arc_halo.schema import InferenceSession

_STORED: Final = """
  FROM arc_halo.attention_patterns AS p
  JOIN arc_halo.transformer_layers AS l ON l.id = p.layer_id
  LEFT JOIN arc_halo.tensor_metadata AS t ON t.id = p.tensor_id
 WHERE p.inference_session_id = :served AND p.request_number = :request
   AND (CAST(:layers AS uuid[]) IS NULL OR p.layer_id = ANY (:layers))
 ORDER BY l.position, p.head_index
"""
_MATRICES: Final = text(f"SELECT l.path, p.head_index, p.tensor_id, t.nbytes {_STORED}")
_SUMMARIES: Final = text(f"""
SELECT l.path, p.head_index, p.mean_entropy, p.mean_distance, p.first_token_share, p.previous_token_share,
       p.induction_share, p.top_count, array_send(p.token_ids) AS token_ids, array_send(p.entropies) AS entropies,
       array_send(p.top_positions) AS top_positions, array_send(p.top_weights) AS top_weights {_STORED}
""")


def load_attention(
    session: Session,
    inference_session: InferenceSession | uuid.UUID | str,
    request_number: int,
    layers: Iterable[LayerKey] | None = None,
) -> dict[str, np.ndarray]:
    """Matrices that were kept of a request, every bit as they were given.

    Parameters
    ----------
    layers
        Only these; all that are stored by default.

    Returns
    -------
    dict
        Of each layer ``[heads, queries, keys]`` by its path, in the order of the model.

    Raises
    ------
    NotFound
        There is no such inference session, or nothing is stored of that request.
    TensorNotFound
        Only summaries are: `load_summaries` gives those.
    CacheError
        The model has no such layer.
    """
    rows = _stored(session, _MATRICES, inference_session, request_number, layers)
    if any(row.tensor_id is None for row in rows):
        raise TensorNotFound(
            f"of request {request_number} only summaries are kept: load_summaries() gives them, and "
            "put_attention(..., keep_matrices=True) keeps matrices"
        )
    wanted = [Wanted(f"{row.path}, head {row.head_index}", row.tensor_id, row.nbytes) for row in rows]
    heads: dict[str, list[np.ndarray]] = {}
    for row, stored in zip(rows, get_arrays(session, wanted), strict=True):
        heads.setdefault(row.path, []).append(unpack_matrix(stored))
    return {path: np.stack(heads.pop(path)) for path in list(heads)}


def load_summaries(
    session: Session,
    inference_session: InferenceSession | uuid.UUID | str,
    request_number: int,
    layers: Iterable[LayerKey] | None = None,
) -> dict[str, AttentionSummary]:
    """Summaries of a request by the path of each layer; parameters and errors are those of `load_attention`."""
    heads: dict[str, list[Row[Any]]] = {}
    for row in _stored(session, _SUMMARIES, inference_session, request_number, layers):
        heads.setdefault(row.path, []).append(row)
    return {path: _summary(rows) for path, rows in heads.items()}


def load_tokens(
    session: Session, inference_session: InferenceSession | uuid.UUID | str, request_number: int
) -> np.ndarray:
    """Token ids of a request whose attention is stored, int32.

    Raises
    ------
    NotFound
        There is no such inference session, or nothing is stored of that request.
    """
    rows = _stored(session, _TOKENS, inference_session, request_number, None)
    return decode_array(rows[0].token_ids, ">i4")


_TOKENS: Final = text(f"SELECT array_send(p.token_ids) AS token_ids {_STORED} LIMIT 1")


def _stored(
    session: Session,
    statement: Any,
    inference_session: InferenceSession | uuid.UUID | str,
    request_number: int,
    layers: Iterable[LayerKey] | None,
) -> Sequence[Row[Any]]:
    served = find_inference_session(session, inference_session)
    ids = None
    if layers is not None:
        known = ModelLayers(session, served.model_id)
        ids = [known.find(key).id for key in layers]
    rows = session.execute(statement, {"served": served.id, "request": request_number, "layers": ids}).all()
    if not rows:
        of_layers = "" if layers is None else " and those layers"
        raise NotFound(
            f"no attention is stored of request {request_number}{of_layers} of inference session {served.id}"
        )
    return rows


def _summary(rows: Sequence[Row[Any]]) -> AttentionSummary:
    def floats(name: str) -> np.ndarray:
        return np.array([getattr(row, name) for row in rows], np.float64)

    def optional(name: str) -> np.ndarray | None:
        return None if getattr(rows[0], name) is None else floats(name)

    tokens = len(decode_array(rows[0].token_ids, ">i4"))
    kept = (len(rows), tokens, rows[0].top_count)
    return AttentionSummary(
        floats("mean_entropy"),
        floats("mean_distance"),
        floats("first_token_share"),
        optional("previous_token_share"),
        optional("induction_share"),
        np.stack([decode_array(row.entropies, ">f4") for row in rows]),
        np.stack([decode_array(row.top_positions, ">i4") for row in rows]).reshape(kept),
        np.stack([decode_array(row.top_weights, ">f4") for row in rows]).reshape(kept),
    )
