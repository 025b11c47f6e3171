"""Training states as loops have them, and what tells whether they came back."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg

from arc_halo.store.connections import driver_connection
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.optimizer import OptimizerSnapshot
from tests.fixtures.tensors import weights
from tests.schema.rows import add_attempt, add_model, add_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

SHAPES = {"embed.weight": (40, 16), "block.weight": (16, 16), "block.bias": (16,), "norm.weight": ()}


def adam(parameters: dict[str, np.ndarray], step: int = 3, seed: int = 0) -> OptimizerSnapshot:
    """As AdamW has it: two moments and a step, which is a float without axes."""
    states = {
        name: {
            "step": np.asarray(step, np.float32),
            "exp_avg": weights(array.shape, seed + 10 + index, array.dtype),
            "exp_avg_sq": np.asarray(np.abs(weights(array.shape, seed + 20 + index, array.dtype))),
        }
        for index, (name, array) in enumerate(parameters.items())
    }
    decayed, others = (
        [name for name in parameters if "bias" not in name],
        [name for name in parameters if "bias" in name],
    )
    common = {"lr": 1e-05, "betas": (0.9, 0.999), "eps": 1e-08, "amsgrad": False, "maximize": None}
    groups = [common | {"weight_decay": 0.01, "params": decayed}, common | {"weight_decay": 0.0, "params": others}]
    return OptimizerSnapshot(states, groups)


def state(seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES, step: int = 3, **changes: Any) -> CheckpointState:
    """One of everything."""
    parameters = {name: weights(shape, seed + index) for index, (name, shape) in enumerate(shapes.items())}
    rng = np.random.RandomState(seed)
    whole: dict[str, Any] = {
        "weights": parameters,
        "optimizer": adam(parameters, step, seed),
        "gradients": {name: np.asarray(array * 2) for name, array in parameters.items()},
        "scheduler": {"last_epoch": step, "base_lrs": [1e-05]},
        "scaler": {"scale": 65536.0, "_growth_tracker": 7},
        "rng": {"numpy": rng.get_state(), "python": (3, tuple(range(625)), None)},
        "data_loader": {"epoch": 1, "order": rng.permutation(100)},
        "extra": {"best": 0.25, "note": "ä"},
    }
    return CheckpointState(**whole | changes)


def spelt(value: Any) -> Any:
    """Everything that tells a value from others, but for the order of keys of states."""
    if isinstance(value, CheckpointState):
        names = CheckpointState.__dataclass_fields__
        return {name: spelt(getattr(value, name)) for name in names}
    if isinstance(value, OptimizerSnapshot):
        return spelt({"states": dict(value.states), "groups": list(value.groups)})
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        return type(value).__name__, str(array.dtype), array.shape, array.tobytes()
    if isinstance(value, dict):
        return {key: spelt(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value).__name__, [spelt(each) for each in value]
    return type(value).__name__, repr(value)


def begin(session: Session, name: str = "run", **columns: Any) -> Any:
    """A running attempt of a model without weights."""
    return add_attempt(session, add_run(session, add_model(session, name), name), **columns)


@contextmanager
def driver_statements(session: Session) -> Iterator[list[str]]:
    """Everything that is sent in the session's transaction, by SQLAlchemy or past it."""
    connection = driver_connection(session.connection())
    seen: list[str] = []

    class Recorder(psycopg.Cursor):
        def execute(self, query, *args, **kwargs):
            seen.append(str(query))
            return super().execute(query, *args, **kwargs)

    factory, connection.cursor_factory = connection.cursor_factory, Recorder
    yield seen
    connection.cursor_factory = factory
