"""Memory before a page that nobody may touch: native code that goes one byte too far ends the process there."""

from __future__ import annotations

import ctypes
import mmap

_PROTECT_NONE = 0
_LIBC = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """At most ``nbytes``, used again by each call."""

    def __init__(self, nbytes: int) -> None:
        self._size = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, self._size + mmap.PAGESIZE)
        behind = ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) + self._size
        if _LIBC.mprotect(ctypes.c_void_p(behind), ctypes.c_size_t(mmap.PAGESIZE), _PROTECT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")

    def last(self, nbytes: int) -> memoryview:
        """The last bytes before the page."""
        return memoryview(self._memory)[self._size - nbytes : self._size]

    def holding(self, data: bytes) -> memoryview:
        """A read-only copy that ends at the page."""
        view = self.last(len(data))
        view[:] = data
        return view.toreadonly()
