"""What a layer keeps for its backward pass under each strategy, and what is done again: measured on the layer alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map

from arc_halo.errors import ConfigurationError
from arc_halo.integrations.torch_memory.live import LiveBytes
from arc_halo.integrations.torch_memory.planning import Cost
from arc_halo.integrations.torch_memory.strategies import STRATEGIES, find_layer, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from arc_halo.integrations.torch_memory.strategies import Strategy


@dataclass(slots=True)
class Call:
    """What a layer is given, and how often in a step."""

    layer: torch.nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    count: int = 0


def record_calls(
    model: torch.nn.Module, compute_loss: Callable[[], torch.Tensor], names: Sequence[str]
) -> dict[str, Call]:
    """What each layer is first given in a step, cut off from what came before it.

    Raises
    ------
    ConfigurationError
        There are no layers, or the step does not run through one of them.
    """
    if not names:
        raise ConfigurationError("there are no layers to measure; name at least one")
    calls = {name: Call(find_layer(model, name)) for name in names}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = calls[name]
            call.count += 1
            if call.count == 1:
                call.args, call.kwargs = tree_map(_detached, (args, kwargs))

        return hook

    handles = [call.layer.register_forward_pre_hook(note(name), with_kwargs=True) for name, call in calls.items()]
    try:
        compute_loss()
    finally:
        for handle in handles:
            handle.remove()
    if idle := [name for name, call in calls.items() if not call.count]:
        raise ConfigurationError(f"the step does not run through {idle[0]!r}; give the names of layers that it does")
    return calls


def _detached(value: Any) -> Any:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value


def measure_layers(calls: Mapping[str, Call], repeats: int) -> dict[str, dict[Strategy, Cost]]:
    """Costs by layer and strategy; gradients of parameters grow."""
    return _levelled({name: _measure(call, repeats) for name, call in calls.items()})


def _levelled(costs: Mapping[str, Mapping[Strategy, Cost]]) -> dict[str, dict[Strategy, Cost]]:
    """Layers that take the same bytes do the same work: the shortest time of any, so that noise decides nothing."""
    sizes = {name: tuple((each.kept_nbytes, each.extra_nbytes) for each in costs[name].values()) for name in costs}
    return {
        name: {
            strategy: replace(
                cost,
                recompute_seconds=max(
                    0.0, min(costs[other][strategy].recompute_seconds for other in costs if sizes[other] == sizes[name])
                ),
            )
            for strategy, cost in each.items()
        }
        for name, each in costs.items()
    }


def _measure(call: Call, repeats: int) -> dict[Strategy, Cost]:
    device = next((each.device for each in call.layer.parameters()), torch.device("cpu"))
    candidates = [each for each in STRATEGIES if each != "offload" or device.type != "cpu"]
    measured = {strategy: _measure_strategy(call, strategy, repeats) for strategy in candidates}
    given = _nbytes(each for each in tree_leaves((call.args, call.kwargs)) if _is_differentiable(each))
    return {
        strategy: Cost(
            (given + each.kept_nbytes) * call.count,
            each.extra_nbytes,
            # What is copied to the host and back is no second call of the layer.
            (each.again_seconds if strategy != "offload" else each.seconds - measured["none"].seconds) * call.count,
        )
        for strategy, each in measured.items()
    }


class _Measured(NamedTuple):
    """Bytes kept beside input and output, bytes more at the most, seconds of what is done again, and of both passes."""

    kept_nbytes: int
    extra_nbytes: int
    again_seconds: float
    seconds: float


def _measure_strategy(call: Call, strategy: Strategy, repeats: int) -> _Measured:
    clock = _Clock(call.layer.forward)
    forward = wrapped(clock, strategy)
    with LiveBytes() as live:
        outputs = _outputs(forward, call)
        kept = live.nbytes - _nbytes(outputs)
        before, live.peak_nbytes = live.nbytes, live.nbytes
        _backward(outputs)
        extra = live.peak_nbytes - before
    again, whole = [], []
    for _ in range(repeats):
        clock.seconds.clear()
        start = _now()
        _backward(_outputs(forward, call))
        whole.append(_now() - start)
        again.append(sum(clock.seconds[1:]))
    return _Measured(kept, extra, min(again), min(whole))


class _Clock:
    """A function and how long each of its calls took: the second of a checkpointed one is the recomputation."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.seconds: list[float] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = _now()
        try:
            return self._function(*args, **kwargs)
        finally:  # a recomputation is left by an exception as soon as it has what is asked for
            self.seconds.append(_now() - start)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _outputs(forward: Callable[..., Any], call: Call) -> list[torch.Tensor]:
    return [each for each in tree_leaves(forward(*call.args, **call.kwargs)) if _is_differentiable(each)]


def _backward(outputs: list[torch.Tensor]) -> None:
    torch.autograd.backward(outputs, [torch.ones_like(each) for each in outputs])


def _is_differentiable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _nbytes(tensors: Iterable[torch.Tensor]) -> int:
    storages = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}  # noqa: SLF001
    return sum(storages.values())
