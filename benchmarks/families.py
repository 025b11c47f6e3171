"""Families of models: what six checkpoints of one run take, beside other ways to store them, and how fast they load.

Every way is given the same files. Sizes of ours are those of the tables with their indexes; speeds of codecs are CPU
time of one thread, and "MB/s of a core" raw bytes over the CPU time of the whole process, the server's not counted.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from command import command_line, publish, scratch
from family import Checkpoint, Family, open_family
from family_peers import bitx, codec_speeds, content_defined_chunks, files, zstd_files
from family_report import BEGIN, END, FILES, Loaded, Results, Stored, goals, to_markdown
from machine import describe_machine
from server import Server
from sqlalchemy import text

import arc_halo
from arc_halo.formats.safetensors import SafetensorsFile
from arc_halo.store import FileSource, put_tensors

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self

    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.database import Database
    from arc_halo.store import TensorSource

POLICIES: tuple[PolicyName, ...] = ("fast", "balanced", "dense")
PEERS: dict[str, Callable[[Sequence[Checkpoint]], int]] = {
    FILES: files,
    "zstd -3 of the files": zstd_files,
    "content-defined chunks, LZ4": content_defined_chunks,
    "BitX": bitx,
}
LOADS = 5
_SIZES = text("""
SELECT (SELECT sum(pg_total_relation_size(format('arc_halo.%I', name)))::bigint
          FROM unnest(ARRAY['tensor_data', 'tensor_metadata', 'tensor_chunks']) AS name),
       (SELECT coalesce(sum(stored_nbytes), 0)::bigint FROM arc_halo.tensor_data)
""")
_DEPTH = text("""
SELECT max(d.depth) FROM arc_halo.models AS m JOIN arc_halo.model_weights AS w ON w.model_id = m.id
  JOIN arc_halo.tensor_chunks AS c ON c.tensor_id = w.tensor_id
  JOIN arc_halo.tensor_data AS d ON d.tenant_id = c.tenant_id AND d.digest = c.digest
 WHERE m.name = 'family' AND m.version = :version
""")


def run(family: Family, folder: Path, resources: ExitStack) -> Results:
    """Measure everything on a new server."""
    server = Server(folder / "home", resources)
    stored, loaded = [], []
    families = {**family.models, "Adam state": family.adam}
    for what, checkpoints in families.items():
        stored += [_peer(what, name, peer, checkpoints) for name, peer in PEERS.items()]
        for policy in POLICIES:
            url = server.create(f"{policy}_{what.lower().replace(' ', '_')}")
            with closing(arc_halo.connect(url)) as database:
                is_model = what in family.models
                save = _save_models if is_model else _save_states
                stored.append(_ours(what, policy, database, server, checkpoints, save=save))
                if is_model:
                    loaded += _load(what, policy, database, checkpoints)
    speeds = {what: codec_speeds(*checkpoints[:2]) for what, checkpoints in family.models.items()}
    return Results(family.origin, describe_machine(server.connection, folder), stored, loaded, speeds)


def _peer(what: str, name: str, peer: Callable[[Sequence[Checkpoint]], int], checkpoints: list[Checkpoint]) -> Stored:
    first = peer(checkpoints[:1])
    with _Clock() as clock:
        nbytes = peer(checkpoints)
    return Stored(what, name, files(checkpoints), nbytes, nbytes, first, clock.seconds, clock.cpu_seconds)


class _Clock:
    """Seconds of a block, of the wall and of this process's CPU."""

    def __enter__(self) -> Self:
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began[0]
        self.cpu_seconds = time.process_time() - self._began[1]


def _ours(
    what: str,
    policy: PolicyName,
    database: Database,
    server: Server,
    checkpoints: list[Checkpoint],
    *,
    save: Callable[[Database, PolicyName, Sequence[Checkpoint]], Iterator[None]],
) -> Stored:
    before = _sizes(database)
    with _Clock() as clock:
        first, *_ = [_sizes(database)[1] for _ in save(database, policy, checkpoints)]
    server.vacuum()
    nbytes, payload_nbytes = (after - was for after, was in zip(_sizes(database), before, strict=True))
    way = f"Arc-Halo {policy}"
    return Stored(what, way, files(checkpoints), nbytes, payload_nbytes, first, clock.seconds, clock.cpu_seconds)


def _save_models(database: Database, policy: PolicyName, checkpoints: Sequence[Checkpoint]) -> Iterator[None]:
    """Yields after each."""
    for each in checkpoints:
        yield database.transaction(partial(_save_model, policy=policy, folder=each.path.parent))


def _save_model(session: Session, policy: PolicyName, folder: Path) -> None:
    arc_halo.import_model(session, folder, name="family", compression=policy, embeddings=False)


def _save_states(database: Database, policy: PolicyName, checkpoints: Sequence[Checkpoint]) -> Iterator[None]:
    """The optimizer's tensors, each on that of the same name in the checkpoint before; yields after each."""
    before: dict[str, uuid.UUID] = {}
    for each in checkpoints:
        before = database.transaction(partial(_save_state, policy=policy, path=each.path, before=before))
        yield


def _save_state(
    session: Session, policy: PolicyName, path: Path, before: Mapping[str, uuid.UUID]
) -> dict[str, uuid.UUID]:
    def choose(missing: Sequence[TensorSource]) -> dict[str, uuid.UUID]:
        return {source.name: before[source.name] for source in missing if source.name in before}

    with SafetensorsFile(path) as file:
        sources = [FileSource(file, entry) for entry in file.tensors.values()]
        ids = put_tensors(session, sources, compression=policy, choose_bases=choose)
        return dict(zip(file.tensors, ids, strict=True))


def _sizes(database: Database) -> tuple[int, int]:
    with database.session() as session:
        row = session.execute(_SIZES).one()
    return row[0], row[1]


def _load(what: str, policy: PolicyName, database: Database, checkpoints: list[Checkpoint]) -> list[Loaded]:
    loaded = []
    with database.session() as session:
        for version, checkpoint in enumerate(checkpoints, 1):
            expected = {name: raw for name, _, raw in checkpoint.tensors()}
            clocks = []
            for _ in range(LOADS):
                with _Clock() as clock:
                    arrays = dict(arc_halo.iter_tensors(session, f"family@{version}"))
                clocks.append(clock)
            assert arrays.keys() == expected.keys()
            assert all(arrays[name].tobytes() == raw for name, raw in expected.items())
            depth = session.scalar(_DEPTH, {"version": str(version)}) or 0
            seconds, cpu_seconds = (
                median(each) for each in ([c.seconds for c in clocks], [c.cpu_seconds for c in clocks])
            )
            loaded.append(Loaded(what, policy, depth, checkpoint.nbytes, seconds, cpu_seconds))
    return loaded


def main() -> None:
    """Run, print, and leave nothing behind."""
    parser = command_line(__doc__)
    parser.add_argument("--family", type=Path, help="what make_family.py made; by default it is made now, by torch")
    options = parser.parse_args()
    with scratch() as (folder, resources):
        family = open_family(options.family, folder / "made", tiny=options.size == "tiny")
        results = run(family, folder, resources)
    reached = goals(results)
    publish(options, asdict(results), reached, to_markdown(results, reached), (BEGIN, END))


if __name__ == "__main__":
    main()
