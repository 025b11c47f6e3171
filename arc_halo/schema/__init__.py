"""The database as declared in Python.

Core
    Model         a transformer at one version; ModelAlias a movable name for one, ModelFile a file it came with,
                  ModelLineage how it was made from another
    Layer         a node of a model's layer tree (TransformerLayer); Head one of an attention layer's (AttentionHead)
Tensors
    Tensor        distinct content under a digest; Chunk a piece of it, TensorChunk the piece's place
    Weight        a model's use of a tensor under a name (ModelWeight)
    Embedding     a vector with an owner, to be searched
Training
    Session       a run of a model (TrainingSession); Attempt one start or restart of it (TrainingAttempt), Rank one
                  of its processes (TrainingRank)
    Series        one metric of one attempt (MetricSeries), with a MetricSummary; its points are TrainingMetric, once
                  sealed MetricSegment
    Checkpoint    a state to go back to (ModelCheckpoint): CheckpointTensor and OptimizerState, and of each rank what
                  it brought (CheckpointRank); GradientCheckpoint is another thing: how a layer's activations are kept
                  for the backward pass
Inference
    Session       a model in use (InferenceSession), its InferenceMetric and AttentionPattern
    Namespace     all that must be equal for a cache hit (CacheNamespace), with its CacheStatistics
    Entry         what is cached in one: KVCacheBlock with payloads (KVCachePayload, KVCacheUnloggedPayload) and
                  KVCacheStatistics, CachedActivation, CachedResponse
    Quota, Lease, Audit
                  what a tenant may keep (CacheQuota), who is computing what (CacheLease), what was found and not
                  served (CacheAudit)
Fusion
    Reactor       several models run as one; Member one of them (ReactorModel), ModelInteraction an edge between two
    Operation     a question and its joint answer (FusionOperation), with each member's (FusionOperationMember)
    State         a version of what a reactor has in mind (CognitiveState), its CognitiveMemory; ReactorMetric
Upkeep
    UploadLease, Operation, BlobDeletion, Verification: what the database remembers of work on itself
Views
    ModelArchitecture, TrainingProgress, TrainingPoint, RunMetric, ReactorStatus, TensorStatistics, ModelStorage,
    ModelFamily, DuplicateTensor, UnsoundLayer, CacheStatus, InferenceLatency: computed, read-only

Importing this package makes ``Base.metadata`` complete, functions and triggers included.
"""

from arc_halo.schema.base import Base
from arc_halo.schema.caches import (
    CacheAudit,
    CachedActivation,
    CachedResponse,
    CacheLease,
    CacheNamespace,
    CacheQuota,
    CacheStatistics,
    KVCacheBlock,
    KVCachePayload,
    KVCacheStatistics,
    KVCacheUnloggedPayload,
)
from arc_halo.schema.checkpoints import (
    CheckpointRank,
    CheckpointTensor,
    GradientCheckpoint,
    ModelCheckpoint,
    OptimizerState,
)
from arc_halo.schema.core import AttentionHead, Model, ModelAlias, ModelFile, ModelLineage, TransformerLayer
from arc_halo.schema.fusion import (
    CognitiveMemory,
    CognitiveState,
    FusionOperation,
    FusionOperationMember,
    ModelInteraction,
    Reactor,
    ReactorMetric,
    ReactorModel,
)
from arc_halo.schema.inference import AttentionPattern, InferenceMetric, InferenceSession
from arc_halo.schema.metric_views import RunMetric
from arc_halo.schema.tensors import Chunk, Embedding, ModelWeight, Tensor, TensorChunk
from arc_halo.schema.training import (
    MetricSegment,
    MetricSeries,
    MetricSummary,
    TrainingAttempt,
    TrainingMetric,
    TrainingRank,
    TrainingSession,
)
from arc_halo.schema.upkeep import BlobDeletion, Operation, UploadLease, Verification
from arc_halo.schema.usage_views import CacheStatus, InferenceLatency
from arc_halo.schema.views import ModelArchitecture, ReactorStatus, TensorStatistics, TrainingPoint, TrainingProgress
from arc_halo.schema.weight_views import DuplicateTensor, ModelFamily, ModelStorage, UnsoundLayer

__all__ = [
    "AttentionHead",
    "AttentionPattern",
    "Base",
    "BlobDeletion",
    "CacheAudit",
    "CacheLease",
    "CacheNamespace",
    "CacheQuota",
    "CacheStatistics",
    "CacheStatus",
    "CachedActivation",
    "CachedResponse",
    "CheckpointRank",
    "CheckpointTensor",
    "Chunk",
    "CognitiveMemory",
    "CognitiveState",
    "DuplicateTensor",
    "Embedding",
    "FusionOperation",
    "FusionOperationMember",
    "GradientCheckpoint",
    "InferenceLatency",
    "InferenceMetric",
    "InferenceSession",
    "KVCacheBlock",
    "KVCachePayload",
    "KVCacheStatistics",
    "KVCacheUnloggedPayload",
    "MetricSegment",
    "MetricSeries",
    "MetricSummary",
    "Model",
    "ModelAlias",
    "ModelArchitecture",
    "ModelCheckpoint",
    "ModelFamily",
    "ModelFile",
    "ModelInteraction",
    "ModelLineage",
    "ModelStorage",
    "ModelWeight",
    "Operation",
    "OptimizerState",
    "Reactor",
    "ReactorMetric",
    "ReactorModel",
    "ReactorStatus",
    "RunMetric",
    "Tensor",
    "TensorChunk",
    "TensorStatistics",
    "TrainingAttempt",
    "TrainingMetric",
    "TrainingPoint",
    "TrainingProgress",
    "TrainingRank",
    "TrainingSession",
    "TransformerLayer",
    "UnsoundLayer",
    "UploadLease",
    "Verification",
]
