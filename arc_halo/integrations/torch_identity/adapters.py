"""PEFT models as a base and an adapter."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from arc_halo.integrations.torch_identity.contents import Held

_INNER = "base_layer."


def split_adapters(module: torch.nn.Module, held: Held) -> tuple[dict[str, str], list[str]]:
    """The names of a base's weights, with those they have in the module, and the names of what an adapter added.

    A module that is no ``peft.PeftModel`` is a base as a whole: what was put into it is part of its weights.
    """
    if not _is_peft(module):
        return {name: name for name in held.weights}, []
    prefix = _base_prefix(module)
    base, adapter = {}, []
    for name in held.weights:
        own = name.removeprefix(prefix)
        if own == name or _is_added(module, name):
            adapter.append(name)
        else:
            base[own.replace(_INNER, "")] = name
    return base, adapter


def _is_peft(module: torch.nn.Module) -> bool:
    # Whoever has a PeftModel has imported peft; nobody else has to have it.
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(module, peft.PeftModel)


def _base_prefix(module: torch.nn.Module) -> str:
    peft: Any = module  # typed where it is installed
    base = peft.get_base_model()
    return next(f"{path}." for path, part in module.named_modules() if part is base)


def _is_added(module: torch.nn.Module, name: str) -> bool:
    """Whether a weight lies in a layer of PEFT's, and not in the layer that this one wraps."""
    path, inside = "", name.split(".")
    for depth in range(1, len(inside)):
        path = ".".join(inside[:depth])
        part = module.get_submodule(path)
        if type(part).__module__.startswith("peft.tuners.") and hasattr(part, "base_layer"):
            return inside[depth] != "base_layer"
    return False
