"""The hook that takes a submodule's output."""

from __future__ import annotations

import threading
from typing import Any

import torch

from arc_halo.errors import CacheError


class Capture:
    """Takes what its own thread computes: another may be calling the same module with other inputs.

    Parameters
    ----------
    outputs
        Gets a copy of the output, or of the first of several, at each call.
    """

    def __init__(self, name: str, outputs: list[torch.Tensor]) -> None:
        self._name = name
        self._outputs = outputs
        self._thread = threading.get_ident()

    def __call__(self, _module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        """Called by torch after the submodule's forward."""
        if threading.get_ident() != self._thread:
            return
        first = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(first, torch.Tensor):
            raise CacheError(
                f"{self._name} gives a {type(first).__name__}, no tensor; hook a submodule of it that gives one"
            )
        self._outputs.append(first.detach().clone())  # what comes next may write into it
