"""Ways to keep the versions of a model and to load the last one: ours, files, tensorstore and MLflow."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file

import arc_halo
from arc_halo.registry import load_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    import numpy as np
    from family import Checkpoint
    from sqlalchemy.orm import Session

    from arc_halo.codecs.policy import PolicyName
    from arc_halo.database import Database
    from arc_halo.store.cache import ReadCache

_STARTUP_SECONDS = 60


class Way(ABC):
    """Keeps the versions of a model, and loads the last one."""

    name: str

    @abstractmethod
    def save(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Store all versions."""

    @abstractmethod
    def load(self) -> Mapping[str, np.ndarray]:
        """All tensors of the last one."""


class ArcHaloDeltas(Way):
    """Ours: each version a delta, under ``balanced`` of the one before, under ``fast`` of the first."""

    def __init__(self, database: Database, policy: PolicyName, name: str) -> None:
        self.database = database
        self.policy = policy
        self.name = name

    def save(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Import one after another."""
        for each in checkpoints:
            self.database.transaction(partial(self._save_one, folder=each.path.parent))

    def _save_one(self, session: Session, folder: Path) -> None:
        arc_halo.import_model(session, folder, name="m", compression=self.policy, embeddings=False)

    def load(self) -> Mapping[str, np.ndarray]:
        """Decode every chunk and all that it leans on; every digest is checked."""
        with self.database.session() as session:
            return load_model(session, "m", cache=False)


class ArcHaloMapped(Way):
    """Ours, the second time on a machine: maps of files, of which no page is read yet."""

    name = "Arc-Halo, mapped from the read cache"

    def __init__(self, database: Database, cache: ReadCache) -> None:
        self.database = database
        self.cache = cache

    def save(self, checkpoints: Sequence[Checkpoint]) -> None:  # noqa: ARG002  `ArcHaloDeltas` stored them
        """The first load fills the cache."""
        self.load()

    def load(self) -> Mapping[str, np.ndarray]:
        """Ask the database which tensors, and map them."""
        with self.database.session() as session:
            return load_model(session, "m", cache=self.cache)


class ArcHaloCopied(ArcHaloMapped):
    """The maps read into memory: what a file that is read takes, too."""

    name = "Arc-Halo, from the read cache into memory"

    def load(self) -> Mapping[str, np.ndarray]:
        """Copy each map."""
        return {name: array.copy() for name, array in super().load().items()}


class SafetensorsFiles(Way):
    """The file itself: nothing decoded, nothing checked."""

    name = "safetensors file into memory"

    def save(self, checkpoints: Sequence[Checkpoint]) -> None:
        """It is there."""
        self.path = checkpoints[-1].path

    def load(self) -> Mapping[str, np.ndarray]:
        """By safetensors' own reader, which reads all of it."""
        loaded: dict[str, np.ndarray] = load_file(self.path)
        return loaded


class TensorStore(Way):
    """Zarr 3 arrays through zstd in an OCDBT database on the disk, opened and read at once as its tutorial does.

    Chunks, level and concurrency are its defaults. A cache for the nodes of the database, chunks of 1 MiB and batches
    were tried: none takes less CPU time.
    """

    name = "tensorstore (OCDBT, zarr3, zstd)"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, checkpoints: Sequence[Checkpoint]) -> None:
        """All arrays of a version in one transaction."""
        import tensorstore  # noqa: PLC0415  an extra

        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}]
        for number, checkpoint in enumerate(checkpoints):
            arrays = load_file(checkpoint.path)
            with tensorstore.Transaction() as transaction:
                opening = {
                    name: tensorstore.open(
                        {**self._spec(number, name), "metadata": {"codecs": codecs}},
                        dtype=array.dtype.name,
                        shape=array.shape,
                        create=True,
                        transaction=transaction,
                    )
                    for name, array in arrays.items()
                }
                writing = [each.result().write(arrays[name]) for name, each in opening.items()]
                for each in writing:
                    each.result()
        self.last, self.names = len(checkpoints) - 1, list(arrays)

    def _spec(self, number: int, name: str) -> dict[str, Any]:
        store = {"driver": "ocdbt", "base": f"file://{self.folder}/", "path": f"{number}/{name}/"}
        return {"driver": "zarr3", "kvstore": store}

    def load(self) -> Mapping[str, np.ndarray]:
        """Everything is asked for before anything is waited for."""
        import tensorstore  # noqa: PLC0415

        opening = {name: tensorstore.open(self._spec(self.last, name), read=True) for name in self.names}
        reading = {name: each.result().read() for name, each in opening.items()}
        return {name: each.result() for name, each in reading.items()}


class MlflowArtifacts(Way):
    """The file as an artifact behind MLflow's tracking server on this machine, downloaded and read."""

    name = "MLflow artifact download"

    def __init__(self, server: MlflowServer) -> None:
        self.server = server

    def save(self, checkpoints: Sequence[Checkpoint]) -> None:
        """A run with each version's file."""
        import mlflow  # noqa: PLC0415  an extra

        mlflow.set_tracking_uri(self.server.address)
        with mlflow.start_run() as run:
            for number, each in enumerate(checkpoints):
                mlflow.log_artifact(str(each.path), str(number))
        self.uri = f"runs:/{run.info.run_id}/{len(checkpoints) - 1}/{checkpoints[-1].path.name}"

    def load(self) -> Mapping[str, np.ndarray]:
        """Download, then read; the copy on the disk goes again."""
        import mlflow  # noqa: PLC0415

        target = tempfile.mkdtemp(dir=self.server.folder)
        loaded: dict[str, np.ndarray] = load_file(
            mlflow.artifacts.download_artifacts(artifact_uri=self.uri, dst_path=target)
        )
        shutil.rmtree(target)
        return loaded


class MlflowServer:
    """A tracking server on loopback that hands artifacts on, as it does by default.

    One worker in the place of its four: there is one client, and on two cores the others were in its way.
    """

    def __init__(self, folder: Path, resources: ExitStack) -> None:
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
        os.environ.update(quiet)
        folder.mkdir()
        self.folder = folder
        port = _free_port()
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        log = resources.enter_context((folder / "log").open("wb"))
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        resources.callback(server.wait)
        resources.callback(server.terminate)
        self.address = f"http://127.0.0.1:{port}"
        _wait(f"{self.address}/health", server)


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _STARTUP_SECONDS
    while True:
        try:
            urllib.request.urlopen(address, timeout=1).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            if time.monotonic() > until or server.poll() is not None:
                raise
            time.sleep(0.2)
        else:
            return
