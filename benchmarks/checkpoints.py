"""Checkpoints of a run: what each takes, how long saving and loading last, and how long training waits for a save.

States are saved by `TrainingRun.save_checkpoint` into a new database. Sizes are those of all tables of the schema with
their indexes; the first checkpoint is counted with the model it starts from, the others by what the database grew.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zstandard
from checkpoint_report import BEGIN, END, Results, Saved, Stall, goals, to_markdown
from checkpoint_series import Series, load_arrays, open_series
from command import command_line, publish, scratch
from family import Checkpoint
from family_peers import bitx
from machine import describe_machine
from server import Server
from sqlalchemy import text

import arc_halo
from arc_halo.training import load_checkpoint, training_run
from arc_halo.training.checkpoint import CheckpointState

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.database import Database

POLICIES: tuple[PolicyName, ...] = ("fast", "balanced", "dense")
STALL_NBYTES = {"tiny": 8 << 20, "full": 1 << 29}
STALLS = {"tiny": 2, "full": 7}
_ARRAYS = 64
_SIZE = text("""
SELECT sum(pg_total_relation_size(c.oid))::bigint
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = 'arc_halo' AND c.relkind IN ('r', 'm')
""")


def run(every: list[Series], size: str, folder: Path, resources: ExitStack) -> Results:
    """Measure everything on a new server."""
    server = Server(folder / "home", resources)
    saved = []
    for number, series in enumerate(every):
        saved += [_files(series, way, measure) for way, measure in PEERS.items()]
        for policy in POLICIES:
            url = server.create(f"{policy}_{number}")
            with closing(arc_halo.connect(url)) as database:
                saved.append(_ours(database, server, series, policy))
    with closing(arc_halo.connect(server.create("stall"))) as database:
        stall = _stall(database, STALL_NBYTES[size], STALLS[size])
    return Results(describe_machine(server.connection, folder), saved, stall)


def _plain(files: list[list[Path]]) -> list[int]:
    return [sum(path.stat().st_size for path in paths) for paths in files]


def _zstd(files: list[list[Path]]) -> list[int]:
    compress = zstandard.ZstdCompressor(3).compress
    return [sum(len(compress(path.read_bytes())) for path in paths) for paths in files]


def _bitx(files: list[list[Path]]) -> list[int]:
    """Each file against the one that stands at its place in the checkpoint before."""
    ends = []
    for count in range(1, len(files) + 1):
        columns: dict[str, list[Checkpoint]] = {}
        for paths in files[:count]:
            for path in paths:
                columns.setdefault(path.parent.name if path.stem.isdigit() else _kind(path), []).append(
                    Checkpoint(path)
                )
        ends.append(sum(bitx(column) for column in columns.values()))
    return [end - before for end, before in zip(ends, [0, *ends], strict=False)]


def _kind(path: Path) -> str:
    return "".join(each for each in path.stem if not each.isdigit())


PEERS: dict[str, Callable[[list[list[Path]]], list[int]]] = {
    "safetensors files": _plain,
    "zstd -3 of the files": _zstd,
    "BitX": _bitx,
}


def _files(series: Series, way: str, measure: Callable[[list[list[Path]]], list[int]]) -> Saved:
    sizes = measure([series.files(number) for number in range(len(series.weights))])
    return Saved(series.name, way, sizes, [], [], 0)


def _ours(database: Database, server: Server, series: Series, policy: PolicyName) -> Saved:
    before = _size(database)
    arrays = load_arrays(series.start)
    database.transaction(partial(_create, config=dict(series.config), arrays=arrays, policy=policy))
    sizes, seconds = [], []
    with training_run(database, model="model", name=policy, capture=False) as training:
        for step, state in series.states():
            began = time.perf_counter()
            training.save_checkpoint(state, step, compression=policy)
            seconds.append(time.perf_counter() - began)
            server.vacuum()
            sizes.append(_size(database) - before - sum(sizes))
    loads, nbytes = _load(database, series)
    return Saved(series.name, f"Arc-Halo {policy}", sizes, seconds, loads, nbytes)


def _create(session: Session, config: dict[str, object], arrays: dict[str, np.ndarray], policy: PolicyName) -> None:
    arc_halo.create_model(session, "model", config, arrays, compression=policy)


def _load(database: Database, series: Series) -> tuple[list[float], int]:
    """Load the last checkpoint a few times, and compare it with what was saved."""
    *_, (_, expected) = series.states()
    seconds = []
    with database.session() as session:
        for _ in range(3):
            began = time.perf_counter()
            loaded = load_checkpoint(session, "model")
            seconds.append(time.perf_counter() - began)
    assert loaded.weights.keys() == expected.weights.keys()
    assert all(np.array_equal(loaded.weights[name], array) for name, array in expected.weights.items())
    return seconds, sum(array.nbytes for array in expected.weights.values())


def _stall(database: Database, nbytes: int, repeats: int) -> Stall:
    """How long the loop waits when a save goes on in the background, and how long copying the state takes."""
    random = np.random.default_rng(5)
    weights = {f"w{n}": random.standard_normal(nbytes // _ARRAYS // 4, np.float32) for n in range(_ARRAYS)}
    database.transaction(lambda session: arc_halo.create_model(session, "model", {}, {"w": np.zeros(1, np.float32)}))
    copies, stalls = [], []
    spare = {name: np.empty_like(array) for name, array in weights.items()}
    with training_run(database, model="model", name="stall", capture=False) as training:
        for step in range(1, repeats + 1):
            began = time.perf_counter()
            for name, array in weights.items():
                np.copyto(spare[name], array)
            copies.append(time.perf_counter() - began)
            state = CheckpointState(weights=weights)
            began = time.perf_counter()
            saving = training.save_checkpoint(state, step, compression="fast", wait=False)
            stalls.append(time.perf_counter() - began)
            kept = weights["w0"].copy()
            weights["w0"] += np.float32(1)  # as training does while the copy is stored
            saving.result()
    with database.session() as session:
        assert np.array_equal(load_checkpoint(session, "model", names=["w0"]).weights["w0"], kept)
    return Stall(nbytes, copies, stalls)


def _size(database: Database) -> int:
    with database.session() as session:
        return int(session.scalar(_SIZE) or 0)


def main() -> None:
    """Run, print, and leave nothing behind."""
    parser = command_line(__doc__)
    parser.add_argument("--family", type=Path, help="what make_family.py and make_lora.py made; by default made now")
    options = parser.parse_args()
    with scratch() as (folder, resources):
        every = open_series(options.family, folder / "made", tiny=options.size == "tiny")
        results = run(every, options.size, folder, resources)
    reached = goals(results)
    publish(options, asdict(results), reached, to_markdown(results, reached), (BEGIN, END))


if __name__ == "__main__":
    main()
