"""What the embedded server is told: memory, write-ahead log, where it listens, who may connect."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SUPERUSER: Final = "postgres"
_PARALLEL_SHARED_MEMORY: Final = 1 << 30

_SETTINGS: Final[dict[str, str]] = {
    # Bytes come in by the gigabyte and are read back in order: the kernel's cache does most of the work.
    "shared_buffers": "256MB",
    "work_mem": "32MB",
    "maintenance_work_mem": "512MB",  # an HNSW graph of 30,000 x 384 must fit, or its build takes many times longer
    "max_connections": "100",
    "random_page_cost": "1.1",
    # An import must not force a checkpoint every 1 GB of log; the price is disk, and a longer recovery.
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    # Most pages hold what is compressed already, and pglz takes long to find that out: deleting takes a seventh so.
    "wal_compression": "off",
    "synchronous_commit": "on",
    "shared_preload_libraries": "pg_stat_statements",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def configuration_files(
    settings: Mapping[str, str], *, port: int, socket_folder: Path | None, peers: Sequence[str]
) -> dict[str, str]:
    """The files of the data folder that are ours: name to content.

    Parameters
    ----------
    settings
        PostgreSQL settings that go before ours.
    port
        Of TCP, or the number in the socket's name.
    socket_folder
        Where the Unix socket is; None for loopback TCP.
    peers
        The operating system's users that may connect over the socket.
    """
    listening = {
        "listen_addresses": "" if socket_folder else "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": str(socket_folder or ""),
        "unix_socket_permissions": "0700",
        "dynamic_shared_memory_type": _shared_memory_type(),
    }
    lines = [f"{name} = '{_quote(value)}'" for name, value in (_SETTINGS | listening | dict(settings)).items()]
    who = "local all all peer map=arc_halo" if socket_folder else "host all all 127.0.0.1/32 scram-sha-256"
    return {
        "arc_halo.conf": "\n".join(["# Written by Arc-Halo: settings of your own go by ALTER SYSTEM.", *lines, ""]),
        "pg_hba.conf": f"{who}\n",
        "pg_ident.conf": "".join(f'arc_halo "{name}" {SUPERUSER}\n' for name in peers),
    }


def _quote(value: str) -> str:
    return value.replace("'", "''")


def _shared_memory_type() -> str:
    """Files where ``/dev/shm`` is small, as in a container's 64 MB, which a parallel index build would overflow."""
    if os.name == "nt":
        return "windows"
    shared = Path("/dev/shm")  # noqa: S108  looked at, not written
    return "mmap" if shared.exists() and shutil.disk_usage(shared).total < _PARALLEL_SHARED_MEMORY else "posix"
