"""The machine and the server that a benchmark ran on."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]  # ships no types

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

_SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "wal_compression",
    "max_wal_size",
    "shared_buffers",
    "checkpoint_timeout",
    "data_checksums",
)
_PACKAGES = ("psycopg", "numpy", "safetensors", "blosc2", "pcodec", "blake3")
_WRITE_NBYTES = 64 << 20
_PAGE_NBYTES = 8192


def describe_machine(connection: psycopg.Connection[Any], folder: Path, peers: Sequence[str] = ()) -> dict[str, str]:
    """What results depend on, as lines of a table; ``folder`` is on the disk that is written to, ``peers`` packages."""
    settings = connection.execute(
        "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)", [list(_SETTINGS)]
    ).fetchall()
    written, flushed = _disk(folder)
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "disk": f"{written:.0f} MB/s written and flushed at once, {flushed:.1f} ms to flush one page",
        "load": f"{os.getloadavg()[0]:.1f} before the run",
        "PostgreSQL": f"{connection.info.parameter_status('server_version')}: "
        + ", ".join(f"{name} = {value}" for name, value in settings),
        "Python": f"{platform.python_version()}: "
        + ", ".join(f"{name} {version(name)}" for name in (*_PACKAGES, *peers)),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _disk(folder: Path) -> tuple[float, float]:
    """MB/s of one large write that is flushed, and the median milliseconds of flushing one page."""
    content = os.urandom(_WRITE_NBYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        file.write(content)
        _flush(file.fileno(), file)
        written = _WRITE_NBYTES / (time.perf_counter() - started) / 1e6
        seconds = []
        for page in range(32):
            started = time.perf_counter()
            file.seek(page * _PAGE_NBYTES)
            file.write(content[:_PAGE_NBYTES])
            _flush(file.fileno(), file)
            seconds.append(time.perf_counter() - started)
    return written, statistics.median(seconds) * 1e3


def _flush(descriptor: int, file: Any) -> None:
    file.flush()
    os.fsync(descriptor)
