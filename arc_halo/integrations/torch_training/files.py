"""Files that ``torch.save`` wrote, read as tensors and plain values or not at all."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from arc_halo.errors import PickleRefused

if TYPE_CHECKING:
    from pathlib import Path

# What transformers allows as well: the state of numpy's generator is an array, which numpy pickles by these.
_OF_NUMPY: Final[tuple[Any, ...]] = (np.zeros(0).__reduce__()[0], np.ndarray, np.dtype, type(np.dtype(np.uint32)))
_ZIP_MAGIC: Final = b"PK\x03\x04"
_ADVICE: Final = "where you trust it, load it yourself and save what it holds by capture_state"


def read_torch_file(path: Path) -> Any:
    """Dicts, lists and tuples of tensors, numpy arrays, numbers and text.

    Such a file is a zip archive of raw storages and of one pickle that says what they are. torch reads it by an
    unpickler of its own that knows the opcodes for these values and calls nothing but the functions that make them;
    this is the one place where any pickle is read. What an unpickler allows could still ask for memory: an archive
    that is compressed, or a tensor that claims to be larger than the file, is refused as well.

    Raises
    ------
    PickleRefused
        It is none of `torch.save`, or holds anything else.
    FileNotFoundError
        There is no such file.
    """
    _refuse_other_archives(path)
    try:
        with torch.serialization.safe_globals([*_OF_NUMPY]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever goes wrong in a stranger's program, with whatever exception, it is not run by other means.
        raise PickleRefused(f"{path} holds more than tensors and plain values: {error}; {_ADVICE}") from error
    _refuse_swollen(path, content)
    return content


def _refuse_other_archives(path: Path) -> None:
    with path.open("rb") as file:
        # torch tells by the first bytes, zipfile by the last: what is no archive to both is some other program.
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC or not zipfile.is_zipfile(file):
            raise PickleRefused(f"{path} is no archive of torch.save, but a bare pickle or something else; {_ADVICE}")
        try:
            with zipfile.ZipFile(file) as archive:
                is_plain = all(each.compress_type == zipfile.ZIP_STORED for each in archive.infolist())
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, ValueError) as error:
            raise PickleRefused(f"{path} is a damaged archive: {error}; take a sound copy") from error
    if not is_plain:
        raise PickleRefused(f"{path} is compressed, which torch.save does not do; {_ADVICE}")


def _refuse_swollen(path: Path, content: Any) -> None:
    tensors = [each for each in tree_leaves(content) if isinstance(each, torch.Tensor)]
    nbytes = sum(each.numel() * each.element_size() for each in tensors if each.layout is torch.strided)
    size = path.stat().st_size
    if nbytes > size or any(each.layout is not torch.strided or each.is_meta for each in tensors):
        raise PickleRefused(f"{path} of {size:,} bytes claims tensors of {nbytes:,}, or sparse ones; {_ADVICE}")
