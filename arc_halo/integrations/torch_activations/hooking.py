"""Forward hooks that are there while a module computes, and the cache that spares it from computing."""

from __future__ import annotations

import functools
import inspect
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from arc_halo.errors import CacheError
from arc_halo.inference.activations.keys import check_hook_points
from arc_halo.integrations.torch import from_numpy, to_numpy
from arc_halo.integrations.torch_activations.capturing import Capture
from arc_halo.integrations.torch_activations.inputs import as_inputs, surroundings
from arc_halo.integrations.torch_activations.reproducible import check_reproducible
from arc_halo.integrations.torch_identity import identify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    import numpy as np

    from arc_halo.inference.activations import ActivationCache
    from arc_halo.integrations.torch_identity.identity import Changes

    Run = Callable[..., dict[str, torch.Tensor]]


def cached_activations(
    cache: ActivationCache, module: torch.nn.Module, hook_points: Iterable[str], *, changes: Changes = "content"
) -> CachedActivations:
    """Give outputs of submodules from a cache, and compute them, without gradients, where it has none.

    As a context manager it gives a function that is called as the module is. As a decorator it is put on a function
    that calls the module, once; the function is called only to compute, and its result is not used. Either returns
    tensors by hook point, on the device of the module.

    Parameters
    ----------
    cache
        Its namespace is that of this module: ``namespace_of(identify(module), kind="activation", layout=...)``. The
        module is identified again before anything is served or kept.
    hook_points
        Names of submodules, as ``module.named_modules()`` says them.
    changes
        As in `identify`: ``content`` reads all weights each time.

    Raises
    ------
    CacheError
        There is no submodule of that name. When called: the module is not, or no longer, what the cache's
        namespace was made of, so nothing is served and nothing kept; it cannot be identified, is in training
        mode and would draw at random, or has hooks of others, which may change what it gives; an argument
        cannot be compared with one that is stored, or a submodule gives no tensor, or was not called exactly
        once.
    TensorError
        When called: an output has a type that cannot be stored.

    Examples
    --------
    >>> with cached_activations(cache, model, ["transformer.h.5"]) as run:  # doctest: +SKIP
    ...     hidden = run(input_ids=ids)["transformer.h.5"]
    """
    return CachedActivations(cache, module, hook_points, changes=changes)


class CachedActivations:
    """Made by `cached_activations`."""

    def __init__(
        self, cache: ActivationCache, module: torch.nn.Module, hook_points: Iterable[str], *, changes: Changes
    ) -> None:
        self._cache = cache
        self._changes: Changes = changes
        self._module = module
        # To ask the module for it at each call takes a good part of what a narrow one takes to compute; the parameter
        # is the same one wherever the module is moved.
        self._any_parameter = next(module.parameters(), None)
        self._hook_points = check_hook_points(hook_points)
        named = dict(module.named_modules(remove_duplicate=False))
        if unknown := [name for name in self._hook_points if name not in named]:
            raise CacheError(f"{type(module).__name__} has no submodule {', '.join(unknown)}; see named_modules()")

    def __call__(self, function: Callable[..., Any]) -> Run:
        """Decorate a function that calls the module."""
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
            return self._get(signature, function, args, kwargs)

        return run

    def __enter__(self) -> Run:
        signature = inspect.signature(self._module.forward)
        return lambda *args, **kwargs: self._get(signature, self._module, args, kwargs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Hooks are there only while something is computed: whatever that raises, they are gone.
        return

    def _get(
        self, signature: inspect.Signature, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, torch.Tensor]:
        device = torch.device("cpu") if self._any_parameter is None else self._any_parameter.device
        arrays = self._cache.get_or_compute(
            lambda: as_inputs(signature, args, kwargs) | surroundings(device),
            self._hook_points,
            lambda: self._compute(lambda: function(*args, **kwargs)),
            check=lambda: self._check(device),
        )
        return {name: from_numpy(array, name).to(device) for name, array in arrays.items()}

    def _check(self, device: torch.device) -> None:
        """Refuse a module that does not compute what the namespace says, or not the same each time."""
        check_reproducible(self._module)
        with torch.autocast(device.type, enabled=False):  # it is part of each key
            now = identify(self._module, changes=self._changes)
        ours = self._cache.namespace
        told = (
            ("weights", ours.weights_digest, now.weights_digest),
            ("config", ours.config_digest, now.config_digest),
            ("adapter", ours.adapter_digest, now.adapter_digest),
        )
        if changed := [name for name, theirs, found in told if theirs != found]:
            raise CacheError(
                f"the module was changed since the namespace of this cache was made, or is another one "
                f"({', '.join(changed)}): make a cache with "
                'namespace_of(identify(module), kind="activation", layout=...)'
            )

    def _compute(self, call: Callable[[], Any]) -> Mapping[str, np.ndarray]:
        captured: dict[str, list[torch.Tensor]] = {name: [] for name in self._hook_points}
        with ExitStack() as hooks, torch.no_grad():
            for name in self._hook_points:
                part = self._module.get_submodule(name)
                hooks.callback(part.register_forward_hook(Capture(name, captured[name])).remove)
            call()
        for name, outputs in captured.items():
            if len(outputs) != 1:
                raise CacheError(
                    f"{name} was called {len(outputs)} times: there is not one output of it to keep; "
                    "call the module once, and hook what it uses once"
                )
        return {name: to_numpy(outputs[0], name) for name, outputs in captured.items()}
