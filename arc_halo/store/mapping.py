"""A file's bytes as a read-only array that keeps no descriptor open."""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from weakref import finalize

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FAILED: Final = ctypes.c_void_p(-1).value


def map_file(fd: int, nbytes: int) -> NDArray[np.uint8]:
    """Map the first bytes of an open file; the map stays when the file is closed, or removed.

    ``mmap.mmap``, and ``numpy.memmap`` with it, keeps a descriptor for each map up to Python 3.12: a mixture of experts
    has more tensors than a process may have of those (256 on macOS, 1024 on Linux). The system's own call needs none.

    Parameters
    ----------
    fd
        Open for reading. Whoever makes the file shorter later kills readers of the map (SIGBUS).
    nbytes
        At least 1, at most the size of the file.

    Raises
    ------
    OSError
        The system refuses: the limits of memory or of maps are reached.
    """
    libc = _libc()
    address = libc.mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    buffer = (ctypes.c_ubyte * nbytes).from_address(address)
    # The array keeps the buffer, whose end is that of the map. At the end of the process the system does it: arrays
    # may still be in use by then.
    finalize(buffer, libc.munmap, address, nbytes).atexit = False
    return np.frombuffer(memoryview(buffer).toreadonly(), np.uint8)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    number = ctypes.c_int
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, number, number, number, ctypes.c_long)  # off_t of 64 bits
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc
