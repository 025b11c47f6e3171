"""The contract of a merge method: numbers of several tensors of one shape to those of one, block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from arc_halo.errors import MergeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

Value: TypeAlias = float | bool
Values: TypeAlias = Mapping[str, Value]
Scope = Literal["shared", "model"]

Block: TypeAlias = "tuple[np.ndarray, ...]"
"""The same span of every input, one-dimensional, all of one length and of float32 or float64."""
Blocks: TypeAlias = Callable[[], Iterable[Block]]
"""All blocks of a tensor from its first number to its last, each time it is called."""
Mask: TypeAlias = "Callable[[int], np.ndarray]"
"""The next so many of a tensor's numbers: true where they are kept."""
Masks: TypeAlias = Sequence[Callable[[], Mask]]
"""For each model that is not the base, a mask that begins anew with every call."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a recipe may say to a method.

    Attributes
    ----------
    scope
        ``model``: each model but the base has its own, and what stands above them holds for all. ``shared``: there is
        one for all of them together.
    default
        None where a recipe must say it.
    least, most
        Between which it must lie, both included.
    """

    name: str
    scope: Scope
    default: Value | None = None
    least: float | None = None
    most: float | None = None

    @property
    def is_flag(self) -> bool:
        """Whether it is true or false, not a number."""
        return isinstance(self.default, bool)


@dataclass(frozen=True, slots=True)
class Task:
    """One tensor to be merged.

    Attributes
    ----------
    size
        How many numbers it has.
    base
        Which of the inputs is the base; None where the method has none.
    shared
        Values of the parameters that are one for all.
    inputs
        Values of the others for each input, in the order of the blocks; the base's are not looked at.
    masks
        Which numbers of each model that is not the base DARE keeps.
    """

    size: int
    base: int | None
    shared: Values
    inputs: Sequence[Values]
    masks: Masks = field(default=())

    @property
    def others(self) -> list[int]:
        """Which inputs are not the base."""
        return [index for index in range(len(self.inputs)) if index != self.base]


class Method(ABC):
    """Merges a tensor whose numbers arrive in blocks, as often as the method asks for them.

    What is known of a whole tensor, a norm or a threshold, is measured over the blocks before the merged ones are
    made: memory is that of a block for each input, however large the tensor.
    """

    id: ClassVar[str]
    """The name that mergekit has for it."""
    parameters: ClassVar[Sequence[Parameter]]
    needs_base: ClassVar[bool] = True
    inputs: ClassVar[int | None] = None
    """How many models it takes, the base among them; None for any number."""
    keeps_equal: ClassVar[bool] = False
    """Whether a tensor that is the same in all models is that to the bit when it is merged."""
    draws: ClassVar[bool] = False
    """Whether it needs masks."""

    @abstractmethod
    def merge(self, task: Task, blocks: Blocks) -> Iterator[np.ndarray]:
        """The merged numbers of each block, of the type that its inputs have."""

    @abstractmethod
    def passes(self, task: Task) -> int:
        """How often `merge` asks for the blocks."""

    def parameter(self, name: str) -> Parameter:
        """The parameter of a name.

        Raises
        ------
        MergeError
            The method has none of that name.
        """
        for each in self.parameters:
            if each.name == name:
                return each
        known = ", ".join(each.name for each in self.parameters)
        if name == "int8_mask":
            raise MergeError("int8_mask saves mergekit memory and changes no result; leave it out")
        raise MergeError(f"{self.id} has no parameter {name!r}; there are {known}")
