"""Checkpoints as the folders that transformers' own Trainer writes and resumes from, out of the database and in."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from arc_halo.dtypes import of_array
from arc_halo.errors import ModelFolderError
from arc_halo.formats.folder import read_parsed
from arc_halo.formats.hf import open_model
from arc_halo.formats.safetensors_header import aligned_order, build_header
from arc_halo.formats.strict_json import parse_object
from arc_halo.integrations.torch_training.capturing import OURS
from arc_halo.integrations.torch_training.files import read_torch_file
from arc_halo.integrations.torch_training.naming import Stored, name_tensors, refuse_difference
from arc_halo.integrations.torch_training.optimizer import name_states, number_states
from arc_halo.integrations.torch_training.rng import from_legacy, to_legacy
from arc_halo.integrations.torch_trees import from_plain, to_plain
from arc_halo.integrations.transformers_state import TRAINER, read_log_history, split_logs, trainer_state
from arc_halo.registry.exporting import export_side_files
from arc_halo.registry.writing import replacing
from arc_halo.schema import TrainingSession
from arc_halo.training.checkpoint import CheckpointState
from arc_halo.training.loading import load_checkpoint
from arc_halo.training.points import record_points
from arc_halo.training.saving import save_checkpoint

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.schema import ModelCheckpoint, TrainingAttempt
    from arc_halo.training.finding import CheckpointReference

WEIGHTS: Final = "model.safetensors"
OPTIMIZER: Final = "optimizer.pt"
SCHEDULER: Final = "scheduler.pt"
SCALER: Final = "scaler.pt"
RNG: Final = "rng_state.pth"
STATE: Final = "trainer_state.json"


def export_checkpoint(session: Session, checkpoint: CheckpointReference, folder: str | os.PathLike[str]) -> list[Path]:
    """Write a checkpoint as a folder that a stock ``Trainer.train(resume_from_checkpoint=folder)`` goes on from.

    With the config and the tokenizer of the run's model it is one for ``from_pretrained``, too. ``trainer_state.json``,
    without which no Trainer takes it, is written last. ``training_args.bin``, which is a pickle of a class and which no
    Trainer reads, is left out.

    Parameters
    ----------
    checkpoint
        As in `load_checkpoint`.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    CheckpointNotFound, ModelNotFound
        There is none.
    CorruptionError
        Stored bytes are not those that were written.
    FileNotWritten
        There is no space for a file, or no right to write it.

    Examples
    --------
    >>> export_checkpoint(session, run.resumed_from, "output/checkpoint-100")  # doctest: +SKIP
    """
    target = Path(folder)
    loaded = load_checkpoint(session, checkpoint)
    run = session.get_one(TrainingSession, loaded.training_session_id)
    written = export_side_files(session, run.model_id, target)
    written.append(_write_weights(target / WEIGHTS, loaded.weights))
    contents: dict[str, Any] = {
        OPTIMIZER: None if loaded.optimizer is None else number_states(loaded.optimizer, _shared(loaded)),
        SCHEDULER: from_plain(loaded.scheduler),
        SCALER: from_plain(loaded.scaler),
    }
    for rank in range(loaded.world_size):
        own = loaded if not rank else load_checkpoint(session, loaded.checkpoint_id, components=["rng"], rank=rank)
        name = RNG if loaded.world_size == 1 else RNG.replace(".", f"_{rank}.")
        contents[name] = None if own.rng is None else to_legacy(own.rng, is_distributed=loaded.world_size > 1)
    for name, content in contents.items():
        if content is not None:
            with replacing(target / name) as file:
                torch.save(content, file)
            written.append(target / name)
    state = trainer_state(loaded, read_log_history(session, loaded.attempt_id, loaded.step))
    with replacing(target / STATE) as file:
        file.write(json.dumps(state, indent=2, sort_keys=True).encode() + b"\n")
    return [*written, target / STATE]


def import_checkpoint(
    session: Session,
    attempt: TrainingAttempt | uuid.UUID,
    folder: str | os.PathLike[str],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    compression: PolicyName = "balanced",
) -> ModelCheckpoint:
    """Save a folder that a stock Trainer wrote as a checkpoint of an attempt, and its log as the attempt's metrics.

    Weights are read as any safetensors file is; the other files by `read_torch_file`, which unpickles nothing but
    tensors and plain values.

    Parameters
    ----------
    attempt
        One that runs. The next attempt of its run resumes from the folder's step.
    model, optimizer
        As the Trainer makes them (``trainer.create_optimizer()``): the folder numbers the optimizer's parameters, and
        these say what they are called. Without an optimizer the checkpoint holds the weights alone.

    Raises
    ------
    ModelFolderError, SafetensorsError
        It is no such folder, or weights or ``trainer_state.json`` are not what they should be.
    PickleRefused
        One of the other files holds more than tensors and plain values.
    StateMismatch
        The folder is of another model, or of another optimizer.
    CheckpointExists, AttemptLost
        As in `save_checkpoint`.
    """
    source = Path(folder)
    if not (source / STATE).is_file():
        raise ModelFolderError(f"{source} has no {STATE}: it is no checkpoint of a Trainer, or an unfinished one")
    content = parse_object(read_parsed(source, STATE), STATE)
    step, epoch, logs = content["global_step"], content.get("epoch"), content.pop("log_history", [])
    named = name_tensors(model)
    weights = {named.aliases.get(name, name): array for name, array in _read_weights(source).items()}
    refuse_difference(named, Stored.of(weights, None, {}, named))
    state = CheckpointState(
        weights={name: weights[name] for name in named.tensors},
        extra={OURS: {"aliases": named.aliases, "frozen": named.frozen}, TRAINER: {"state": content}},
    )
    if optimizer is not None:
        _read_training(source, state, optimizer, named.parameter_names)
    attempt_id = attempt if isinstance(attempt, uuid.UUID) else attempt.id
    for (name, scope), points in _points(logs).items():
        record_points(session, attempt_id, name, *points[:2], scope=scope, epochs=points[2])
    return save_checkpoint(
        session,
        attempt,
        state,
        step,
        epoch=epoch,
        checkpoint_type="weights" if optimizer is None else "full",
        is_best=content.get("best_global_step") == step,
        compression=compression,
    )


def _shared(loaded: CheckpointState) -> dict[Any, Any]:
    shared: dict[Any, Any] = (loaded.extra or {}).get(OURS, {}).get("optimizer", {})
    return shared


def _write_weights(path: Path, weights: Mapping[str, np.ndarray]) -> Path:
    order = aligned_order((name, of_array(array), array.shape) for name, array in weights.items())
    with replacing(path) as file:
        file.write(build_header(order, {"format": "pt"}))  # transformers asks for the key
        for name, _, _ in order:
            file.write(np.ascontiguousarray(weights[name]).reshape(-1).view(np.uint8).data)
    return path


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    with open_model(folder) as opened:
        arrays = {}
        for file in opened.weights.values():
            for entry in file.in_data_order():
                raw = np.empty(entry.nbytes, np.uint8)
                file.read_into(entry, 0, raw.data)
                arrays[entry.name] = entry.dtype.as_array(raw, entry.shape)
    return arrays


def _read_training(
    folder: Path, state: CheckpointState, optimizer: torch.optim.Optimizer, names: Mapping[int, str]
) -> None:
    """Fill what a state has beside the weights."""
    contents = {
        name: read_torch_file(folder / name)
        for name in (OPTIMIZER, SCHEDULER, SCALER, RNG)
        if (folder / name).is_file()
    }
    if OPTIMIZER not in contents:
        raise ModelFolderError(f"{folder} has no {OPTIMIZER}; leave the optimizer out to import the weights alone")
    try:
        state.optimizer, shared = name_states(contents[OPTIMIZER], optimizer, names)
        state.extra[OURS] |= {"optimizer": shared} if shared else {}
        state.scheduler = to_plain(contents.get(SCHEDULER), "scheduler")
        state.scaler = to_plain(contents.get(SCALER), "scaler")
        state.rng = from_legacy(contents[RNG]) if RNG in contents else None
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ModelFolderError(
            f"{folder}: {OPTIMIZER}, {SCHEDULER} or {RNG} is not as a Trainer writes it: {error!r}; take a sound copy"
        ) from error


def _points(logs: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[list[int], list[float], list[float]]]:
    """Steps, values and epochs by name and scope."""
    points: dict[tuple[str, str], tuple[list[int], list[float], list[float]]] = {}
    for entry in logs:
        for scope, metrics in split_logs({name: _number(value) for name, value in entry.items()}):
            for name, value in metrics.items():
                steps, values, epochs = points.setdefault((name, scope), ([], [], []))
                steps.append(entry["step"])
                values.append(value)
                epochs.append(entry.get("epoch", np.nan))
    return points


def _number(value: Any) -> Any:
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value
