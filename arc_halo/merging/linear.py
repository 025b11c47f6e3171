"""Weighted means of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from arc_halo.errors import MergeError
from arc_halo.merging.abc import Method, Parameter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arc_halo.merging.abc import Blocks, Task


class Linear(Method):
    """``sum(w_i x_i)``, divided by ``sum(w_i)`` where it is normalised.

    Model soups: Wortsman et al. 2022, https://arxiv.org/abs/2203.05482. A base, if there is one, is a model like the
    others and has a weight, too.
    """

    id = "linear"
    parameters = (Parameter("weight", "model"), Parameter("normalize", "shared", default=True))
    needs_base = False

    def merge(self, task: Task, blocks: Blocks) -> Iterator[np.ndarray]:
        """The means of blocks of shape (n,)."""
        weights = [float(each["weight"]) for each in task.inputs]
        total = sum(weights)
        if task.shared["normalize"] and not total:
            raise MergeError("the weights add up to 0, so there is no mean; give others, or normalize: false")
        for block in blocks():
            merged = np.zeros_like(block[0])
            for numbers, weight in zip(block, weights, strict=True):
                merged += numbers * merged.dtype.type(weight)
            yield merged / merged.dtype.type(total) if task.shared["normalize"] else merged

    def passes(self, task: Task) -> int:  # noqa: ARG002  # the same for all
        """One."""
        return 1
