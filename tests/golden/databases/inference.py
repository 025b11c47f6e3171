"""Caches and what is known of requests, as serving leaves them: every codec and table that later releases must read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3
from sqlalchemy import insert

from arc_halo.inference.activations import input_digest, put_activations
from arc_halo.inference.attention import put_attention
from arc_halo.inference.kv import store_prefix
from arc_halo.inference.kv.keeping import set_quota
from arc_halo.inference.namespaces import Namespace
from arc_halo.inference.responses import put_response
from arc_halo.schema import CacheAudit, CacheLease, CacheStatistics, InferenceSession
from tests.inference.kv import make_layers, make_namespace
from tests.schema import rows

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from arc_halo.schema import Model

PROMPT = list(range(300, 310))
ACTIVATIONS = {"layers.0": np.arange(12, dtype=np.float32).reshape(3, 4)}
INPUTS = {"input_ids": np.arange(3)}
ASKED = ("What is kept?", {"temperature": 0.0})
WAYS: dict[str, dict[str, Any]] = {
    "none": {"codec": "none"},
    "lossless": {"codec": "lossless"},
    "unlogged": {"codec": "none", "logged": False},
    "int8": {"codec": "int8"},
}
TOKENS = [5, 6, 5, 6]


def kv_namespace(way: str) -> Namespace:
    """The namespace of keys and values that were stored in this way."""
    return make_namespace(salt=way.encode(), precision="int8" if way == "int8" else "exact")


def other_namespace(kind: Any) -> Namespace:
    """The namespace of activations or responses."""
    return Namespace(kind, rows.digest("weights"), rows.digest("config"), "F32", "as computed")


def matrices() -> np.ndarray:
    """Attention of two heads over the tokens."""
    even = np.tri(len(TOKENS), dtype=np.float32) / np.arange(1, len(TOKENS) + 1, dtype=np.float32)[:, None]
    return np.stack([even, np.eye(len(TOKENS), dtype=np.float32)])


def fill(session: Session, model: Model) -> None:
    """Store something in every way, and in every table beside."""
    for way, options in WAYS.items():
        store_prefix(session, kv_namespace(way), PROMPT, make_layers(PROMPT), pinned=True, **options)
    put_activations(session, other_namespace("activation"), input_digest(INPUTS), ACTIVATIONS, pinned=True)
    vector = np.ones(384, np.float32)
    put_response(session, other_namespace("response"), *ASKED, "Rows.", embedding=vector, embedder="e", pinned=True)
    served = rows.add(session, InferenceSession(model=model, name="watched"))
    layer = next(each for each in model.layers if each.layer_type == "attention")
    put_attention(session, served, 0, TOKENS, {layer: np.concatenate([matrices()] * 2)}, keep_matrices=True)
    set_quota(session, "kv", 1 << 30)
    session.execute(insert(CacheAudit).values(tenant_id=0, kind="kv", reason="bad_payload", details={"block": "00"}))
    lease = {"key_digest": blake3(b"key").digest(), "holder_id": model.id, "description": "host 1"}
    session.add(CacheLease(tenant_id=0, expires_at=rows.NOON, **lease))
    namespace = rows.add_namespace(session)
    session.add(CacheStatistics(tenant_id=0, namespace_id=namespace.id, lookup_count=2, hit_count=1, read_seconds=0.5))
    session.flush()
