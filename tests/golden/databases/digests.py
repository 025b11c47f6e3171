"""What a released database must give back, short enough for JSON: curves and states by their digests."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arc_halo.training import CheckpointState

COLUMNS = {"step": "<i8", "value": "<f8", "epoch": "<f8", "attempt_number": "<i4"}
TREES = ("scheduler", "scaler", "rng", "data_loader", "extra")


def of_curve(points: Any) -> dict[str, Any]:
    """Of points by the columns of a history: how many, where they begin and end, whose they are, and every bit."""
    hasher = sha256()
    for name, dtype in COLUMNS.items():
        column = np.ascontiguousarray(points[name], dtype)
        if column.dtype.kind == "f":  # a dump has one NaN for all
            column = np.where(np.isnan(column), np.nan, column)
        hasher.update(column.tobytes())
    return {
        "point_count": len(points["step"]),
        "steps": [int(points["step"][0]), int(points["step"][-1])],
        "attempts": sorted({int(each) for each in points["attempt_number"]}),
        "digest": hasher.hexdigest(),
    }


def of_state(state: CheckpointState) -> dict[str, str]:
    """Of each array of a training state by its name, and of each tree; the first word says of what."""
    found = {f"weights {name}": of_value(array) for name, array in state.weights.items()}
    found |= {f"gradients {name}": of_value(array) for name, array in (state.gradients or {}).items()}
    if state.optimizer is not None:
        for name, remembered in state.optimizer.states.items():
            found |= {f"optimizer {name} {key}": of_value(value) for key, value in remembered.items()}
        found["optimizer groups"] = of_value(list(state.optimizer.groups))
    trees = {name: getattr(state, name) for name in TREES}
    return found | {name: of_value(tree) for name, tree in trees.items() if tree is not None}


def of_value(value: Any) -> str:
    """Of a value with everything that tells it from others, as the order of keys and the sign of zero."""
    return sha256("\n".join(_leaves(value)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, np.ndarray | np.generic):
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        yield f"{kind} {np.dtype(value.dtype).name} {list(value.shape)} {sha256(value.tobytes()).hexdigest()}"
    elif isinstance(value, dict):
        yield f"{type(value).__name__} of {len(value)}"
        for key, each in value.items():
            yield from (*_leaves(key), *_leaves(each))
    elif isinstance(value, list | tuple):
        yield f"{type(value).__name__} of {len(value)}"
        for each in value:
            yield from _leaves(each)
    else:
        yield f"{type(value).__name__} {value!r}"
