"""How layers keep activations for the backward pass: all, none, what is dear to compute, or in the host's memory."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Strategy: TypeAlias = Literal["none", "full", "selective", "offload"]
STRATEGIES: Final[tuple[Strategy, ...]] = ("none", "selective", "full", "offload")
# What `selective` keeps: products of matrices and attention, which take nearly all of the time of a transformer.
_KEPT_OPERATORS: Final = (
    "mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
)  # fmt: skip


@contextmanager
def strategies_applied(model: torch.nn.Module, strategies: Mapping[str, Strategy]) -> Iterator[None]:
    """Let layers keep their activations so for as long as the context lasts.

    Results and gradients are the same bit for bit, dropout included. A layer that counts its calls, as batch
    normalisation does by its running means, is called twice and counts so.

    Parameters
    ----------
    strategies
        By the names of modules, such as ``model.layers.3``; others stay as they are.

    Raises
    ------
    ConfigurationError
        There is no such module or strategy.
    """
    layers = {name: find_layer(model, name) for name in strategies}
    before = {name: vars(layer).get("forward") for name, layer in layers.items()}
    try:
        for name, strategy in strategies.items():
            vars(layers[name])["forward"] = wrapped(layers[name].forward, strategy)
        yield
    finally:
        for name, layer in layers.items():
            vars(layer).pop("forward")
            if before[name] is not None:
                vars(layer)["forward"] = before[name]


def wrapped(forward: Callable[..., Any], strategy: Strategy) -> Callable[..., Any]:
    """The forward pass under a strategy.

    Raises
    ------
    ConfigurationError
        There is no such strategy.
    """
    match strategy:
        case "none":
            return forward
        case "full":
            return functools.partial(checkpoint, forward, use_reentrant=False)
        case "selective":
            kept = [getattr(torch.ops.aten, name).default for name in _KEPT_OPERATORS if hasattr(torch.ops.aten, name)]
            contexts = functools.partial(create_selective_checkpoint_contexts, kept)
            return functools.partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)
        case "offload":
            return functools.partial(_offloaded, forward)
    raise ConfigurationError(f"no strategy {strategy!r}; there are {', '.join(STRATEGIES)}")


def find_layer(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """A module by its name.

    Raises
    ------
    ConfigurationError
        There is none.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ConfigurationError(
            f"the model has no module {name!r}; it has {', '.join(dict(model.named_children()))}"
        ) from None


def _offloaded(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
        return forward(*args, **kwargs)
