"""Rows made by hand: the least that each table asks for."""

from __future__ import annotations

import datetime as dt
import math
import struct
import uuid
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from arc_halo.schema import (
    CacheNamespace,
    Chunk,
    KVCacheBlock,
    MetricSegment,
    MetricSeries,
    Model,
    ModelCheckpoint,
    ModelWeight,
    Reactor,
    ReactorModel,
    Tensor,
    TensorChunk,
    TrainingAttempt,
    TrainingSession,
    TransformerLayer,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


def digest(name: object) -> bytes:
    return blake3(str(name).encode()).digest()


def add(session: Session, row: Any) -> Any:
    session.add(row)
    session.flush()
    return row


def add_model(session: Session, name: str = "model", **columns: Any) -> Model:
    return add(session, Model(**{"name": name, "version": "1", "model_type": "llama", **columns}))


def add_tensor(session: Session, element_count: int = 4, **columns: Any) -> Tensor:
    defaults = {
        "digest": digest(uuid.uuid4()),
        "dtype": "F32",
        "shape": [element_count],
        "nbytes": 4 * element_count,
        "element_count": element_count,
        "chunk_nbytes": 1 << 20,
        "compression": "none",
        "seal": bytes(32),
    }
    return add(session, Tensor(**{**defaults, **columns}))


def add_weight(session: Session, model: Model, name: str, tensor: Tensor, **columns: Any) -> ModelWeight:
    defaults = {"model": model, "name": name, "tensor": tensor, "position": 0, "category": "weight"}
    return add(session, ModelWeight(**{**defaults, **columns}))


def add_chunk(session: Session, tensor: Tensor, index: int, payload: bytes) -> Chunk:
    """The chunk with that payload, made if it is not there, at a place of the tensor."""
    chunk = session.get(Chunk, (0, digest(payload)))
    if chunk is None:
        chunk = Chunk(
            digest=digest(payload),
            raw_nbytes=len(payload),
            stored_nbytes=len(payload),
            codec="raw",
            dtype="F32",
            payload_checksum=0,
            payload=payload,
        )
        add(session, chunk)
    place = {"chunk_index": index, "first_row": index, "raw_offset": index, "raw_nbytes": len(payload)}
    add(session, TensorChunk(tensor=tensor, tenant_id=0, digest=chunk.digest, **place))
    return chunk


def add_layer(session: Session, model: Model, path: str, **columns: Any) -> TransformerLayer:
    defaults = {"model": model, "path": path, "name": path, "position": 0, "layer_type": "block"}
    return add(session, TransformerLayer(**{**defaults, **columns}))


def add_run(session: Session, model: Model, name: str = "run", **columns: Any) -> TrainingSession:
    return add(session, TrainingSession(**{"model": model, "name": name, **columns}))


def add_attempt(session: Session, run: TrainingSession, number: int = 0, **columns: Any) -> TrainingAttempt:
    return add(session, TrainingAttempt(**{"training_session": run, "attempt_number": number, **columns}))


def add_series(session: Session, attempt: TrainingAttempt, name: str = "loss", **columns: Any) -> MetricSeries:
    return add(session, MetricSeries(**{"attempt": attempt, "name": name, **columns}))


def add_segment(session: Session, series: MetricSeries, points: dict[int, float]) -> MetricSegment:
    """Sealed points, by ascending steps."""
    known = {step: value for step, value in points.items() if not math.isnan(value)}
    low, high = min(known, key=known.__getitem__, default=None), max(known, key=known.__getitem__, default=None)
    return add(
        session,
        MetricSegment(
            series_id=series.id,
            first_step=min(points),
            last_step=max(points),
            point_count=len(points),
            nan_count=len(points) - len(known),
            min_value=known.get(low),
            min_at_step=low,
            max_value=known.get(high),
            max_at_step=high,
            last_value=points[max(points)],
            steps=list(points),
            epochs=[None] * len(points),
            point_values=list(points.values()),
            recorded_times=[NOON] * len(points),
        ),
    )


def add_checkpoint(session: Session, attempt: TrainingAttempt, step: int, **columns: Any) -> ModelCheckpoint:
    """A published one, unless said otherwise."""
    defaults = {"status": "published", "manifest_digest": digest(step), "published_at": NOON}
    return add(
        session,
        ModelCheckpoint(
            **{
                "training_session_id": attempt.training_session_id,
                "attempt_id": attempt.id,
                "step": step,
                **defaults,
                **columns,
            }
        ),
    )


def add_namespace(session: Session, **columns: Any) -> CacheNamespace:
    """One of keys and values, unless said otherwise."""
    return add(
        session,
        CacheNamespace(
            tenant_id=0,
            **{
                "digest": digest(uuid.uuid4()),
                "kind": "kv",
                "weights_digest": digest("weights"),
                "is_registered": False,
                "config_digest": digest("config"),
                "dtype": "F16",
                "layout": "kv_heads,tokens,head_dim",
                "precision": "exact",
                "block_token_count": 2,
                "salt": b"",
                **columns,
            },
        ),
    )


def add_block(session: Session, namespace: CacheNamespace, number: int, **columns: Any) -> KVCacheBlock:
    defaults = {
        "tenant_id": namespace.tenant_id,
        "namespace_id": namespace.id,
        "block_hash": digest(number),
        "parent_hash": digest(number - 1) if number else None,
        "position": number,
        "token_ids": struct.pack(">2i", number, number),
        "is_logged": True,
        "stored_nbytes": 0,
    }
    return add(session, KVCacheBlock(**{**defaults, **columns}))


def add_reactor(session: Session, *members: str, name: str = "reactor") -> tuple[Reactor, list[ReactorModel]]:
    """A reactor with members of those names."""
    reactor = add(session, Reactor(name=name, strategy="ensemble"))
    return reactor, [add(session, ReactorModel(reactor=reactor, name=each, endpoint=each)) for each in members]
