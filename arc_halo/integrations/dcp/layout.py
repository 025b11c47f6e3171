"""Where each entry of a state dict is kept in a checkpoint, and back; knows no database."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

Path: TypeAlias = "tuple[str | int, ...]"
"""Keys and indexes that lead through nested dicts and lists to an entry."""

_STATE: Final = "state"
_GROUPS: Final = "param_groups"
PARAMS: Final = "params"
"""The key of a parameter group that names its parameters."""
_OPTIMIZER_KEYS: Final = ("optim", "optimizer")
_MODEL_KEY: Final = "model"


class Weight(NamedTuple):
    """A weight of the model, under its name in the module."""

    name: str


class State(NamedTuple):
    """What the optimizer remembers of a parameter under a name: ``exp_avg``, ``step``, ..."""

    parameter: str
    name: str


class Hyperparameter(NamedTuple):
    """A setting of a parameter group, or of one parameter where the optimizer's keys are joined."""

    owner: int | str
    name: str


Place: TypeAlias = "Weight | State | Hyperparameter"


@dataclass(frozen=True, slots=True)
class Layout:
    """Which paths lead to weights and to an optimizer's entries; all others are kept as what they are.

    Attributes
    ----------
    weights
        Path of the dict whose tensors are weights.
    optimizer
        Path of the dict with ``state`` and ``param_groups``.
    is_joined
        The optimizer's dict is flat, with keys such as ``state.0.weight.exp_avg`` (``flatten_optimizer_state_dict``).
    """

    weights: Path | None = ("model",)
    optimizer: Path | None = ("optim",)
    is_joined: bool = False

    def place(self, path: Path) -> Place | None:
        """Where the entry belongs, or None for what is neither a weight nor an optimizer's."""
        if self.optimizer is not None and path[: len(self.optimizer)] == self.optimizer:
            rest = path[len(self.optimizer) :]
            found = _joined_place(rest) if self.is_joined else _nested_place(rest)
            if found is not None:
                return found
        if self.weights is not None and path[:-1] == self.weights and isinstance(path[-1], str):
            return Weight(path[-1])
        return None

    def path(self, place: Place) -> Path:
        """The inverse of `place`."""
        if isinstance(place, Weight):
            assert self.weights is not None
            return (*self.weights, place.name)
        assert self.optimizer is not None
        kind = _STATE if isinstance(place, State) else _GROUPS
        if self.is_joined:
            return (*self.optimizer, f"{kind}.{place[0]}.{place[1]}")
        return (*self.optimizer, kind, *place)


def _nested_place(rest: Path) -> Place | None:
    match rest:
        case ("state", str(parameter), str(name)):
            return State(parameter, name)
        case ("param_groups", int(index), str(name)):
            return Hyperparameter(index, name)
    return None


def _joined_place(rest: Path) -> Place | None:
    if len(rest) != 1 or not isinstance(rest[0], str):
        return None
    kind, _, joined = rest[0].partition(".")
    owner, dot, name = joined.rpartition(".")
    if not dot or kind not in {_STATE, _GROUPS}:
        return None
    return State(owner, name) if kind == _STATE else Hyperparameter(owner, name)


def joined_name(path: Path) -> str:
    """What `torch.distributed.checkpoint` calls the entry that a path leads to."""
    return ".".join(map(str, path))


def find_layout(tensors: Collection[Path], values: Mapping[Path, Any]) -> Layout:
    """The layout of a state dict, from the paths of its tensors and from its other entries by path.

    The optimizer is the dict with groups that name their parameters, called ``optim`` or ``optimizer`` if there are
    several. Weights are the tensors under the key ``model``, or else those of the dict that has most of them.
    """
    optimizer, is_joined = _find_optimizer(tensors, values)
    layout = Layout(None, optimizer, is_joined)
    others = Counter(path[:-1] for path in tensors if isinstance(path[-1], str) and layout.place(path) is None)
    # Counted in a stated order, so that all who see this state dict choose the same.
    ordered = sorted(others, key=lambda path: (not path or path[-1] != _MODEL_KEY, -others[path], _sortable(path)))
    return Layout(ordered[0] if ordered else None, optimizer, is_joined)


def _find_optimizer(tensors: Iterable[Path], values: Mapping[Path, Any]) -> tuple[Path | None, bool]:
    entries = [*tensors, *values]
    nested = {path[: path.index(_GROUPS)] for path in entries if _GROUPS in path[:-1]}
    joined = {path[:-1] for path in entries if str(path[-1]).startswith(f"{_GROUPS}.")}
    # An optimizer's own state_dict counts its parameters instead of naming them: that is kept as it is.
    named = {root for root in nested if _names_parameters(root, values)}
    roots = sorted(named | joined, key=lambda root: (not root or root[-1] not in _OPTIMIZER_KEYS, _sortable(root)))
    return (roots[0], roots[0] not in named) if roots else (None, False)


def _names_parameters(root: Path, values: Mapping[Path, Any]) -> bool:
    size = len(root)
    groups = {path[size + 1] for path in values if path[: size + 1] == (*root, _GROUPS) and len(path) > size + 1}
    listed = [values.get((*root, _GROUPS, group, PARAMS)) for group in groups]
    return bool(listed) and all(isinstance(each, list) and all(isinstance(n, str) for n in each) for each in listed)


def _sortable(path: Path) -> tuple[str, ...]:
    return tuple(map(str, path))
