"""At least one row in every table, beside those of an imported model."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import numpy as np

from arc_halo import add_embeddings, create_model, set_alias
from arc_halo.schema import (
    AttentionPattern,
    BlobDeletion,
    CachedActivation,
    CheckpointTensor,
    CognitiveMemory,
    CognitiveState,
    FusionOperation,
    FusionOperationMember,
    GradientCheckpoint,
    InferenceMetric,
    InferenceSession,
    KVCachePayload,
    KVCacheStatistics,
    ModelInteraction,
    ModelLineage,
    OptimizerState,
    ReactorMetric,
    ReactorModel,
    TrainingMetric,
    UploadLease,
    Verification,
)
from tests.schema import rows

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from arc_halo.schema import Model

QUESTION, ANSWER = {"text": "6 * 7?"}, {"text": "42"}


def fill(session: Session, model: Model) -> None:
    """Rows of each domain; all belong to the model."""
    _core(session, model)
    _training(session, model)
    _inference(session, model)
    _fusion(session, model)
    _upkeep(session)


def _core(session: Session, model: Model) -> None:
    arrays = {"scale": np.ones(3, dtype=np.float32)}
    child = create_model(session, "child", {"model_type": "llama"}, arrays)
    session.add(ModelLineage(parent=model, child=child, kind="finetune", recipe={"steps": 3}))
    set_alias(session, model, "production")
    vectors = np.random.default_rng(0).standard_normal((3, 384))
    add_embeddings(session, "text", vectors, labels=["one", "two", None])
    add_embeddings(session, "run", vectors[:, :5], owner_id=model.id)


def _training(session: Session, model: Model) -> None:
    run = rows.add_run(session, model, config={"learning_rate": 1e-3}, status="running", current_step=4, total_steps=9)
    attempt = rows.add_attempt(session, run)
    rows.add_attempt(session, run, 1, parent_number=0, fork_step=3)
    series = rows.add_series(session, attempt, goal="minimize")
    rows.add_segment(session, series, {0: 2.5, 1: 2.25})
    series.sealed_through_step = 1
    session.add_all(TrainingMetric(series_id=series.id, step=step, value=2.0) for step in (2, 3, 4))
    checkpoint = rows.add_checkpoint(session, attempt, 3, is_best=True, metrics={"loss": 2.0})
    weight, layer = model.weights[0], model.layers[0]
    names = {"name": weight.name, "position": 0}
    session.add_all(
        [
            CheckpointTensor(checkpoint=checkpoint, tensor=weight.tensor, weight=weight, **names),
            OptimizerState(checkpoint=checkpoint, parameter_name=weight.name, state_name="step", scalar_value=3.0),
            GradientCheckpoint(training_session=run, layer=layer, strategy="full"),
        ]
    )


def _inference(session: Session, model: Model) -> None:
    used = rows.add(session, InferenceSession(model=model, weights_digest=model.weights_digest, name="chat"))
    session.add(InferenceMetric(inference_session=used, request_number=1, latency_seconds=0.5))
    session.add(
        AttentionPattern(
            inference_session=used,
            request_number=1,
            layer=model.layers[0],
            head_index=0,
            token_ids=[1, 2],
            mean_entropy=0.5,
            mean_distance=1.0,
            first_token_share=0.25,
            top_count=1,
            top_positions=[0, 0],
            top_weights=[1.0, 0.75],
        )
    )
    namespace = rows.add_namespace(session)
    block = rows.add_block(session, namespace, 0, stored_nbytes=8)
    rows.add_block(session, namespace, 1, expires_at=rows.NOON + dt.timedelta(days=9))
    key = {"tenant_id": block.tenant_id, "namespace_id": block.namespace_id, "block_hash": block.block_hash}
    content = {"key_digest": rows.digest("k"), "value_digest": rows.digest("v"), "codec": "raw"}
    session.add(KVCachePayload(**key, layer_index=0, key_payload=b"keys", value_payload=b"vals", **content))
    session.add(KVCacheStatistics(**key, hit_count=2, last_hit_at=rows.NOON))
    activations = rows.add_namespace(session, kind="activation", block_token_count=None)
    place = {"hook_point": "model.layers.0", "input_digest": rows.digest("input"), "namespace_id": activations.id}
    session.add(CachedActivation(tensor_id=model.weights[0].tensor_id, tenant_id=0, **place))


def _fusion(session: Session, model: Model) -> None:
    reactor, (first, second) = rows.add_reactor(session, "first", "second")
    session.add(ReactorModel(reactor=reactor, name="third", model=model, role="judge"))
    edge = {"reactor_id": reactor.id, "source": first, "target": second}
    session.add(ModelInteraction(interaction_type="feeds_into", **edge))
    state = rows.add(session, CognitiveState(reactor=reactor, version=0, goals=["answer"]))
    vector = np.arange(4, dtype=np.float32)
    session.add(CognitiveMemory(state=state, content="seen", dimension=4, vector=vector))
    session.flush()
    asked = {"status": "completed", "strategy": "ensemble", "input": QUESTION, "output": ANSWER, "state_version": 0}
    operation = rows.add(session, FusionOperation(reactor=reactor, execution_seconds=0.5, **asked))
    answered = {"position": 0, "role": "primary", "weight": 1.0, "status": "answered", "answer": ANSWER}
    session.add(FusionOperationMember(operation=operation, member=first, **answered))
    session.add(ReactorMetric(reactor=reactor, operation=operation, quality=0.75))


def _upkeep(session: Session) -> None:
    later = rows.NOON + dt.timedelta(hours=1)
    session.add(UploadLease(description="host, process 1", nbytes=9, expires_at=later))
    session.add(BlobDeletion(blob_location=f"aa/{'a' * 64}-{'0' * 16}"))
    session.add(Verification(percent=50.0, last_digest=rows.digest("last"), checked_count=1, checked_nbytes=9))
