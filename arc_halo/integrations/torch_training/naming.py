"""What of a module is its state, by name, and how that differs from a checkpoint's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from arc_halo.errors import StateMismatch
from arc_halo.integrations.torch import from_numpy
from arc_halo.integrations.torch_trees import from_plain, own_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    import numpy as np

_SHOWN: Final = 3
_ADVICE: Final = "make the module as it was when the checkpoint was saved, or say strict=False to fill what agrees"


@dataclass(frozen=True, slots=True)
class Named:
    """The tensors of a module under the names of its ``state_dict``.

    Attributes
    ----------
    tensors
        Parameters and persistent buffers themselves; what is tied once, under its first name.
    aliases
        First name by each further name.
    frozen
        Names of parameters without a gradient.
    others
        What modules keep that is no tensor, by name.
    parameter_names
        Name by the ``id`` of each parameter.
    """

    module: torch.nn.Module
    tensors: dict[str, torch.Tensor]
    aliases: dict[str, str]
    frozen: list[str]
    others: dict[str, Any]
    parameter_names: dict[int, str]

    def fill(self, stored: Stored) -> None:
        """Copy what is stored into the module's own memory, where names and shapes agree."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                value = stored.tensors.get(stored.aliases.get(name, name))
                if value is not None and value.shape == tensor.shape:
                    tensor.copy_(value)
        for name, other in stored.others.items():
            if name in self.others:
                self.module.get_submodule(name.rpartition(".")[0]).set_extra_state(from_plain(other))

    def freeze(self, frozen: Collection[str]) -> None:
        """Let parameters be trainable but these; names of others count for nothing."""
        for name, tensor in self.tensors.items():
            if id(tensor) in self.parameter_names and (tensor.is_floating_point() or tensor.is_complex()):
                tensor.requires_grad_(name not in frozen)

    def set_gradients(self, values: Mapping[str, np.ndarray]) -> None:
        """Set gradients, and clear those of parameters that had none."""
        for name, tensor in self.tensors.items():
            if id(tensor) in self.parameter_names:
                tensor.grad = own_tensor(values[name], tensor.device) if name in values else None


@dataclass(frozen=True, slots=True)
class Stored:
    """What a checkpoint has for a module: tensors, first names of their further names, and what is no tensor."""

    tensors: dict[str, torch.Tensor]
    aliases: dict[str, str]
    others: dict[str, Any]

    @classmethod
    def of(
        cls,
        weights: Mapping[str, np.ndarray],
        aliases: Mapping[str, str] | None,
        others: Mapping[str, Any],
        named: Named,
    ) -> Stored:
        """Without ``aliases`` the checkpoint does not know what was tied, and the module's word counts."""
        tensors = {name: from_numpy(array, name) for name, array in weights.items()}
        if aliases is None:
            tensors = {named.aliases.get(name, name): tensor for name, tensor in tensors.items()}
            aliases = named.aliases
        return cls(tensors, dict(aliases), dict(others))


def name_tensors(model: torch.nn.Module) -> Named:
    """The state of a module, seen through what wraps it for data parallelism or compiles it."""
    module = unwrapped(model)
    state = module.state_dict(keep_vars=True)
    tensors: dict[str, torch.Tensor] = {}
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or name.rpartition(".")[2] == "_extra_state":
            continue
        if first.setdefault(id(value), name) == name:
            tensors[name] = value
        else:
            aliases[name] = first[id(value)]
    parameters = {id(each): first[id(each)] for each in module.parameters() if id(each) in first}
    frozen = [name for name, each in tensors.items() if id(each) in parameters and not each.requires_grad]
    others = {name: value for name, value in state.items() if name not in tensors and name not in aliases}
    return Named(module, tensors, aliases, frozen, others, parameters)


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The module inside of what wraps it for data parallelism or compiles it."""
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
            model = model.module
        elif isinstance(original := getattr(model, "_orig_mod", None), torch.nn.Module):
            model = original
        else:
            return model


def refuse_difference(named: Named, stored: Stored) -> None:
    """Compare a module with what is to be put into it.

    Raises
    ------
    StateMismatch
        Names, shapes, types or ties differ; the message counts them, shows some, and says what they have in common.
    """
    here = named.tensors.keys() | named.aliases.keys() | named.others.keys()
    there = stored.tensors.keys() | stored.aliases.keys() | stored.others.keys()
    found = [
        *_absent(there - here, "in the checkpoint and not in the module"),
        *_absent(here - there, "in the module and not in the checkpoint"),
    ]
    if found:
        raise StateMismatch(f"{'; '.join(found)}; {_prefix_advice(here, there)}")
    found = list(_differing(named, stored))
    if found:
        raise StateMismatch(f"the checkpoint is of another module: {'; '.join(found)}; {_ADVICE}")


def _absent(names: set[str], what: str) -> Iterator[str]:
    if names:
        yield f"{len(names)} {'name is' if len(names) == 1 else 'names are'} {what}: {some(names)}"


def some(names: Collection[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(map(repr, sorted(names)[:_SHOWN]))
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _prefix_advice(here: set[str], there: set[str]) -> str:
    for longer, shorter, inner, outer in (
        (there, here, "module", "checkpoint's names"),
        (here, there, "checkpoint's module", "module's names"),
    ):
        prefix = _common_prefix(longer, shorter)
        if prefix:
            return f"the {outer} begin with {prefix!r}: give the part of the model that is the {inner}"
    return _ADVICE


def _common_prefix(longer: set[str], shorter: set[str]) -> str:
    """What stands before each of the shorter names in the longer ones, if that is one and the same."""
    ends = min(shorter, key=len, default="")
    for name in longer:
        prefix = name.removesuffix(ends)
        if prefix and prefix != name and {prefix + each for each in shorter} == longer:
            return prefix
    return ""


def _differing(named: Named, stored: Stored) -> Iterator[str]:
    if named.aliases != stored.aliases:
        yield f"ties differ: {_ties(stored.aliases)} there, {_ties(named.aliases)} here"
    questions: tuple[tuple[str, Callable[[torch.Tensor], Any]], ...] = (
        ("shape", lambda tensor: tuple(tensor.shape)),
        ("type", lambda tensor: str(tensor.dtype).removeprefix("torch.")),
    )
    for what, answer in questions:
        pairs = {
            name: (answer(stored.tensors[name]), answer(tensor))
            for name, tensor in named.tensors.items()
            if name in stored.tensors
        }
        differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        if differing:
            name = min(differing)
            there, here = differing[name]
            yield f"{len(differing)} of another {what}: {name!r} is {there} there, {here} here"


def _ties(aliases: Mapping[str, str]) -> str:
    return ", ".join(f"{alias!r} = {name!r}" for alias, name in sorted(aliases.items())[:_SHOWN]) or "none"
