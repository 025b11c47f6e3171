"""Arrays merged as a tensor of a model is, in blocks of any size."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from arc_halo.merging import Task, method

if TYPE_CHECKING:
    from collections.abc import Sequence


def merge(
    name: str, arrays: Sequence[np.ndarray], said: dict[str, Any], *, masks: Sequence[Any] = (), block: int = 1 << 20
) -> np.ndarray:
    """The merged array, of which the first given is the base; lists have a value for each model."""
    chosen = method(name)
    base = 0 if chosen.needs_base else None
    models = len(arrays) - chosen.needs_base
    shared, own = {}, [{} for _ in range(models)]
    for each in chosen.parameters:
        value = said.get(each.name, each.default)
        if each.scope == "shared":
            shared[each.name] = value
        else:
            for index, values in enumerate(own):
                values[each.name] = value[index] if isinstance(value, list) else value
    task = Task(prod(arrays[0].shape), base, shared, [{}, *own] if chosen.needs_base else own, masks)
    calls = []

    def blocks():
        calls.append(None)
        flat = [each.reshape(-1) for each in arrays]
        return (tuple(each[start : start + block] for each in flat) for start in range(0, task.size, block))

    merged = list(chosen.merge(task, blocks))
    assert len(calls) == chosen.passes(task)
    return np.concatenate(merged).reshape(arrays[0].shape)
