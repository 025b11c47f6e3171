"""Spherical interpolation of two models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from arc_halo.merging.abc import Method, Parameter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arc_halo.merging.abc import Blocks, Task

# Of mergekit: from here on the sine of the angle is too small to divide by, and a straight line is as good.
_COLLINEAR: Final = 0.9995
_NOTHING: Final = 1e-8


class Slerp(Method):
    """``(sin((1-t) a) x_0 + sin(t a) x_1) / sin(a)``, with ``a`` the angle between the tensors; ``t`` 0 is the base.

    Shoemake 1985, Animating rotation with quaternion curves, https://doi.org/10.1145/325165.325242, here of each
    tensor as one vector. Tensors that point the same way, or opposite ways, are interpolated linearly.

    Norms and the product are summed in float64: mergekit sums float32 in parts, and a sum of a hundred million
    squares in float32 would not be equal to that otherwise.
    """

    id = "slerp"
    parameters = (Parameter("t", "shared"),)
    inputs = 2

    def merge(self, task: Task, blocks: Blocks) -> Iterator[np.ndarray]:
        """Interpolations of blocks of shape (n,)."""
        assert task.base is not None
        (other,) = task.others
        first, second, product = 0.0, 0.0, 0.0
        for block in blocks():
            x, y = (block[index].astype(np.float64) for index in (task.base, other))
            first += float(x @ x)
            second += float(y @ y)
            product += float(x @ y)
        kept, taken = coefficients(float(task.shared["t"]), math.sqrt(first), math.sqrt(second), product)
        for block in blocks():
            number = block[0].dtype.type
            yield block[task.base] * number(kept) + block[other] * number(taken)

    def passes(self, task: Task) -> int:  # noqa: ARG002  # the same for all
        """Two: norms and angle, then the interpolation."""
        return 2


def coefficients(t: float, first: float, second: float, product: float) -> tuple[float, float]:
    """By what two vectors are multiplied, of their norms and their product."""
    cosine = product / (first if first > _NOTHING else 1) / (second if second > _NOTHING else 1)
    if abs(cosine) > _COLLINEAR:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
