"""Programs of this package, each run in a process of its own that need not import them: a fork of one that has."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Importing all this takes most of the time of a command that does little.
_IMPORTED = ["alembic.config", "arc_halo.cli", "arc_halo.formats.hub", "arc_halo.registry", "arc_halo.store.blobs"]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(_IMPORTED)


def run(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> CompletedProcess[str]:
    """Run ``arc-halo`` or ``alembic`` as the script of that name does, with a terminal nowhere."""
    with tempfile.TemporaryDirectory() as output:
        said, error = (Path(output) / each for each in ("stdout", "stderr"))
        process = _FORKS.Process(target=_main, args=(list(words), folder, dict(environment), said, error))
        process.start()
        process.join()
        code = process.exitcode
        process.close()
        return CompletedProcess(words, -1 if code is None else code, said.read_text(), error.read_text())


def _main(words: list[str], folder: Path, environment: dict[str, str], said: Path, error: Path) -> None:
    for path, number in ((said, 1), (error, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = words
    if words[0] == "alembic":
        from alembic.config import main  # noqa: PLC0415  of the one program that is wanted
    else:
        from arc_halo.cli import main  # noqa: PLC0415  as above
    sys.exit(main())
