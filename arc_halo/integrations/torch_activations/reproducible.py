"""Whether a module gives the same again, of its weights and inputs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn.modules.batchnorm import _NormBase

from arc_halo.errors import CacheError
from arc_halo.integrations.torch_activations.capturing import Capture

if TYPE_CHECKING:
    from collections.abc import Iterator

_RATES: Final = ("drop", "layerdrop")
_ONLY_LOOK: Final = "transformers.utils.output_capturing"  # once asked for hidden states, a model keeps its hooks
_DROPOUT: Final = torch.nn.modules.dropout._DropoutNd  # noqa: SLF001  the base that all of torch's have


def check_reproducible(module: torch.nn.Module) -> None:
    """Raise `CacheError` if a part of a module draws at random, is changed by being called, or has hooks of others.

    Found are torch's dropouts, rates of others by their name (``attention_dropout``, ``drop_prob``) and norms over the
    batch. Other randomness in a ``forward`` is not seen from outside.
    """
    for name, part in module.named_modules():
        # The lists are copied: other threads put hooks of ours on the same module.
        hooks = [*list(part._forward_hooks.values()), *list(part._forward_pre_hooks.values())]  # noqa: SLF001
        if not all(isinstance(hook, Capture) or getattr(hook, "__module__", "") == _ONLY_LOOK for hook in hooks):
            raise CacheError(
                f"{name or 'the module'} has hooks, which may change what it gives: nothing of it is kept; remove them"
            )
    reason = next(_reasons(module), None)
    if reason is not None:
        raise CacheError(
            f"{reason} in training mode: its output is not the same again, and is not kept; call `module.eval()` first"
        )


def _reasons(module: torch.nn.Module) -> Iterator[str]:
    for name, part in module.named_modules():
        if not part.training:
            continue
        called = f"{name or 'the module'} ({type(part).__name__})"
        if isinstance(part, torch.nn.RReLU) or (isinstance(part, _NormBase) and part.track_running_stats):
            yield f"{called} is"
        for attribute, rate in vars(part).items():
            is_rate = (attribute == "p" and isinstance(part, _DROPOUT)) or any(word in attribute for word in _RATES)
            if is_rate and isinstance(rate, int | float) and not isinstance(rate, bool) and rate > 0:
                yield f"{called} has {attribute} {rate:g}"
