"""How many bytes of tensors are alive, on whatever device."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators make while it is on, in the forward and the backward pass.

    What an operator takes without having been made here, such as parameters, counts for nothing; nor does memory that
    a kernel takes and gives back inside of one operator. An allocator may round sizes up.

    Attributes
    ----------
    nbytes
        Alive now.
    peak_nbytes
        Alive at the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0
        self.peak_nbytes = 0
        self._known: dict[int, weakref.finalize[..., Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for each in tree_leaves((args, kwargs)):
            self._note(each, is_new=False)
        result = func(*args, **kwargs)
        for each in tree_leaves(result):
            self._note(each, is_new=True)
        return result

    def _note(self, value: Any, *, is_new: bool) -> None:
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            return
        storage = value.untyped_storage()
        if (key := storage._cdata) not in self._known:  # noqa: SLF001  (no public name tells one storage from another)
            nbytes = storage.nbytes() if is_new else 0
            self._known[key] = weakref.finalize(storage, self._forget, key, nbytes)
            self.nbytes += nbytes
            self.peak_nbytes = max(self.peak_nbytes, self.nbytes)

    def _forget(self, key: int, nbytes: int) -> None:
        del self._known[key]
        self.nbytes -= nbytes
