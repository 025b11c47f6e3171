"""Loading a model whose tensors are deltas, beside other ways to keep models, in one run and with warm caches.

Every way holds the same versions of one model; what a load returns is compared with the file, after the clock has
stopped. tensorstore and MLflow are the extra ``benchmark``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from family import Checkpoint, open_family
from machine import describe_machine
from report import Goal, goal_table, replace_section, table
from safetensors.numpy import load_file
from server import Server

import arc_halo
from arc_halo.registry import load_model
from arc_halo.store.cache import ReadCache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from arc_halo.database import Database

BEGIN, END = "<!-- loading: begin -->", "<!-- loading: end -->"
REPEATS = 7
VERSIONS = 3
_STARTUP_SECONDS = 60


class Way(ABC):
    """Keeps the versions of a model, and loads the last one."""

    name: str

    @abstractmethod
    def save(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Store all versions."""

    @abstractmethod
    def load(self) -> Mapping[str, Any]:
        """All tensors of the last one, in memory."""


class ArcHaloDeltas(Way):
    """Ours: each version a delta of the one before, policy ``balanced``."""

    name = "Arc-Halo, deltas of depth 2"

    def __init__(self, database: Database) -> None:
        self.database = database

    def save(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Import one after another."""
        for each in checkpoints:
            self.database.transaction(
                lambda session, folder=each.path.parent: (
                    arc_halo.import_model(session, folder, name="m", embeddings=False).id
                )
            )

    def load(self) -> Mapping[str, Any]:
        """Decode every chunk and all that it leans on."""
        with self.database.session() as session:
            return load_model(session, "m", cache=False)


class ArcHaloCached(ArcHaloDeltas):
    """Ours, the second time on a machine: a map of files, none of whose pages is read."""

    name = "Arc-Halo, mapped from the read cache"

    def __init__(self, database: Database, cache: ReadCache) -> None:
        super().__init__(database)
        self.cache = cache

    def save(self, checkpoints: Sequence[Checkpoint]) -> None:
        """The versions are there; the first load fills the cache."""
        assert checkpoints
        self.load()

    def load(self) -> Mapping[str, Any]:
        """Ask the database which tensors, and map them."""
        with self.database.session() as session:
            return load_model(session, "m", cache=self.cache)


class SafetensorsFiles(Way):
    """The file itself, read into memory."""

    name = "safetensors file"

    def save(self, checkpoints: Sequence[Checkpoint]) -> None:
        """It is there."""
        self.path = checkpoints[-1].path

    def load(self) -> Mapping[str, Any]:
        """By safetensors' own reader, and every page touched."""
        return {name: array.copy() for name, array in load_file(self.path).items()}


class TensorStore(Way):
    """Zarr 3 arrays with zstd in an OCDBT database on the disk, one commit a version, as its tutorial writes them."""

    name = "tensorstore (OCDBT, zarr3, zstd)"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, checkpoints: Sequence[Checkpoint]) -> None:
        """All arrays of a version in one transaction."""
        import tensorstore  # noqa: PLC0415  an extra

        for number, checkpoint in enumerate(checkpoints):
            with tensorstore.Transaction() as transaction:
                writes = [
                    self._open(number, name, _array(dtype, raw), create=True, transaction=transaction)
                    for name, dtype, raw in _tensors(checkpoint)
                ]
                for write in writes:
                    write.result()
        self.last = len(checkpoints) - 1
        self.shapes = {name: _array(dtype, raw) for name, dtype, raw in _tensors(checkpoints[-1])}

    def _open(self, number: int, name: str, array: np.ndarray, **options: Any) -> Any:
        import tensorstore  # noqa: PLC0415

        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "ocdbt", "base": f"file://{self.folder}/", "path": f"{number}/{name}/"},
            "metadata": {
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}],
            },
        }
        opened = tensorstore.open(spec, dtype=array.dtype.name, shape=array.shape, **options).result()
        return opened.write(array)

    def load(self) -> Mapping[str, Any]:
        """Open and read all arrays at once, as its threads like it."""
        import tensorstore  # noqa: PLC0415

        opening = {
            name: tensorstore.open(
                {
                    "driver": "zarr3",
                    "kvstore": {"driver": "ocdbt", "base": f"file://{self.folder}/", "path": f"{self.last}/{name}/"},
                },
                read=True,
            )
            for name in self.shapes
        }
        reading = {name: each.result().read() for name, each in opening.items()}
        return {name: each.result() for name, each in reading.items()}


class MlflowArtifacts(Way):
    """The file as an artifact behind MLflow's tracking server on this machine, downloaded and read."""

    name = "MLflow artifact download"

    def __init__(self, folder: Path, resources: ExitStack) -> None:
        import mlflow  # noqa: PLC0415  an extra

        folder.mkdir()
        port = _free_port()
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        log = resources.enter_context((folder / "log").open("wb"))
        server = subprocess.Popen(command, stdout=log, stderr=log)
        resources.callback(server.wait)
        resources.callback(server.terminate)
        self._mlflow, self.folder = mlflow, folder
        self.address = f"http://127.0.0.1:{port}"
        _wait(f"{self.address}/health")

    def save(self, checkpoints: Sequence[Checkpoint]) -> None:
        """A run with each version's file."""
        self._mlflow.set_tracking_uri(self.address)
        with self._mlflow.start_run() as run:
            for number, each in enumerate(checkpoints):
                self._mlflow.log_artifact(str(each.path), str(number))
        self.uri = f"runs:/{run.info.run_id}/{len(checkpoints) - 1}/model.safetensors"

    def load(self) -> Mapping[str, Any]:
        """Download, then read."""
        self._mlflow.set_tracking_uri(self.address)
        target = tempfile.mkdtemp(dir=self.folder)
        path = self._mlflow.artifacts.download_artifacts(artifact_uri=self.uri, dst_path=target)
        arrays = {name: array.copy() for name, array in load_file(path).items()}
        shutil.rmtree(target)
        return arrays


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def _wait(address: str) -> None:
    until = time.monotonic() + _STARTUP_SECONDS
    while True:
        try:
            urllib.request.urlopen(address, timeout=1).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


def _tensors(checkpoint: Checkpoint) -> list[tuple[str, Any, bytes]]:
    return list(checkpoint.tensors())


def _array(dtype: Any, raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, dtype.numpy)


@dataclass(frozen=True)
class Measured:
    """Seconds of each load; None where the way is not installed."""

    precision: str
    way: str
    nbytes: int
    seconds: list[float] | None

    @property
    def rate(self) -> float | None:
        """Median MB/s."""
        return None if self.seconds is None else self.nbytes / median(self.seconds) / 1e6


def run(
    checkpoints: Mapping[str, Sequence[Checkpoint]], folder: Path, resources: ExitStack, *, repeats: int
) -> tuple[dict[str, str], list[Measured]]:
    """Load in turns, so that none has the quiet minute."""
    server = Server(folder / "home", resources)
    measured = []
    for precision, versions in checkpoints.items():
        database = resources.enter_context(closing(arc_halo.connect(server.create(f"loading_{precision.lower()}"))))
        cache = ReadCache(folder / f"cache-{precision}", 1 << 40)
        ways: list[Way] = [ArcHaloDeltas(database), ArcHaloCached(database, cache), SafetensorsFiles()]
        missing = [name for name in ("tensorstore", "mlflow") if find_spec(name) is None]
        if "tensorstore" not in missing:
            ways.append(TensorStore(folder / f"ocdbt-{precision}"))
        if "mlflow" not in missing:
            ways.append(MlflowArtifacts(folder / f"mlflow-{precision}", resources))
        for way in ways:
            way.save(versions)
        server.vacuum()
        seconds = _in_turns(ways, versions[-1], repeats)
        nbytes = versions[-1].nbytes
        measured += [Measured(precision, way.name, nbytes, seconds[way.name]) for way in ways]
        absent = {"tensorstore": TensorStore.name, "mlflow": MlflowArtifacts.name}
        measured += [Measured(precision, absent[name], nbytes, None) for name in missing]
    return describe_machine(server.connection, folder), measured


def _in_turns(ways: Sequence[Way], last: Checkpoint, repeats: int) -> dict[str, list[float]]:
    expected = {name: raw for name, _, raw in last.tensors()}
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for turn in range(repeats):
        for way in (*ways[turn % len(ways) :], *ways[: turn % len(ways)]):
            began = time.perf_counter()
            arrays = way.load()
            seconds[way.name].append(time.perf_counter() - began)
            assert arrays.keys() == expected.keys()
            assert all(np.asarray(arrays[name]).tobytes() == raw for name, raw in expected.items()), way.name
    return seconds


def goals(measured: Sequence[Measured]) -> list[Goal]:
    """What a load of deltas is held to."""
    reached = []
    for precision in dict.fromkeys(each.precision for each in measured):
        rates = {each.way: each.rate for each in measured if each.precision == precision}
        ours = rates[ArcHaloDeltas.name]
        assert ours is not None
        reached.append(Goal(f"{precision}: deltas of depth 2: at least 250 MB/s", f"{ours:.0f}", ours >= 250))
        for peer, least in ((TensorStore.name, 1), (MlflowArtifacts.name, 3)):
            theirs = rates[peer]
            ratio = None if theirs is None else ours / theirs
            found = "not installed" if ratio is None else f"{ratio:.2f}"
            aim = f"{precision}: at least {least} times as fast as {peer}"
            reached.append(Goal(aim, found, ratio is not None and ratio >= least))
    return reached


def to_markdown(machine: Mapping[str, str], measured: Sequence[Measured], reached: Sequence[Goal]) -> str:
    """Everything as tables."""
    rows = [(each.precision, each.way, *_cells(each)) for each in measured]
    return "\n".join(
        [
            table(["", ""], machine.items()),
            table(["model", "way", "ms", "MB/s"], rows),
            "### Goals\n",
            goal_table(reached),
        ]
    )


def _cells(each: Measured) -> tuple[str, str]:
    if each.seconds is None or each.rate is None:
        return "not installed", ""
    return f"{median(each.seconds) * 1e3:.1f}", f"{each.rate:.0f}"


def main() -> None:
    """Run, print, and leave nothing behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, help="what make_family.py made; by default it is made now, by torch")
    parser.add_argument("--size", choices=("tiny", "full"), default="full", help="tiny: synthetic, to see that it runs")
    parser.add_argument("--json", action="store_true", help="every number as JSON, not tables")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the results in this Markdown file")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="arc-halo-benchmark-"))
    tiny = options.size == "tiny"
    try:
        with ExitStack() as resources:
            family = open_family(options.family, folder / "made", tiny=tiny)
            versions = {precision: each[:VERSIONS] for precision, each in family.models.items()}
            machine, measured = run(versions, folder, resources, repeats=2 if tiny else REPEATS)
    finally:
        shutil.rmtree(folder)
    reached = goals(measured)
    if options.json:
        print(
            json.dumps(
                {"measured": [asdict(each) for each in measured], "goals": [asdict(g) for g in reached]}, indent=2
            )
        )
    else:
        print(to_markdown(machine, measured, reached))
    if options.write:
        replace_section(options.write, to_markdown(machine, measured, reached), BEGIN, END)


if __name__ == "__main__":
    main()
