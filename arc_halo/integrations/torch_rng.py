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
