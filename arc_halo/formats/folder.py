"""The files of a model's folder: which of them belong to the model, what they are called, how they are read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from arc_halo.errors import ModelFolderError
from arc_halo.formats.safetensors import PICKLE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator

FileKind = Literal["weights", "index", "config", "tokenizer", "other"]

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
TOKENIZER_NAMES = frozenset(
    {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
        "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
        "chat_template.jinja", "chat_template.json",
    }
)  # fmt: skip
FOREIGN_SUFFIXES = PICKLE_SUFFIXES | {
    ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".ggml", ".tflite", ".ot", ".pdparams", ".npz", ".mlpackage",
}  # fmt: skip

SHARED_BLOBS_MARKER = ".huggingface-shared-blobs"

# A side file is held in memory whole, and a parsed one several times over.
MAX_SIDE_NBYTES = 256 << 20
MAX_PARSED_NBYTES = 64 << 20
MAX_FILES = 10_000
MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class FolderFile:
    """A file of a model; ``name`` is relative to the folder, with forward slashes."""

    name: str
    kind: FileKind
    nbytes: int


def list_files(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Size of every file of the model by name, and the names of what is left out.

    Left out are hidden files, linked folders, weights of other frameworks, pickles, weights in subfolders, names
    that are no names on another system.

    Raises
    ------
    ModelFolderError
        More than 10,000 files or 8 levels; a side file over 256 MiB; a link that leads nowhere, or, of a side file,
        out of the folder.
    """
    sizes: dict[str, int] = {}
    ignored: list[str] = []
    for entry, name in _walk(folder, "", 0):
        size = _size(folder, entry, name)
        if size is None:
            ignored.append(name + "/" * entry.is_dir())
        else:
            sizes[name] = size
        if len(sizes) + len(ignored) > MAX_FILES:
            raise ModelFolderError(f"{folder} holds more than {MAX_FILES} files; give the folder of one model")
    return sizes, ignored


def relative_path(name: str) -> PurePosixPath:
    """Check the relative name of a model's file, which may come from an index or a database.

    Raises
    ------
    ModelFolderError
        Empty, absolute, with ``.`` or ``..``, a backslash, a colon or what cannot be printed: on some system it would
        lead out of the folder, or be no name.
    """
    if not is_portable(name):
        raise ModelFolderError(f"{name!r:.120} is no name inside a model's folder; rename the file or mend the index")
    return PurePosixPath(name)


def is_portable(name: str) -> bool:
    """Whether a relative name means the same inside any folder of any system."""
    parts = name.split("/")
    return name.isprintable() and not any(part in {"", ".", ".."} for part in parts) and not set(name) & {"\\", ":"}


def is_of_model(name: str) -> bool:
    """Whether a file of this relative name may belong to a model: not hidden, of no other framework, no pickle."""
    suffix = PurePosixPath(name).suffix.lower()
    return is_portable(name) and suffix not in FOREIGN_SUFFIXES and not any(map(_is_hidden, name.split("/")))


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Every file, and every folder that is not looked into."""
    if depth > MAX_DEPTH:
        raise ModelFolderError(f"{folder} is nested deeper than {MAX_DEPTH} folders; give the folder of one model")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = prefix + entry.name
        if entry.is_dir(follow_symlinks=False) and not _is_hidden(entry.name):
            yield from _walk(Path(entry.path), name + "/", depth + 1)
        else:
            yield entry, name


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _size(folder: Path, entry: os.DirEntry[str], name: str) -> int | None:
    """Size of a file that belongs to the model; None for one that is left out."""
    if not is_of_model(name):
        return None
    is_weights = entry.name.endswith(SUFFIX)
    if entry.is_symlink():
        if not Path(entry.path).exists():
            raise ModelFolderError(f"{entry.path} links to a file that is not there; download the model again")
        if not is_weights and entry.is_file() and not _is_own(folder, Path(entry.path).resolve()):
            # An unpacked archive could otherwise carry a private file of this machine into the database.
            raise ModelFolderError(f"{entry.path} links out of the folder; put a copy of the file in its place")
    if not entry.is_file():
        return None
    size = entry.stat().st_size
    if not is_weights and size > MAX_SIDE_NBYTES:
        raise ModelFolderError(f"{entry.path} has {size} bytes, a side file may have {MAX_SIDE_NBYTES}; move it away")
    return None if is_weights and "/" in name else size


def _is_own(folder: Path, target: Path) -> bool:
    snapshot = next((each for each in (folder, *folder.parents) if each.parent.name == "snapshots"), None)
    return target.is_relative_to(folder) or (snapshot is not None and _is_blob(snapshot.parent.parent, target))


def _is_blob(repository: Path, target: Path) -> bool:
    # The hub's cache: models--x/snapshots/<revision>/config.json -> models--x/blobs/<digest>, which may itself be a
    # link to blobs/<two digits>/<digest>, what all repositories of a cache share.
    shared = repository.parent / "blobs"
    is_shared = target.parent.parent == shared and (shared / SHARED_BLOBS_MARKER).is_file()
    return is_shared or target.is_relative_to(repository / "blobs")


def kind_of(name: str) -> FileKind:
    """What a side file is, by its name."""
    if name == "config.json":
        return "config"
    if name in TOKENIZER_NAMES:
        return "tokenizer"
    return "index" if name.endswith(INDEX_SUFFIX) else "other"


def read_parsed(folder: Path, name: str) -> bytes:
    """Read a file that is to be parsed, at most 64 MiB.

    Raises
    ------
    ModelFolderError
        It is larger.
    """
    nbytes = (folder / name).stat().st_size
    if nbytes > MAX_PARSED_NBYTES:
        raise ModelFolderError(f"{folder / name} has {nbytes} bytes, too many to be parsed; restore the file")
    return read_file(folder / name, nbytes)


def read_file(path: Path, nbytes: int) -> bytes:
    """Read a file that has that many bytes.

    Raises
    ------
    ModelFolderError
        It is longer or shorter by now, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(nbytes + 1)
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read: {error.strerror}; check that it is there for you") from error
    if len(raw) != nbytes:
        raise ModelFolderError(f"{path} changed its length while it was read; import again when nobody writes to it")
    return raw
