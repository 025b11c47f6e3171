"""Model folders as Hugging Face lays them out: which files belong to the model, and do they fit together."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from arc_halo.errors import ModelFolderError
from arc_halo.formats import vocabulary
from arc_halo.formats.folder import (
    INDEX_SUFFIX,
    SUFFIX,
    FolderFile,
    is_of_model,
    is_portable,
    kind_of,
    list_files,
    read_file,
    read_parsed,
    relative_path,
)
from arc_halo.formats.gguf import SUFFIX as GGUF_SUFFIX
from arc_halo.formats.gguf import GGUFFile
from arc_halo.formats.safetensors import SafetensorsFile
from arc_halo.formats.sharding import WEIGHTS_NAME
from arc_halo.formats.strict_json import parse_object
from arc_halo.formats.weights_file import refuse_pickle

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from types import TracebackType

    from arc_halo.formats.weights_file import TensorEntry, WeightsFile

__all__ = ["FolderFile", "ModelFolder", "open_model", "relative_path"]

_SHARD = re.compile(rf"(?P<stem>.+)-[0-9]+-of-(?P<count>[0-9]+){re.escape(SUFFIX)}")

_OF_HUB = re.compile(r"(?:hf:/)?(?P<repository>\w[\w.-]*/\w[\w.-]*)(?<!\.gguf)(?<!\.safetensors)(?:@[^/]+)?", re.ASCII)
_WEIGHTS_FOLDER = "the folder that has the weights"


@dataclass(frozen=True)
class ModelFolder:
    """An opened model: its weights files stay open until it is closed.

    Attributes
    ----------
    path
        The folder.
    files
        Weights files in the order of their names, then the other files in that of theirs.
    ignored
        What lies in the folder and is left out: hidden files, linked folders, weights of other frameworks, pickles.
    config
        config.json, or what the metadata of a GGUF file say in its place; empty when there is none.
    weights
        The opened weights files by name, in order.
    """

    path: Path
    files: tuple[FolderFile, ...]
    ignored: tuple[str, ...]
    config: Mapping[str, Any]
    weights: Mapping[str, WeightsFile]
    _opened: ExitStack = field(repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the weights files."""
        self._opened.close()

    @property
    def side_files(self) -> tuple[FolderFile, ...]:
        """All files but the weights."""
        return tuple(file for file in self.files if file.kind != "weights")

    def tensors(self) -> dict[str, TensorEntry]:
        """Every tensor of every weights file by name, in the order of the files and of their headers."""
        return {name: entry for file in self.weights.values() for name, entry in file.tensors.items()}

    def read_bytes(self, name: str) -> bytes:
        """Read a whole side file, at most 256 MiB.

        Raises
        ------
        ModelFolderError
            No side file has that name, or it is not as long as it was when the folder was opened.
        """
        file = next((file for file in self.side_files if file.name == name), None)
        if file is None:
            raise ModelFolderError(f"{self.path} has no side file {name!r}; its files are in `files`")
        return read_file(self.path / relative_path(name), file.nbytes)

    def token_texts(self) -> dict[int, str]:
        """Token id -> text, from a GGUF file, tokenizer.json, vocab.json or vocab.txt; empty when there is none.

        Raises
        ------
        ModelFolderError
            The file is not what its name says.
        """
        for file in self.weights.values():
            if isinstance(file, GGUFFile):
                return file.token_texts()
        names = {file.name: file.nbytes for file in self.side_files}
        parsers = {
            "tokenizer.json": vocabulary.from_tokenizer_json,
            "vocab.json": vocabulary.from_vocab_json,
            "vocab.txt": vocabulary.from_vocab_txt,
        }
        name = next((name for name in parsers if name in names), None)
        if name is None:
            return {}
        texts = parsers[name](read_parsed(self.path, name))
        if name != "tokenizer.json" and "added_tokens.json" in names:
            texts |= vocabulary.from_vocab_json(read_parsed(self.path, "added_tokens.json"), "added_tokens.json")
        return texts


def open_model(path: str | os.PathLike[str]) -> ModelFolder:
    """Open a folder with a model in safetensors files, or one ``.safetensors`` or ``.gguf`` file.

    Folders of the hub's cache, whose files are links into its ``blobs``, are taken as they are. A GGUF file in a folder
    is another copy of the model and left out: give the file itself.

    Raises
    ------
    ModelFolderError
        No weights; an index that names a missing shard or one outside of the folder, that omits one of its set which
        lies beside it, or that disagrees with the shards' headers; a tensor in two shards; a config that is no JSON
        object; a side file over 256 MiB, or one that links to a place outside of the folder; a file or folder that
        cannot be read; a GGUF file that is one of several.
    PickleRefused
        The weights are pickles.
    SafetensorsError, GGUFError
        A weights file breaks its format.
    """
    path = Path(path)
    try:
        return _open_folder(path.resolve()) if path.is_dir() else _open_file(path)
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read: {error.strerror}; check that it is there for you") from error


def _open_file(path: Path) -> ModelFolder:
    if not path.is_file():
        raise ModelFolderError(
            f"{path} is no folder and no file; give a model's folder, or one {SUFFIX} or {GGUF_SUFFIX} file"
            + _hub_advice(path)
        )
    refuse_pickle(path)
    relative_path(path.name)  # an export would be refused by it
    if path.suffix == GGUF_SUFFIX:
        return _open_gguf(path)
    if path.suffix != SUFFIX:
        raise ModelFolderError(
            f"{path} is no {SUFFIX} or {GGUF_SUFFIX} file; convert its weights with the safetensors library"
        )
    return _assemble(path.parent.resolve(), {path.name: path.stat().st_size}, [path.name], (), {})


def _hub_advice(path: Path) -> str:
    """How to name a model of the hub, where that may have been meant."""
    match = _OF_HUB.fullmatch(path.as_posix())
    return "" if match is None else f"; a model of the hub is hf://{match['repository']}"


def _open_gguf(path: Path) -> ModelFolder:
    """Open a file that is a whole model: its metadata stand for config and tokenizer."""
    with ExitStack() as stack:
        file = stack.enter_context(GGUFFile(path))
        if file.shard_count() != 1:
            raise ModelFolderError(
                f"{path} is one of {file.shard_count()} files of a model; merge them with llama-gguf-split --merge"
            )
        files = (FolderFile(path.name, "weights", file.size),)
        return ModelFolder(path.parent.resolve(), files, (), file.config(), {path.name: file}, stack.pop_all())


def _open_folder(folder: Path) -> ModelFolder:
    sizes, ignored = list_files(folder)
    shards, weight_map = choose_weights(folder, sizes, ignored)
    left_out = {name for name in sizes if name.endswith(SUFFIX)}.difference(shards)
    kept = {name: size for name, size in sizes.items() if name not in left_out}
    return _assemble(folder, kept, shards, tuple(sorted([*ignored, *left_out])), weight_map)


def choose_weights(
    folder: Path, sizes: Mapping[str, int], ignored: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Which weights files make the model, and tensor name -> shard where an index says so.

    Of the files named in ``sizes`` only an index needs to be there.

    Raises
    ------
    ModelFolderError, PickleRefused
        As `open_model` does.
    """
    index = _find_index(folder, sizes)
    weight_map = _read_index(folder, index, sizes) if index else {}
    shards = sorted(set(weight_map.values())) if index else [_find_single(folder, sizes, ignored)]
    if index and "model.safetensors" in sizes and "model.safetensors" not in shards:
        raise ModelFolderError(f"{folder} holds model.safetensors and {index}, two models; move one of them away")
    if index:
        _refuse_omitted(folder / index, shards, {name for name in sizes if name.endswith(SUFFIX)}.difference(shards))
    return shards, weight_map


def _find_index(folder: Path, sizes: Mapping[str, int]) -> str | None:
    indexes = [name for name in sizes if name.endswith(INDEX_SUFFIX) and "/" not in name]
    if len(indexes) > 1:
        raise ModelFolderError(f"{folder} holds {len(indexes)} indexes, {', '.join(indexes)}; move all but one away")
    return indexes[0] if indexes else None


def _find_single(folder: Path, sizes: Mapping[str, int], ignored: Sequence[str]) -> str:
    found = [name for name in sizes if name.endswith(SUFFIX)]
    if "model.safetensors" in found:
        return "model.safetensors"
    if len(found) == 1:
        return found[0]
    if found:
        raise ModelFolderError(
            f"{folder} holds {len(found)} weights files ({found[0]}, ...), no model.safetensors and no index; "
            "give one of the files, or restore model.safetensors.index.json"
        )
    if ggufs := [name for name in ignored if name.endswith(GGUF_SUFFIX)]:
        for name in ggufs:
            refuse_pickle(folder / name)
        raise ModelFolderError(f"{folder} holds no {SUFFIX} file, but {', '.join(ggufs[:5])}; give that file itself")
    for name in ignored:
        refuse_pickle(folder / name)
    raise ModelFolderError(f"{folder} holds no {SUFFIX} file; give {_snapshots(folder) or _WEIGHTS_FOLDER}")


def _snapshots(folder: Path) -> str | None:
    """What to give in the place of a repository in the hub's cache; None of any other folder."""
    root = folder / "snapshots"
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir()) if root.is_dir() else []
    if not found:
        return None
    kind, _, repository = folder.name.partition("--")
    source = f", or hf://{repository.replace('--', '/', 1)}" if kind == "models" and repository else ""
    return " or ".join(str(root / name) for name in found[:3]) + source


def _read_index(folder: Path, index: str, sizes: Mapping[str, int]) -> dict[str, str]:
    """Tensor name -> shard, every shard a file of this folder."""
    weight_map = parse_object(read_parsed(folder, index), index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFolderError(f"{folder / index} has no weight_map; restore the file")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or "/" in shard or not is_portable(shard) or not shard.endswith(SUFFIX):
            raise ModelFolderError(
                f"{folder / index} puts tensor {tensor!r:.80} into {shard!r:.80}; a shard is a {SUFFIX} file beside it"
            )
        if shard not in sizes:
            raise ModelFolderError(f"{folder / index} names {shard}, which is not there; download the missing shard")
    return weight_map


def _refuse_omitted(index: Path, shards: list[str], left_out: set[str]) -> None:
    """Refuse an index that omits a shard of its own numbered set: the model would silently lack those weights.

    Files of another set or of none, such as an adapter or a consolidated copy, are the folder's to have.
    """
    sets = {_shard_set(name) for name in shards} - {None}
    for name in sorted(left_out):
        if _shard_set(name) in sets:
            raise ModelFolderError(
                f"{index} does not name {name}, which lies beside it and is of its set; mend the index, or move the "
                f"file away"
            )


def _shard_set(name: str) -> tuple[str, str] | None:
    """What the names of all shards of one model have in common; None for a file that is no numbered shard."""
    match = _SHARD.fullmatch(name)
    return None if match is None else (match["stem"], match["count"])


def refuse_leftovers(folder: Path, written: Collection[str]) -> None:
    """Refuse a folder in which weights of another model would stay beside those about to be written.

    Leftovers are an index, ``model.safetensors``, numbered shards, and any safetensors file from which what is written
    could not be told. Others, such as an adapter, are the folder's to have.

    Raises
    ------
    ModelFolderError
        There are leftovers; it names them.
    """
    if not folder.is_dir() or not any(name.endswith(SUFFIX) for name in written):
        return
    is_told = any(name == WEIGHTS_NAME or name.endswith(INDEX_SUFFIX) for name in written)
    names = {entry.name for entry in os.scandir(folder) if is_of_model(entry.name)} - set(written)
    leftovers = sorted(
        name
        for name in names
        if name.endswith(INDEX_SUFFIX)
        or (name.endswith(SUFFIX) and (not is_told or name == WEIGHTS_NAME or _SHARD.fullmatch(name)))
    )
    if leftovers:
        more = f" and {len(leftovers) - 5} more" if len(leftovers) > 5 else ""  # noqa: PLR2004  # one line's worth
        raise ModelFolderError(
            f"{folder} holds weights of another export ({', '.join(leftovers[:5])}{more}), and with those of this one "
            "would be two models; choose another folder, or delete them first"
        )


def _assemble(
    folder: Path, sizes: Mapping[str, int], shards: list[str], ignored: tuple[str, ...], weight_map: Mapping[str, str]
) -> ModelFolder:
    """Open the weights and read the config."""
    weights_names = set(shards)
    side = [name for name in sizes if name not in weights_names]
    files = [FolderFile(name, "weights", sizes[name]) for name in shards]
    files += [FolderFile(name, kind_of(name), sizes[name]) for name in side]
    config = parse_object(read_parsed(folder, "config.json"), "config.json") if "config.json" in side else {}
    with ExitStack() as stack:
        weights: dict[str, WeightsFile] = {name: stack.enter_context(SafetensorsFile(folder / name)) for name in shards}
        holders = _holders(weights)
        if weight_map:
            _compare(weight_map, holders)
        return ModelFolder(folder, tuple(files), ignored, config, weights, stack.pop_all())


def _holders(weights: Mapping[str, WeightsFile]) -> dict[str, str]:
    """Tensor name -> the one shard whose header has it."""
    holders: dict[str, str] = {}
    for shard, file in weights.items():
        for tensor in file.tensors:
            if tensor in holders:
                raise ModelFolderError(
                    f"tensor {tensor!r:.80} is in {holders[tensor]} and in {shard}; keep it in one shard only"
                )
            holders[tensor] = shard
    return holders


def _compare(weight_map: Mapping[str, str], holders: Mapping[str, str]) -> None:
    for tensor, shard in weight_map.items():
        if holders.get(tensor) != shard:
            raise ModelFolderError(
                f"the index puts tensor {tensor!r:.80} into {shard}, which does not have it; mend the index, or "
                f"download the shards again"
            )
    for tensor, shard in holders.items():
        if tensor not in weight_map:
            raise ModelFolderError(f"the index does not name tensor {tensor!r:.80}, which {shard} has; mend the index")
