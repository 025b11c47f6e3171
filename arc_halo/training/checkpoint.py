"""A training state in memory: what is saved as a checkpoint, and what is loaded from one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping

    import numpy as np

    from arc_halo.training.optimizer import OptimizerSnapshot
    from arc_halo.training.parts import Held

CheckpointType: TypeAlias = Literal["full", "weights", "optimizer"]
Component: TypeAlias = Literal["weights", "optimizer", "gradients", "rng", "other"]
Tree: TypeAlias = Any
"""Any nesting of dicts, lists and tuples over None, bools, numbers, text, bytes, numpy arrays and numpy scalars."""


@dataclass(slots=True, eq=False)
class CheckpointState:
    """Everything that a training loop needs to go on as if it had never stopped.

    Attributes
    ----------
    weights
        Parameters and buffers by name; of a rank that holds parts of some, `Part`s of those.
    optimizer
        Its states by parameter name.
    gradients
        By parameter name.
    scheduler, scaler
        State of the learning rate's schedule and of the loss scaler, as trees.
    rng
        Random states of this process; of each rank its own.
    data_loader
        Where this process stands in its data; of each rank its own.
    extra
        What else the caller wants back.
    """

    weights: Mapping[str, Held] = field(default_factory=dict)
    optimizer: OptimizerSnapshot | None = None
    gradients: Mapping[str, Held] | None = None
    scheduler: Tree = None
    scaler: Tree = None
    rng: Tree = None
    data_loader: Tree = None
    extra: Tree = None


@dataclass(slots=True, eq=False, kw_only=True)
class LoadedCheckpoint(CheckpointState):
    """A state that was saved, and what is known of its checkpoint. Its arrays are the caller's to change.

    Attributes
    ----------
    epoch
        None if none was given.
    metrics
        Last values at its step.
    world_size
        How many ranks wrote it; ``rng`` and ``data_loader`` are those of one of them.
    """

    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    gradients: Mapping[str, np.ndarray] | None = None
    checkpoint_id: uuid.UUID
    training_session_id: uuid.UUID
    attempt_id: uuid.UUID
    step: int
    epoch: float | None
    checkpoint_type: CheckpointType
    is_best: bool
    metrics: Mapping[str, Any]
    world_size: int
    manifest_digest: bytes
