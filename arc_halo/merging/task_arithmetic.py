"""Sums of task vectors, and what the methods that sparsify those or elect signs have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

import numpy as np

from arc_halo.merging.abc import Mask, Method, Parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from arc_halo.merging.abc import Block, Blocks, Task

    Chooser: TypeAlias = Callable[[], Callable[[np.ndarray], np.ndarray]]

WEIGHT: Final = Parameter("weight", "model")
DENSITY: Final = Parameter("density", "model", default=1.0, least=0, most=1)
LAMBDA: Final = Parameter("lambda", "shared", default=1.0)
_NO_NORM: Final = 1e-7
_NO_WEIGHT: Final = 1e-8


def normalize(*, default: bool) -> Parameter:
    """Whether a sum of task vectors is divided by that of their weights."""
    return Parameter("normalize", "shared", default=default)


def rescale(*, default: bool) -> Parameter:
    """Whether what is left of a task vector gets the L1 norm that it had."""
    return Parameter("rescale", "shared", default=default)


class TaskVectors(Method):
    """``x_0 + lambda * sum(w_i (x_i - x_0))`` of a base ``x_0``, with what subclasses do to the vectors before.

    Task arithmetic: Ilharco et al. 2023, https://arxiv.org/abs/2212.04089.
    """

    keeps_equal = True
    elects: ClassVar[bool] = False
    """Whether numbers whose sign is not that of the weighted sum are left out, as TIES does."""

    def merge(self, task: Task, blocks: Blocks) -> Iterator[np.ndarray]:
        """Merged blocks of shape (n,)."""
        vectors = Vectors(task, blocks)
        choosers = self.choose(task, vectors)
        scales = _scales(task, vectors, choosers)
        choices = [None if each is None else each() for each in choosers]
        weights = [float(task.inputs[index]["weight"]) for index in task.others]
        for base, deltas in vectors.with_base():
            number = base.dtype.type
            for delta, choice, scale, weight in zip(deltas, choices, scales, weights, strict=True):
                if choice is not None:
                    delta[~choice(delta)] = 0
                if scale != 1:
                    np.multiply(delta, number(scale), out=delta)
                np.multiply(delta, number(weight), out=delta)
            mixed = self._mix(deltas, weights, is_mean=bool(task.shared.get("normalize", False)))
            yield base + mixed * number(task.shared["lambda"])

    def choose(self, task: Task, vectors: Vectors) -> Sequence[Chooser | None]:  # noqa: ARG002  # for subclasses
        """For each task vector what tells which of its numbers stay; None for all of them."""
        return [None] * len(task.others)

    def measures(self, task: Task) -> int:  # noqa: ARG002  # for subclasses
        """How often `choose` asks for the blocks."""
        return 0

    def passes(self, task: Task) -> int:
        """Those that choose, one for norms where vectors are rescaled, and one that merges."""
        return self.measures(task) + int(_is_rescaled(task)) + 1

    def _mix(self, deltas: Sequence[np.ndarray], weights: Sequence[float], *, is_mean: bool) -> np.ndarray:
        """The sum of weighted task vectors; as a mean, divided by the weights of what went into it."""
        number = deltas[0].dtype.type
        mixed = np.zeros_like(deltas[0])
        if not self.elects:
            for delta in deltas:
                mixed += delta
            total = sum(weights)
            return mixed / number(total) if is_mean and abs(total) >= _NO_WEIGHT else mixed
        elected = elect(deltas)
        divisor = np.zeros_like(mixed)
        for delta, weight in zip(deltas, weights, strict=True):
            agrees = np.sign(delta) == elected
            mixed += np.where(agrees, delta, number(0))
            divisor += np.where(agrees, number(weight), number(0))
        return mixed / np.where(divisor == 0, number(1), divisor) if is_mean else mixed


class TaskArithmetic(TaskVectors):
    """Task vectors as they are; see `TaskVectors`."""

    id = "task_arithmetic"
    parameters = (WEIGHT, LAMBDA, normalize(default=False))


def elect(deltas: Sequence[np.ndarray]) -> np.ndarray:
    """The sign of each number that the weighted task vectors have in sum; 1 where that is 0, as in mergekit."""
    total = np.zeros_like(deltas[0])
    for delta in deltas:
        total += delta
    signs: np.ndarray = np.where(total >= 0, total.dtype.type(1), total.dtype.type(-1))
    return signs


class Vectors:
    """The task vectors of a tensor, block by block."""

    def __init__(self, task: Task, blocks: Blocks) -> None:
        self._task = task
        self._blocks = blocks

    def with_base(self) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """The base, and what each other model differs from it by."""
        for block in self._blocks():
            yield block[self._base], self._deltas(block)

    def __call__(self) -> Iterator[list[np.ndarray]]:
        """The vectors alone."""
        for block in self._blocks():
            yield self._deltas(block)

    @property
    def _base(self) -> int:
        assert self._task.base is not None
        return self._task.base

    def _deltas(self, block: Block) -> list[np.ndarray]:
        return [block[index] - block[self._base] for index in self._task.others]


def _is_rescaled(task: Task) -> bool:
    densities = [float(task.inputs[index].get("density", 1.0)) for index in task.others]
    return bool(task.shared.get("rescale", False)) and any(0 < density < 1 for density in densities)


def _scales(task: Task, vectors: Vectors, choosers: Sequence[Chooser | None]) -> list[float]:
    """What restores the L1 norms of the vectors; 1 where there is next to nothing of one, as in mergekit."""
    if not _is_rescaled(task):
        return [1.0] * len(choosers)
    choices = [None if each is None else each() for each in choosers]
    before, after = [0.0] * len(choices), [0.0] * len(choices)
    for deltas in vectors():
        for index, (delta, choice) in enumerate(zip(deltas, choices, strict=True)):
            if choice is not None:
                magnitudes = np.abs(delta)
                before[index] += float(magnitudes.sum(dtype=np.float64))
                after[index] += float(magnitudes[choice(delta)].sum(dtype=np.float64))
    return [
        1.0 if whole < _NO_NORM or left < _NO_NORM else whole / left for whole, left in zip(before, after, strict=True)
    ]


def mask_chooser(mask: Callable[[], Mask]) -> Chooser:
    """Numbers chosen by a mask, whatever they are."""

    def begin() -> Callable[[np.ndarray], np.ndarray]:
        following = mask()
        return lambda delta: following(delta.size)

    return begin
