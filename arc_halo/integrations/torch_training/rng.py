"""The state of every source of random numbers that a training step may draw from."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from arc_halo.errors import StateMismatch
from arc_halo.integrations.torch_trees import own_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping


def capture_rng(generators: Mapping[str, torch.Generator] | None = None, *, cuda: bool = True) -> dict[str, Any]:
    """States of ``random``, of numpy's global generator, of torch on the CPU and, if it is in use, on each GPU.

    Parameters
    ----------
    generators
        The caller's own, by names that `restore_rng` is to be given again.
    """
    gpus: Any = torch.cuda
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": {"version": version, "words": np.array(words, np.uint32), "gauss": gauss},
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002  (the global one is what others draw from)
        "torch": torch.get_rng_state().numpy(),
    }
    if cuda and gpus.is_available() and gpus.is_initialized():
        state["cuda"] = [each.cpu().numpy() for each in gpus.get_rng_state_all()]
    if generators:
        state["generators"] = {name: each.get_state().cpu().numpy() for name, each in generators.items()}
    return state


def restore_rng(state: Mapping[str, Any], generators: Mapping[str, torch.Generator] | None = None) -> None:
    """Set what `capture_rng` read; GPUs that are not here are left out.

    Raises
    ------
    StateMismatch
        A generator that was given has no state in it.
    """
    stored = state.get("generators", {})
    if missing := sorted((generators or {}).keys() - stored.keys()):
        raise StateMismatch(
            f"the checkpoint has no state of the generators {', '.join(map(repr, missing))}, but of "
            f"{', '.join(map(repr, sorted(stored))) or 'none'}; give them to capture_state under the same names"
        )
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(own_tensor(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        for index, each in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(own_tensor(each), index)
    for name, generator in (generators or {}).items():
        generator.set_state(own_tensor(stored[name]))


def to_legacy(state: Mapping[str, Any], *, is_distributed: bool = False) -> dict[str, Any]:
    """The same state as transformers' Trainer keeps it: tuples of Python and numpy, and tensors.

    Parameters
    ----------
    is_distributed
        Of several processes: then all GPUs have a state there, and else the one in use.
    """
    python, of_numpy = state["python"], state["numpy"]
    legacy = {
        "python": (python["version"], tuple(python["words"].tolist()), python["gauss"]),
        "numpy": (
            of_numpy["bit_generator"],
            of_numpy["state"]["key"],
            of_numpy["state"]["pos"],
            of_numpy["has_gauss"],
            of_numpy["gauss"],
        ),
        "cpu": own_tensor(state["torch"]),
    }
    gpus = [own_tensor(each) for each in state.get("cuda", [])]
    return legacy | ({"cuda": gpus if is_distributed else gpus[0]} if gpus else {})


def from_legacy(legacy: Mapping[str, Any]) -> dict[str, Any]:
    """A state that the Trainer kept, as `restore_rng` takes it."""
    version, words, gauss = legacy["python"]
    name, key, position, has_gauss, gauss_of_numpy = legacy["numpy"]
    state: dict[str, Any] = {
        "python": {"version": version, "words": np.array(words, np.uint32), "gauss": gauss},
        "numpy": {
            "bit_generator": name,
            "state": {"key": key, "pos": position},
            "has_gauss": has_gauss,
            "gauss": gauss_of_numpy,
        },
        "torch": legacy["cpu"].numpy(),
    }
    if "cuda" in legacy:
        gpus = legacy["cuda"] if isinstance(legacy["cuda"], list) else [legacy["cuda"]]
        state["cuda"] = [each.numpy() for each in gpus]
    return state
