"""What a run is made of, so that it can be made again: code, packages, machine, seeds and configuration."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import psutil  # type: ignore[import-untyped]  # ships no types
from blake3 import blake3

from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_DIFF_NBYTES: Final = 256 << 10
"""Of changes that are not committed so much is kept; the digest is over all of them."""
_MAX_UNTRACKED: Final = 200
_MAX_UNTRACKED_NBYTES: Final = 1 << 20
_PIECE_NBYTES: Final = 1 << 20
_SECONDS: Final = 10.0
_DIFF: Final = ("diff", "--no-color", "--no-ext-diff", "--no-textconv", "--binary", "HEAD")
# What changes results and holds no secret.
_VARIABLES: Final = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "TOKENIZERS_PARALLELISM",
)
_CODE_CONTEXT: Final = "arc-halo 2026-11 code of a run"
_PACKAGES_CONTEXT: Final = "arc-halo 2026-11 packages of a run"


@dataclass(frozen=True, slots=True)
class Provenance:
    """What was found.

    Attributes
    ----------
    code_digest
        BLAKE3-256 over the commit, changes to it and new files; None outside of a repository.
    environment_digest
        BLAKE3-256 over names and versions of the installed packages, and Python's.
    details
        Commit, changes, packages, machine, seeds and configuration, as JSON.
    """

    code_digest: bytes | None = None
    environment_digest: bytes | None = None
    details: dict[str, Any] = field(default_factory=dict)


def capture_provenance(
    *, config: Any = None, seed: int | None = None, dataset_digest: bytes | None = None, folder: Path | None = None
) -> Provenance:
    """Find out what a run is made of.

    Parameters
    ----------
    config
        As resolved; see `plain`.
    folder
        Within the code's repository; else that of the program that runs, or the working directory.
    """
    code, code_digest = _code(folder or _program_folder())
    packages = installed_packages()
    version = f"{platform.python_implementation()} {platform.python_version()}"
    hasher = blake3("\n".join([version, *packages]).encode(), derive_key_context=_PACKAGES_CONTEXT)
    details = {
        "code": code,
        "environment": {"python": version, "packages": list(packages), "variables": _variables()},
        "hardware": hardware(),
        "seeds": {"seed": seed, "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED")},
        "config": plain(config),
        "dataset_digest": None if dataset_digest is None else dataset_digest.hex(),
    }
    return Provenance(code_digest, hasher.digest(), details)


@cache
def installed_packages() -> tuple[str, ...]:
    """``name==version`` of what can be imported, in order."""
    found = {(each.name or "").lower().replace("_", "-"): each.version for each in importlib.metadata.distributions()}
    return tuple(f"{name}=={version}" for name, version in sorted(found.items()) if name)


@cache
def hardware() -> dict[str, Any]:
    """Processor, memory and, where their driver tells of them, accelerators."""
    names = _output(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_nbytes": psutil.virtual_memory().total,
        "accelerators": [] if names is None else names.decode(errors="replace").splitlines(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _variables() -> dict[str, str]:
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


def _program_folder() -> Path:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(main).resolve().parent if main else Path.cwd()


def _code(folder: Path) -> tuple[dict[str, Any] | None, bytes | None]:
    """Commit, changes and new files of the repository that a folder is in, and the digest over them."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None, None
    hasher = blake3(commit.strip() + b"\0", derive_key_context=_CODE_CONTEXT)
    diff = _Kept(hasher.update)
    root = _git(folder, "rev-parse", "--show-toplevel")
    listed = None if root is None else _git(_path(root), "ls-files", "--others", "--exclude-standard", "-z")
    is_whole = _run(_git_command(folder, *_DIFF), diff.add) and listed is not None
    untracked = sorted(filter(None, (listed or b"").split(b"\0")))
    for name in untracked[:_MAX_UNTRACKED]:
        hasher.update(b"\0" + name + b"\0" + _content(_path(root or b"") / os.fsdecode(name)))
    details = {
        "commit": commit.decode().strip(),
        "is_clean": not diff.nbytes and not untracked if is_whole else None,
        "diff": plain(diff.first.decode(errors="replace")),
        "diff_nbytes": diff.nbytes if is_whole else None,
        "untracked": [plain(name.decode(errors="replace")) for name in untracked[:_MAX_UNTRACKED]],
        "untracked_count": len(untracked),
    }
    # Changes that took too long to find are some that are not known, not none.
    return details, hasher.digest() if is_whole else None


class _Kept:
    """The beginning of what a program prints, and how much it is."""

    def __init__(self, tell: Callable[[bytes], object]) -> None:
        self.first, self.nbytes = b"", 0
        self._tell = tell

    def add(self, piece: bytes) -> None:
        self._tell(piece)
        self.first += piece[: MAX_DIFF_NBYTES - len(self.first)]
        self.nbytes += len(piece)


def _path(printed: bytes) -> Path:
    return Path(os.fsdecode(printed.removesuffix(b"\n")))


def _content(path: Path) -> bytes:
    """What a new file adds to the digest: its bytes, of a big one its size, of a link where it leads."""
    try:
        if path.is_symlink():
            return os.fsencode(path.readlink())
        size = path.stat().st_size
        is_read = path.is_file() and size <= _MAX_UNTRACKED_NBYTES
        return path.read_bytes() if is_read else str(size).encode()
    except OSError:  # gone, or not for us to read
        return b""


def _git(folder: Path, *arguments: str) -> bytes | None:
    return _output(_git_command(folder, *arguments))


def _git_command(folder: Path, *arguments: str) -> list[str]:
    return ["git", "-C", str(folder), *arguments]


def _output(command: list[str]) -> bytes | None:
    """What a program prints; None where there is none, or it fails or hangs."""
    pieces: list[bytes] = []
    return b"".join(pieces) if _run(command, pieces.append) else None


def _run(command: list[str], take: Callable[[bytes], object]) -> bool:
    """Run a program and hand on what it prints, piece by piece; whether it is there, and did what it should in time."""
    program = shutil.which(command[0])
    if program is None:
        return False
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        process = subprocess.Popen(  # noqa: S603  git and nvidia-smi, with arguments of our own
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    except OSError:
        return False
    timer = threading.Timer(_SECONDS, _kill, [process])
    timer.start()
    try:
        with process:
            while process.stdout and (piece := process.stdout.read(_PIECE_NBYTES)):
                take(piece)
    finally:
        timer.cancel()
    return bool(process.returncode == 0)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Where that can be done with all that it has started, which may hold its output open."""
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def plain(value: Any, where: str = "config") -> Any:
    """A configuration as JSON that PostgreSQL can hold.

    Numbers of numpy become Python's, tuples lists, sets sorted lists, paths text, and dataclasses and namespaces
    objects; NaN and infinities become the texts ``NaN``, ``Infinity`` and ``-Infinity``.

    Raises
    ------
    ConfigurationError
        A value is none of these; the message says where.
    """
    if isinstance(value, np.generic | PurePath):
        value = value.item() if isinstance(value, np.generic) else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    if isinstance(value, float):
        return _number(value)
    return _plain_whole(value, where)


def _plain_whole(value: Any, where: str) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    elif type(value).__name__ == "Namespace":  # argparse's, or one like it
        value = vars(value)
    if hasattr(value, "items"):
        return {plain(str(key)): plain(part, f"{where}[{key!r}]") for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), where)
    if isinstance(value, set | frozenset):
        return _plain_parts(sorted(value, key=repr), where)
    if isinstance(value, list | tuple):
        return _plain_parts(value, where)
    raise ConfigurationError(f"{where} is a {type(value).__qualname__}, which JSON cannot hold; give its text or parts")


def _plain_parts(values: Iterable[Any], where: str) -> list[Any]:
    return [plain(part, f"{where}[{index}]") for index, part in enumerate(values)]


def _number(value: float) -> float | str:
    if np.isfinite(value):
        return value
    return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
