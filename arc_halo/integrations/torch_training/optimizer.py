"""An optimizer's state by the names of parameters, so that neither their order nor their number may shift it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from arc_halo.errors import StateMismatch
from arc_halo.integrations.torch import to_numpy
from arc_halo.integrations.torch_training.naming import some
from arc_halo.integrations.torch_trees import from_plain, own_tensor, to_plain
from arc_halo.training.optimizer import OptimizerSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_PARAMETERS = "params"
_LIKE_PARAMETERS = (".exp_avg", ".exp_avg_sq", ".momentum_buffer")


class Captured(NamedTuple):
    """A snapshot, and a tree of the states that belong to no parameter."""

    snapshot: OptimizerSnapshot
    shared: dict[Any, Any]


def capture_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> Captured:
    """The states of an optimizer by parameter name, over their own memory where that is on the CPU.

    Parameters
    ----------
    names
        Name of each parameter by its ``id``.

    Raises
    ------
    StateMismatch
        The optimizer has a parameter without a name.
    """
    groups = [_group(group, index, names) for index, group in enumerate(optimizer.param_groups)]
    states: dict[str, dict[str, Any]] = {}
    for parameter in (each for group in optimizer.param_groups for each in group[_PARAMETERS]):
        name = names[id(parameter)]
        for state_name, value in optimizer.state.get(parameter, {}).items():
            path = f"{name}.{state_name}"
            plain = to_numpy(value, path) if isinstance(value, torch.Tensor) else to_plain(value, path)
            states.setdefault(name, {})[state_name] = plain
    shared = {key: value for key, value in optimizer.state.items() if not isinstance(key, torch.Tensor)}
    return Captured(OptimizerSnapshot(states, groups), to_plain(shared, "optimizer.state"))


def _group(group: Mapping[str, Any], index: int, names: Mapping[int, str]) -> dict[str, Any]:
    strangers = [position for position, parameter in enumerate(group[_PARAMETERS]) if id(parameter) not in names]
    if strangers:
        shape = tuple(group[_PARAMETERS][strangers[0]].shape)
        raise StateMismatch(
            f"group {index} of the optimizer has {len(strangers)} parameters that the model does not name, the first "
            f"of shape {shape}; give as model a module that holds all of them, such as a ModuleDict"
        )
    plain = {key: to_plain(value, f"group {index}[{key!r}]") for key, value in group.items() if key != _PARAMETERS}
    return plain | {_PARAMETERS: [names[id(parameter)] for parameter in group[_PARAMETERS]]}


class OptimizerPlan:
    """A snapshot that was found to fit an optimizer, ready to be put into it.

    Raises
    ------
    StateMismatch
        Groups do not hold the parameters that they held.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        snapshot: OptimizerSnapshot,
        shared: Mapping[Any, Any],
        names: Mapping[int, str],
    ) -> None:
        self._optimizer = optimizer
        self._snapshot = snapshot
        self._shared = shared
        self._named = [[names.get(id(each), "") for each in group[_PARAMETERS]] for group in optimizer.param_groups]
        self._source = _pair_groups(self._named, [list(group[_PARAMETERS]) for group in snapshot.groups])

    def apply(self) -> None:
        """Put it into the optimizer, each state in the type it was stored in."""
        parameters = [each for group in self._optimizer.param_groups for each in group[_PARAMETERS]]
        index = {name: position for position, name in enumerate(name for group in self._named for name in group)}
        states = {index[name]: state for name, state in self._snapshot.states.items() if name in index}
        simple = {position: _simple(state) for position, state in states.items()}
        shared = from_plain(self._shared)
        groups = [self._snapshot.groups[source] for source in self._source]
        self._optimizer.load_state_dict(
            {"state": simple | shared, "param_groups": _numbered(groups, self._named, index)}
        )
        for position, state in states.items():
            _keep_types(self._optimizer.state[parameters[position]], state, simple[position], parameters[position])


def _numbered(
    groups: Iterable[Mapping[str, Any]], named: Iterable[Sequence[str]], index: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Groups with their hyperparameters as they were, and numbers of parameters in the place of names."""
    return [
        {key: from_plain(value) for key, value in group.items() if key != _PARAMETERS}
        | {_PARAMETERS: [index[name] for name in names]}
        for group, names in zip(groups, named, strict=True)
    ]


def number_states(snapshot: OptimizerSnapshot, shared: Mapping[Any, Any]) -> dict[str, Any]:
    """A snapshot as ``Optimizer.state_dict`` has it, numbered in the order of its own groups."""
    named = [list(group[_PARAMETERS]) for group in snapshot.groups]
    index = {name: position for position, name in enumerate(name for group in named for name in group)}
    states = {
        index[name]: _simple(state)
        | {key: from_plain(value) for key, value in state.items() if key not in _simple(state)}
        for name, state in snapshot.states.items()
    }
    return {"state": states | from_plain(shared), "param_groups": _numbered(snapshot.groups, named, index)}


def name_states(content: Mapping[str, Any], optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> Captured:
    """The content of a ``state_dict`` by the names of the parameters that an optimizer of the same kind has.

    Raises
    ------
    StateMismatch
        The optimizer has other groups, or parameters of other shapes.
    """
    groups = [[(names[id(each)], each) for each in group[_PARAMETERS]] for group in optimizer.param_groups]
    sizes = [len(group) for group in groups], [len(group[_PARAMETERS]) for group in content["param_groups"]]
    if sizes[0] != sizes[1]:
        raise StateMismatch(
            f"the optimizer has groups of {sizes[0]} parameters and the stored one of {sizes[1]}; make it as it was, "
            "over the same model with the same parameters frozen"
        )
    numbers = [number for group in content["param_groups"] for number in group[_PARAMETERS]]
    parameters = dict(zip(numbers, (each for group in groups for each in group), strict=True))
    states, shared = {}, {}
    for number, state in content["state"].items():
        if number in parameters:
            name, parameter = parameters[number]
            states[name] = {key: _checked(value, parameter, f"{name}.{key}") for key, value in state.items()}
        else:
            shared[number] = to_plain(state, "optimizer.state")
    named = [
        {key: to_plain(value, key) for key, value in group.items() if key != _PARAMETERS}
        | {_PARAMETERS: [name for name, _ in own]}
        for group, own in zip(content["param_groups"], groups, strict=True)
    ]
    return Captured(OptimizerSnapshot(states, named), shared)


def _checked(value: Any, parameter: torch.Tensor, path: str) -> Any:
    if not isinstance(value, torch.Tensor):
        return to_plain(value, path)
    if path.endswith(_LIKE_PARAMETERS) and value.shape != parameter.shape:
        raise StateMismatch(
            f"{path} has shape {tuple(value.shape)} and its parameter {tuple(parameter.shape)}: the optimizer numbers "
            "its parameters in another order; make it as the one that was saved"
        )
    return to_numpy(value, path)


def _simple(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors and numbers among the states of a parameter."""
    return {
        key: own_tensor(value) if isinstance(value, np.ndarray | np.generic) else value
        for key, value in state.items()
        if isinstance(value, np.ndarray | np.generic | int | float)
    }


def _keep_types(
    kept: dict[str, Any], state: Mapping[str, Any], simple: Mapping[str, Any], parameter: torch.Tensor
) -> None:
    # load_state_dict turns states into the type of their parameter: float32 moments of a bfloat16 parameter would
    # lose the bits that they are kept for. And what is iterable it makes anew from a generator, text among it.
    for key, value in state.items():
        if key not in simple:
            kept[key] = from_plain(value, parameter.device)
        elif isinstance(simple[key], torch.Tensor) and kept[key].dtype != simple[key].dtype:
            kept[key] = simple[key].to(kept[key].device)


def _pair_groups(present: Sequence[Sequence[str]], stored: Sequence[Sequence[str]]) -> list[int]:
    """For each group of the optimizer the stored one with the same parameters, whatever their order."""
    if len(present) == len(stored) and all(
        set(left) == set(right) for left, right in zip(present, stored, strict=True)
    ):
        return list(range(len(present)))
    by_names = {frozenset(group): index for index, group in enumerate(stored)}
    pairs = [by_names.get(frozenset(group)) for group in present]
    if len(present) == len(stored) and None not in pairs and len(set(pairs)) == len(pairs):
        return [index for index in pairs if index is not None]
    raise StateMismatch(_difference(present, stored))


def _difference(present: Sequence[Sequence[str]], stored: Sequence[Sequence[str]]) -> str:
    here, there = ({name for group in groups for name in group} for groups in (present, stored))
    sizes = ", ".join(str(len(group)) for group in present), ", ".join(str(len(group)) for group in stored)
    if here == there:
        return (
            f"the optimizer has the checkpoint's parameters in other groups, of {sizes[0]} in the place of {sizes[1]}; "
            "make its groups as they were"
        )
    parts = [
        f"{len(names)} only {where}: {some(names)}"
        for names, where in ((there - here, "in the checkpoint"), (here - there, "in the optimizer"))
        if names
    ]
    return f"the optimizer trains other parameters than the checkpoint: {'; '.join(parts)}; make it over the same ones"
