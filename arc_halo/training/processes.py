"""Which process keeps an attempt, and whether it is gone: something that its own machine alone can tell."""

from __future__ import annotations

import datetime as dt
import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]  # ships no types

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE: Final = Path("/proc/self/ns/pid")
# The start of a process is computed from that of the machine, which moves a little when its clock is set.
_TOLERANCE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """What tells a process from every other, also from a later one of the same number.

    Attributes
    ----------
    host
        The machine's name.
    boot_id
        The start of the machine and the namespace of its process numbers: where these are others', a number says
        nothing.
    pid
        Its number.
    started_at
        When it began, by the clock of its machine.
    """

    host: str
    boot_id: str
    pid: int
    started_at: dt.datetime

    def is_this(self) -> bool:
        """Whether it is the process that asks, or an earlier one of its number."""
        return (self.host, self.boot_id, self.pid) == (socket.gethostname(), boot_id(), os.getpid())

    def is_gone(self) -> bool:
        """Whether it has certainly ended; False also where this machine cannot tell."""
        if (self.host, self.boot_id) != (socket.gethostname(), boot_id()):
            return False
        try:
            process = psutil.Process(self.pid)
            started = process.create_time()
            if process.status() == psutil.STATUS_ZOMBIE:  # ended, and its parent has not asked yet
                return True
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False
        return bool(abs(started - self.started_at.timestamp()) > _TOLERANCE_SECONDS)


@cache
def boot_id() -> str:
    """The start of this machine; in a container with the namespace of its process numbers."""
    if not _BOOT_ID.exists():  # not Linux
        return f"{psutil.boot_time():.0f}"
    return f"{_BOOT_ID.read_text(encoding='ascii').strip()}/{_NAMESPACE.stat().st_ino}"


def this_process() -> ProcessIdentity:
    """The identity of the process that asks."""
    pid = os.getpid()
    started = dt.datetime.fromtimestamp(psutil.Process(pid).create_time(), dt.UTC)
    return ProcessIdentity(socket.gethostname(), boot_id(), pid, started)
