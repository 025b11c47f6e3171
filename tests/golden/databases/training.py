"""Runs as training leaves them: forked, straight, of two ranks, and one that nobody ended."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter, OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ml_dtypes import bfloat16
from sqlalchemy import select

from arc_halo import create_model, find_model
from arc_halo.schema import GradientCheckpoint, ModelCheckpoint, TrainingAttempt, TrainingRank
from arc_halo.training import (
    OptimizerSnapshot,
    Part,
    begin_checkpoint,
    find_run,
    index_curves,
    publish_as_model,
    record_points,
    save_checkpoint,
    seal_points,
    training_run,
    verify_reproducibility,
    write_rank,
)
from tests.fixtures.tensors import NUMPY_DTYPES, random_array, trained, weights
from tests.golden.databases.digests import of_curve, of_state
from tests.schema import rows
from tests.training.states import adam, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.training import CheckpointState, TrainingRun

    Begin = Callable[..., contextlib.AbstractContextManager[TrainingRun]]

MODEL = "student"
FROZEN = "embed.weight"
ARRAYS = {
    FROZEN: weights((48, 32), 1),
    "layers.0.mlp.weight": weights((32, 64), 2, bfloat16),
    "layers.0.mlp.bias": weights((64,), 3),
    "layers.0.norm.scale": weights((), 4),
}
TRAINED = [name for name in ARRAYS if name != FROZEN]
GOALS = {"loss": "minimize", "accuracy": "maximize"}
FORKED, STRAIGHT, RANKS, LEFT = (f"{MODEL}/{name}" for name in ("forked", "straight", "ranks", "left"))

STEPS, FORK, LOST = 300, 149, 180
"""A run has so many; it is forked after one, when its first attempt had logged so many."""
LATE = 155
"""A step that counts in the line of the first attempt only, and is written again after it was sealed."""
SAVES: dict[str, dict[int, list[tuple[int, str]]]] = {
    FORKED: {
        1: [(99, "weights"), (FORK, "full"), (FORK, "optimizer")],
        2: [(199, "full"), (249, "optimizer"), (299, "full")],
    },
    STRAIGHT: {1: [(FORK, "full"), (299, "full")]},
}
COMPRESSION = {"full": "balanced", "weights": "dense", "optimizer": "fast"}
KEPT = {
    "full": ("weights", "gradients", "optimizer", "scheduler", "scaler", "rng", "data_loader", "extra"),
    "weights": ("weights", "extra"),
    "optimizer": ("optimizer", "scheduler", "scaler", "rng", "data_loader", "extra"),
}
WORLD, RANKS_STEPS = 2, 20
LONG, LEFT_AT = range(0, 10_000, 2), 98
"""Steps of a series of two segments, and the last that was saved of its run."""

STRANGE = (math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308)
EXTRA = {
    "kinds": {np.dtype(each).name: random_array(each, (5, 60)) for each in NUMPY_DTYPES},
    "small": np.arange(3, dtype=np.int16),
    "ordered": OrderedDict([("z", 1), ("a", 2)]),
    "counted": Counter("abca"),
    "keys": {1: "one", None: (2, [3, {}]), ("a", 2.5): b"\0\xff", "$": "tag"},
    "texts": ["ä\0", "\ud800", ""],
    "numbers": [*STRANGE, 1e16, 2**63, 2**2000, True, None, np.float32(0.1), bfloat16(1.5)],
}
# As it is captured, but not of the machine that happens to write this.
PROVENANCE = {
    "code": {"commit": "c" * 40, "is_clean": False, "diff": "-a\n+b\n", "diff_nbytes": 6, "untracked_count": 0},
    "environment": {"python": "CPython 3.11.9", "packages": ["numpy==2.3.5"], "variables": {}},
    "hardware": {"machine": "x86_64", "cores": 2, "memory_nbytes": 1 << 33, "accelerators": []},
    "seeds": {"seed": 7, "PYTHONHASHSEED": None},
    "config": {"lr": 0.05},
    "dataset_digest": rows.digest("data").hex(),
}


class Point(NamedTuple):
    """What is logged of one metric at a step; ``epoch`` is NaN where none is given."""

    name: str
    value: float
    epoch: float = math.nan
    scope: str = "train"
    context: Mapping[str, Any] | None = None

    @property
    def metric(self) -> str:
        """What it is called outside."""
        return f"{self.scope}/{self.name}" + (f" {json.dumps(self.context)}" if self.context else "")


def fill(database: Database, folder: Path) -> None:
    """Train as programs do, then look after the runs."""
    database.transaction(lambda session: create_model(session, MODEL, {"model_type": "llama"}, ARRAYS))

    def begin(run: str, **options: Any) -> contextlib.AbstractContextManager[TrainingRun]:
        usual = {"model": MODEL, "name": run.split("/")[1], "spool_folder": folder / "spool", "capture": False}
        return training_run(database, **usual | {"goals": GOALS} | options)

    _train_forked(begin)
    with begin(STRAIGHT) as run:
        _train(run, STEPS, SAVES[STRAIGHT][1])
    _train_on_ranks(begin)
    database.transaction(_leave)
    database.transaction(_look_after)


def expected() -> dict[str, Any]:
    """What must come back: of each line its curves, of each checkpoint its state, and what follows from them."""
    gradients = {name: text for name, text in of_state(state_at(LEFT_AT)).items() if name.startswith("gradients ")}
    return {
        "lines": [
            {"run": FORKED, "curves": curves({1: range(FORK + 1), 2: range(FORK + 1, STEPS)})},
            {"run": FORKED, "attempt": 1, "curves": curves({1: range(LOST)}, is_lost=True)},
            {"run": STRAIGHT, "curves": curves({1: range(STEPS)})},
            {"run": RANKS, "curves": curves_of_ranks()},
            {"run": LEFT, "curves": {"train/loss": of_curve(long_curve())}},
        ],
        "checkpoints": [
            *(
                expected_checkpoint(run, number, *save)
                for run in SAVES
                for number in SAVES[run]
                for save in SAVES[run][number]
            ),
            {"run": RANKS, "attempt": 1, "step": RANKS_STEPS - 1, "type": "full"}
            | {"states": [of_state(state_of(rank)) for rank in range(WORLD)]},
            expected_checkpoint(LEFT, 1, LEFT_AT, "full"),
        ],
        "gradients": {"model": f"{MODEL}@1", "states": gradients},
        "left": {"run": LEFT, "first_step": LEFT_AT + 1},
        "similar": [FORKED, STRAIGHT],
        "reproduced": {"runs": [FORKED, STRAIGHT], "attempts": [2, 1], "level": "L2"},
    }


def expected_checkpoint(run: str, attempt: int, step: int, kind: str) -> dict[str, Any]:
    states = [{name: text for name, text in of_state(state_at(step)).items() if name.split()[0] in KEPT[kind]}]
    return {"run": run, "attempt": attempt, "step": step, "type": kind, "states": states}


def curves(attempts: Mapping[int, Iterable[int]], *, is_lost: bool = False) -> dict[str, Any]:
    """The curves of a line that takes these steps of its attempts."""
    columns: dict[str, list[tuple[Any, ...]]] = {}
    for number, steps in attempts.items():
        for step in steps:
            for point in logged(step, is_lost=is_lost):
                value = 9.5 if is_lost and step == LATE and point.name == "loss" else point.value
                columns.setdefault(point.metric, []).append((step, value, point.epoch, number))
    return {metric: of_curve(as_columns(points)) for metric, points in columns.items()}


def curves_of_ranks() -> dict[str, Any]:
    names = ("train/loss", *(f'train/loss {{"rank": {rank}}}' for rank in range(1, WORLD)))
    steps = range(RANKS_STEPS)
    return {
        name: of_curve(as_columns([(step, step + rank, math.nan, 1) for step in steps]))
        for rank, name in enumerate(names)
    }


def long_curve() -> dict[str, np.ndarray]:
    return as_columns([(step, step % 14 / 8, math.nan, 1) for step in LONG])


def as_columns(points: Sequence[tuple[Any, ...]]) -> dict[str, np.ndarray]:
    names = ("step", "value", "epoch", "attempt_number")
    return {name: np.array(column) for name, column in zip(names, zip(*points, strict=True), strict=True)}


def logged(step: int, *, is_lost: bool = False) -> Iterator[Point]:
    """What an attempt logs at a step; one that is lost differs behind the fork."""
    epoch = step / 50
    loss = {70: math.nan, 71: math.inf}.get(step, 2 / (1 + step / 40) + 0.1 * math.sin(step))
    yield Point("loss", loss + 1 if is_lost and step > FORK else loss, epoch)
    yield Point("lr", 0.05 * (1 - step / STEPS), epoch)
    yield Point("grad_norm", (*STRANGE, step / 3)[step % 7])
    yield Point("grad_norm", math.nan, context={"layer": 0})
    yield Point("grad_norm", step / 7, context={"kind": "mlp", "layer": 1})
    if step % 10 == 9:
        yield Point("accuracy", step / STEPS, epoch, scope="validation")
        yield Point("memory", float(1 << 30) + step, scope="system")


def state_at(step: int) -> CheckpointState:
    """The state after a step: weights near to those of the model, one of them the model's own."""
    arrays = {name: array if name == FROZEN else _near(array, step) for name, array in ARRAYS.items()}
    optimizer = adam({name: arrays[name] for name in TRAINED}, step, step)
    states = {name: dict(each) for name, each in optimizer.states.items()}
    states[TRAINED[0]]["window"] = {"kept": [step, None], "ends": (1, 2)}  # neither an array nor a number
    gradients = {name: np.asarray(arrays[name] * 2) for name in TRAINED}
    taken = {"weights": arrays, "optimizer": OptimizerSnapshot(states, optimizer.groups), "gradients": gradients}
    return state(step, {}, step, extra=EXTRA, **taken)


def _near(array: np.ndarray, step: int) -> np.ndarray:
    return np.asarray(trained(array, step / 100), array.dtype)


def state_of(rank: int) -> CheckpointState:
    """The whole state, with what is one rank's own."""
    own = state(1000 + rank, {})
    return replace(state_at(RANKS_STEPS - 1), rng=own.rng, data_loader=own.data_loader)


def part_of(rank: int) -> CheckpointState:
    """What a rank holds: of matrices some rows, of all else everything."""
    whole = state_of(rank)
    assert whole.optimizer is not None
    states = {name: _cut(each, rank) for name, each in whole.optimizer.states.items()}
    return replace(
        whole,
        weights=_cut(whole.weights, rank),
        gradients=_cut(whole.gradients or {}, rank),
        optimizer=OptimizerSnapshot(states, whole.optimizer.groups),
    )


def _cut(arrays: Mapping[str, Any], rank: int) -> dict[str, Any]:
    return {name: _rows_of(array, rank) if np.ndim(array) == 2 else array for name, array in arrays.items()}


def _rows_of(array: np.ndarray, rank: int) -> Part:
    count = len(array) // WORLD
    return Part(array[rank * count : (rank + 1) * count], (rank * count, 0), array.shape)


def _train_forked(begin: Begin) -> None:
    asked = {"dataset": "words", "dataset_digest": rows.digest("data"), "seed": 7, "trainable": TRAINED}
    config = {"lr": 0.05, "optimizer": {"name": "adamw", "betas": (0.9, 0.999)}, "clip": math.inf}
    planned = {"total_steps": STEPS, "total_epochs": STEPS / 50}
    with contextlib.suppress(RuntimeError), begin(FORKED, config=config, **asked, **planned) as run:
        _train(run, LOST, SAVES[FORKED][1], is_lost=True)
        raise RuntimeError("what may happen")
    with begin(FORKED) as run:
        _train(run, STEPS, SAVES[FORKED][2])


def _train(run: TrainingRun, stop: int, saves: Sequence[tuple[int, str]], *, is_lost: bool = False) -> None:
    for step in range(run.first_step, stop):
        for point in logged(step, is_lost=is_lost):
            epoch = None if math.isnan(point.epoch) else point.epoch
            run.log({point.name: point.value}, step, epoch=epoch, scope=point.scope, context=point.context)
        for kind in (kind for at, kind in saves if at == step):
            options: dict[str, Any] = {"checkpoint_type": kind, "compression": COMPRESSION[kind]}
            options["wait"] = kind != "optimizer"  # one kind in the background, from a copy
            run.save_checkpoint(state_at(step), step, epoch=step / 50, **options)


def _train_on_ranks(begin: Begin) -> None:
    with (
        begin(RANKS, world_size=WORLD) as first,
        begin(RANKS, rank=1, world_size=WORLD, attempt_id=first.attempt_id) as second,
    ):
        for step in range(RANKS_STEPS):
            for run in (first, second):
                run.log({"loss": step + run.rank}, step)
        second.flush()
        step = RANKS_STEPS - 1
        pending = first.db.transaction(lambda session: begin_checkpoint(session, first.attempt_id, step, WORLD).id)
        for run in (first, second):
            part = part_of(run.rank)
            run.db.transaction(lambda session, rank=run.rank, part=part: write_rank(session, pending, rank, part))
        first.publish_checkpoint(pending)


def _leave(session: Session) -> None:
    """A run whose processes were killed while they saved: of two ranks one had written."""
    run = rows.add_run(session, find_model(session, MODEL), "left", status="running", current_step=LONG[-1])
    attempt = rows.add_attempt(session, run, 1)
    session.add_all(TrainingRank(attempt=attempt, rank=rank, world_size=WORLD) for rank in range(WORLD))
    points = long_curve()
    record_points(session, attempt.id, "loss", points["step"], points["value"], recorded_at=rows.NOON)
    save_checkpoint(session, attempt, state_at(LEFT_AT), LEFT_AT, metrics={"loss": math.nan})
    pending = begin_checkpoint(session, attempt, LEFT_AT + 2, WORLD)
    write_rank(session, pending, 0, part_of(0))


def _look_after(session: Session) -> None:
    forked, straight, ranks, left = (find_run(session, run) for run in (FORKED, STRAIGHT, RANKS, LEFT))
    seal_points(session, forked, keep_points=20)
    seal_points(session, left, keep_points=10)
    record_points(session, forked.attempts[0].id, "loss", [LATE], [9.5], epochs=[LATE / 50])
    verify_reproducibility(session, forked.attempts[1], straight.attempts[0])
    index_curves(session, [forked, straight, left])
    publish_as_model(session, ranks, version="trained")
    session.scalars(select(ModelCheckpoint).where(ModelCheckpoint.checkpoint_type == "weights")).one().is_pinned = True
    measured = {"activation_nbytes": 1 << 20, "kept_nbytes": 1 << 10, "peak_memory_nbytes": 1 << 21}
    chosen = {"strategy": "selective", "recompute_seconds": 0.25, "measured_at": rows.NOON}
    layers = forked.model.layers
    session.add_all(GradientCheckpoint(training_session=forked, layer=each, **chosen, **measured) for each in layers)
    for run in (forked, straight, ranks):
        for attempt in run.attempts:
            _take_elsewhere(attempt)


def _take_elsewhere(attempt: TrainingAttempt) -> None:
    """Let it have run on another machine than that which writes this."""
    attempt.host, attempt.pid, attempt.boot_id, attempt.process_started_at = "trainer", 42, "boot", rows.NOON
    attempt.code_digest, attempt.environment_digest = rows.digest("code"), rows.digest("environment")
    attempt.provenance = attempt.provenance | PROVENANCE
    attempt.error = attempt.error and attempt.error.partition(" (")[0]
    for rank in attempt.ranks:
        rank.host, rank.pid = "trainer", 42 + rank.rank
