"""Task vectors of which numbers are dropped at random, and the rest made larger."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import numpy as np

from arc_halo.errors import MergeError
from arc_halo.merging.task_arithmetic import DENSITY, LAMBDA, WEIGHT, TaskVectors, mask_chooser, normalize, rescale

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from arc_halo.merging.abc import Mask, Task
    from arc_halo.merging.task_arithmetic import Chooser, Vectors

_WORD: Final = 1 << 64


class DareLinear(TaskVectors):
    """Drop and rescale: Yu et al. 2023, https://arxiv.org/abs/2311.03099.

    Each number stays with a probability of ``density``. What is left is rescaled to the L1 norm that the vector had,
    as mergekit does; the paper divides by the density, which is that in expectation.
    """

    id = "dare_linear"
    parameters = (WEIGHT, DENSITY, LAMBDA, normalize(default=False), rescale(default=True))
    draws = True

    def choose(self, task: Task, vectors: Vectors) -> Sequence[Chooser | None]:  # noqa: ARG002  # whatever they are
        """Those of the masks."""
        if len(task.masks) != len(task.others):
            raise MergeError(f"{self.id} takes a mask for each of {len(task.others)} models, not {len(task.masks)}")
        return [
            mask_chooser(mask) if float(task.inputs[index]["density"]) < 1 else None
            for index, mask in zip(task.others, task.masks, strict=True)
        ]


class DareTies(DareLinear):
    """DARE of which numbers of the elected sign are summed; see `Ties`."""

    id = "dare_ties"
    elects = True


def drawn_mask(seed: int, model: int, tensor: str, density: float) -> Callable[[], Mask]:
    """A mask of which each number is kept with that probability, the same for the same arguments for ever.

    It is Philox (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405) under a key of seed, model and tensor,
    one word for each number: what is kept depends neither on the blocks in which numbers come, nor on the order of
    tensors, nor on numpy's distributions, which may change between its versions.

    Parameters
    ----------
    model
        Its place among those of the recipe that are not the base, from 0.
    """
    key = np.frombuffer(blake2b(f"{seed}\0{model}\0{tensor}".encode(), digest_size=16).digest(), "<u8")
    limit = min(int(density * _WORD), _WORD)

    def begin() -> Mask:
        words = np.random.Philox(key=key)

        def following(count: int) -> np.ndarray:
            drawn = words.random_raw(count)
            return np.full(count, fill_value=True) if limit == _WORD else drawn < np.uint64(limit)

        return following

    return begin


def given_mask(kept: np.ndarray) -> Callable[[], Mask]:
    """A mask that is known, of any shape."""
    flat = np.asarray(kept, np.bool_).reshape(-1)

    def begin() -> Mask:
        done = 0

        def following(count: int) -> np.ndarray:
            nonlocal done
            done += count
            return flat[done - count : done]

        return following

    return begin
