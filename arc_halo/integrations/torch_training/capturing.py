"""The whole state of a torch training loop as a checkpoint, and back, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arc_halo.errors import CheckpointError, StateMismatch
from arc_halo.integrations.torch import to_numpy
from arc_halo.integrations.torch_training.naming import Named, Stored, name_tensors, refuse_difference, some
from arc_halo.integrations.torch_training.optimizer import OptimizerPlan, capture_optimizer
from arc_halo.integrations.torch_training.rng import capture_rng, restore_rng
from arc_halo.integrations.torch_trees import from_plain, to_plain
from arc_halo.training.checkpoint import CheckpointState

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

OURS: Final = "torch"
"""The key of a checkpoint's extra state that is written here; the others are the caller's."""


def capture_state(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
    scaler: Any = None,
    *,
    rng: bool = True,
    data_loader: Any = None,
    gradients: bool = False,
    generators: Mapping[str, torch.Generator] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> CheckpointState:
    """The state of a training loop between two steps, as `save_checkpoint` takes it.

    Arrays are over the tensors' own memory where that is contiguous and on the CPU: save them before the next step.

    Parameters
    ----------
    model
        Its parameters and persistent buffers, frozen ones among them, and which are frozen. Tied ones are stored once
        under their first name, and their other names are kept. Wrappers of data parallelism and ``torch.compile`` are
        looked through.
    optimizer
        Its states by the names of the model's parameters.
    scheduler, scaler
        Whatever has ``state_dict()``, such as a learning rate scheduler and a `torch.amp.GradScaler`.
    rng
        Also the states of ``random``, numpy and torch, on GPUs that are in use, too.
    data_loader
        A `ResumableLoader`, a ``StatefulDataLoader`` or whatever else has ``state_dict()``. A plain ``DataLoader`` has
        no position: wrap it in a `ResumableLoader` first.
    gradients
        Also gradients, for a checkpoint between two steps of accumulation.
    generators
        Random generators of the caller, by name.
    extra
        What else to keep: numbers, text, arrays, tensors, lists and dicts of such.

    Raises
    ------
    TensorError
        A tensor cannot be stored: sparse, quantised by torch, or on ``meta``.
    CheckpointError
        A state holds an object that is no plain value.
    StateMismatch
        The optimizer trains a parameter that the model does not have.

    Examples
    --------
    >>> run.save_checkpoint(capture_state(model, optimizer, scheduler), step)  # doctest: +SKIP
    """
    named = name_tensors(model)
    ours: dict[str, Any] = {"aliases": named.aliases, "frozen": named.frozen}
    if named.others:
        ours["modules"] = to_plain(named.others, "model")
    snapshot = None
    if optimizer is not None:
        snapshot, shared = capture_optimizer(optimizer, named.parameter_names)
        ours |= {"optimizer": shared} if shared else {}
    if OURS in (extra or {}):
        raise CheckpointError(f"extra has a key {OURS!r}, which is taken; choose another name")
    others = {key: to_plain(value, f"extra[{key!r}]") for key, value in (extra or {}).items()}
    return CheckpointState(
        weights={name: to_numpy(tensor, name) for name, tensor in named.tensors.items()},
        optimizer=snapshot,
        gradients=_gradients(named) if gradients else None,
        scheduler=_state_of(scheduler, "scheduler"),
        scaler=_state_of(scaler, "scaler"),
        rng=capture_rng(generators) if rng else None,
        data_loader=_state_of(data_loader, "data_loader"),
        extra={OURS: ours} | others,
    )


def restore_state(
    loaded: CheckpointState,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
    scaler: Any = None,
    *,
    rng: bool = True,
    data_loader: Any = None,
    generators: Mapping[str, torch.Generator] | None = None,
    frozen: bool = True,
    strict: bool = True,
) -> dict[str, Any]:
    """Put a checkpoint into the objects of a training loop, each bit as it was; the inverse of `capture_state`.

    Names, shapes and types are compared before anything is changed. Objects that are not given stay as they are; random
    states are set last.

    Parameters
    ----------
    frozen
        Also let parameters be frozen or trainable as they were. The optimizer is to be over the parameters that it was
        over, so make it before where some were frozen on the way.
    strict
        Refuse names, shapes, types and ties that differ. If false, what agrees in name and shape is filled and cast,
        as for a model that was changed since; this is no continuation of the run. It is about ``model`` alone.

    Returns
    -------
    dict
        The ``extra`` that was captured.

    Raises
    ------
    StateMismatch
        The checkpoint is of other parameters, or lacks a component that was asked for.
    TensorError
        An array has a type that torch does not.

    Examples
    --------
    >>> if loaded := run.load_checkpoint():  # doctest: +SKIP
    ...     restore_state(loaded, model, optimizer, scheduler)
    """
    _refuse_absent(loaded, optimizer=optimizer, scheduler=scheduler, scaler=scaler, data_loader=data_loader)
    named = name_tensors(model)
    stored = _stored(loaded, named)
    if strict:
        refuse_difference(named, stored)
    plan = None if optimizer is None else _plan(loaded, optimizer, named)
    named.fill(stored)
    if frozen:
        _freeze(loaded, named)
    if loaded.gradients is not None:
        named.set_gradients(_whole(loaded.gradients))
    if plan is not None:
        plan.apply()
    for target, state in ((scheduler, loaded.scheduler), (scaler, loaded.scaler), (data_loader, loaded.data_loader)):
        if target is not None:
            target.load_state_dict(from_plain(state))
    if rng and loaded.rng is not None:
        restore_rng(loaded.rng, generators)
    return {key: from_plain(value) for key, value in (loaded.extra or {}).items() if key != OURS}


def restore_optimizer(
    loaded: CheckpointState, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any = None
) -> None:
    """Put a checkpoint into an optimizer and its schedule, and let its parameters be frozen or trainable as they were.

    The second part of `restore_state`, with its errors, for who makes the optimizer after the weights are there.
    """
    _refuse_absent(loaded, optimizer=optimizer, scheduler=scheduler)
    named = name_tensors(model)
    _plan(loaded, optimizer, named).apply()
    _freeze(loaded, named)
    if scheduler is not None:
        scheduler.load_state_dict(from_plain(loaded.scheduler))


def _stored(loaded: CheckpointState, named: Named) -> Stored:
    ours = (loaded.extra or {}).get(OURS, {})
    return Stored.of(_whole(loaded.weights), ours.get("aliases"), ours.get("modules", {}), named)


def _plan(loaded: CheckpointState, optimizer: torch.optim.Optimizer, named: Named) -> OptimizerPlan:
    assert loaded.optimizer is not None
    shared = (loaded.extra or {}).get(OURS, {}).get("optimizer", {})
    return OptimizerPlan(optimizer, loaded.optimizer, shared, named.parameter_names)


def _freeze(loaded: CheckpointState, named: Named) -> None:
    ours = (loaded.extra or {}).get(OURS, {})
    if "frozen" in ours:
        named.freeze(ours["frozen"])


def _whole(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    parts = sorted(name for name, array in arrays.items() if not isinstance(array, np.ndarray))
    if parts:
        raise CheckpointError(f"{some(parts)} are parts of arrays; load the checkpoint, which puts them together")
    return dict(arrays)


def _state_of(source: Any, name: str) -> Any:
    if source is None:
        return None
    if not hasattr(source, "state_dict"):
        raise CheckpointError(
            f"{name} is a {type(source).__qualname__} without state_dict(); wrap a DataLoader in a ResumableLoader"
        )
    return to_plain(source.state_dict(), name)


def _gradients(named: Named) -> dict[str, np.ndarray]:
    return {
        name: to_numpy(tensor.grad, f"gradient of {name}")
        for name, tensor in named.tensors.items()
        if tensor.grad is not None
    }


def _refuse_absent(loaded: CheckpointState, **wanted: Any) -> None:
    absent = [name for name, target in wanted.items() if target is not None and getattr(loaded, name) is None]
    if absent:
        raise StateMismatch(
            f"the checkpoint has no state of {' and '.join(absent)}; leave out what shall begin anew, or load a "
            "checkpoint that was captured with it"
        )
