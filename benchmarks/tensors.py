"""Bytes of models into a database and out of it, beside other ways, in one run on one server.

Every store takes the same models from the same warm files, one store after another, in an order that moves on with
each model; a checkpoint before each measurement lets none pay for another's writes. What a load returned is compared
with the file once the clock has stopped.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from command import command_line, publish, scratch
from machine import describe_machine
from memory import measure_memory
from models import EMBEDDING, PRECISIONS, StoredModel, make_models
from report import Measured, Results, Slices, goals, to_markdown
from server import Server
from sqlalchemy import text
from stores import ArcHalo, BinaryBytea, LargeObjects, NaiveBytea, RawCopy, SafetensorsFiles, Store

import arc_halo
from arc_halo.codecs.policy import POLICIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SLICES, TINY_SLICES = 200, 20
SLICE_ROWS = 10
_VISITED = """
SELECT seq_tup_read + coalesce(idx_tup_fetch, 0)
  FROM pg_stat_xact_user_tables WHERE relid = 'arc_halo.tensor_data'::regclass
"""


def run(folder: Path, resources: ExitStack, *, model_count: int, tiny: bool) -> Results:
    """Measure everything on a new server."""
    server = Server(folder / "home", resources)
    machine = describe_machine(server.connection, folder)
    memory = measure_memory(server.create("memory").render_as_string(hide_password=False), folder, tiny=tiny)
    models, origin = make_models(folder / "models", model_count, tiny=tiny)
    stores = _stores(server, folder, resources)
    measured = [each for precision in PRECISIONS for each in _measure(server, stores, models[precision], precision)]
    count = TINY_SLICES if tiny else SLICES
    slices = [_measure_slices(store, models["F32"], count) for store in stores if isinstance(store, ArcHalo)]
    return Results(origin, model_count, machine, measured, slices, memory)


def _stores(server: Server, folder: Path, resources: ExitStack) -> list[Store]:
    server.create("peers")
    peers = server.connect("peers")
    stores: list[Store] = [NaiveBytea(peers), BinaryBytea(peers), RawCopy(peers), LargeObjects(peers)]
    stores.append(SafetensorsFiles(folder / "files"))
    for policy in POLICIES:
        database = arc_halo.connect(server.create(f"policy_{policy}"))
        stores.append(ArcHalo(resources.enter_context(closing(database)), policy))
    return stores


def _measure(server: Server, stores: Sequence[Store], models: Sequence[StoredModel], precision: str) -> list[Measured]:
    def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        server.checkpoint()
        started = time.perf_counter()
        result = work()
        return time.perf_counter() - started, result

    def save(store: Store, model: StoredModel) -> float:
        return timed(lambda: store.save(model))[0]

    def load(store: Store, model: StoredModel) -> float:
        seconds, loaded = timed(lambda: store.load(model))
        model.check(loaded)
        return seconds

    def save_again(store: Store, model: StoredModel) -> float:
        assert isinstance(store, ArcHalo)
        return timed(lambda: store.save(model, version="again"))[0]

    ours = [store for store in stores if isinstance(store, ArcHalo)]
    before = {store.name: store.stored_nbytes() for store in stores}
    saved = _take_turns([store for store in stores if store.saves], models, save)
    server.vacuum()
    after = {store.name: store.stored_nbytes() for store in stores}
    loaded = _take_turns(stores, models, load)
    again = _take_turns(ours, models, save_again)
    for store in ours:
        stored, placed = store.chunk_counts()
        assert stored == placed, f"{store.name}: {placed - stored} chunks were shared; the models must differ in each"
    return [
        Measured(
            store=store.name,
            precision=precision,
            model_nbytes=models[0].nbytes,
            saved_seconds=saved.get(store.name, []),
            loaded_seconds=loaded[store.name],
            again_seconds=again.get(store.name, []),
            stored_nbytes=after[store.name][0] - before[store.name][0],
            payload_nbytes=after[store.name][1] - before[store.name][1],
        )
        for store in stores
    ]


def _take_turns(
    stores: Sequence[Store], models: Sequence[StoredModel], measure: Callable[[Store, StoredModel], float]
) -> dict[str, list[float]]:
    """Seconds of each store for each model; another store begins with each model."""
    seconds: dict[str, list[float]] = {store.name: [] for store in stores}
    for turn, model in enumerate(models):
        first = turn % len(stores)
        for store in (*stores[first:], *stores[:first]):
            seconds[store.name].append(measure(store, model))
    return seconds


def _measure_slices(store: ArcHalo, models: Sequence[StoredModel], count: int) -> Slices:
    """Ten rows of an embedding matrix, anywhere; the server itself says how many chunks it looked at."""
    choose = random.Random(0)
    seconds, chunks = [], []
    with store.database.session() as session:
        for _ in range(count):
            model = choose.choice(models)
            first = choose.randrange(model.entries[EMBEDDING].shape[0] - SLICE_ROWS)
            visited = session.scalar(text(_VISITED)) or 0
            started = time.perf_counter()
            arc_halo.read_tensor(session, f"{model.name}@1", EMBEDDING, slice(first, first + SLICE_ROWS))
            seconds.append(time.perf_counter() - started)
            chunks.append((session.scalar(text(_VISITED)) or 0) - visited)
    return Slices(store.name, median(seconds), max(chunks))


def main() -> None:
    """Run, print, and leave nothing behind."""
    parser = command_line(__doc__, "a few MB, to see that it runs")
    parser.add_argument("--models", type=int, default=6, help="how many; each is one measurement of each store")
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder: the disk to measure")
    options = parser.parse_args()
    with scratch(options.folder) as (folder, resources):
        results = run(folder, resources, model_count=options.models, tiny=options.size == "tiny")
    reached = goals(results)
    publish(options, asdict(results), reached, to_markdown(results, reached))


if __name__ == "__main__":
    main()
