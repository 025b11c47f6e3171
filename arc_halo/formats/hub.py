"""Models of the Hugging Face hub: a source names one, its files are downloaded into the hub's own cache."""

from __future__ import annotations

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from arc_halo.errors import HubError, HubUnavailable, InvalidName, ModelFolderError, PickleRefused
from arc_halo.formats.folder import (
    INDEX_SUFFIX,
    MAX_DEPTH,
    MAX_FILES,
    MAX_SIDE_NBYTES,
    SUFFIX,
    is_of_model,
    is_portable,
)
from arc_halo.formats.gguf import SUFFIX as GGUF_SUFFIX
from arc_halo.formats.hf import choose_weights
from arc_halo.formats.hub_errors import load_library, translated
from arc_halo.formats.safetensors import PICKLE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Progress = Callable[[str, int, int], None]

PREFIX: Final = "hf://"
WORKERS: Final = 8
SECONDS: Final = 0.2  # between two reports of progress
FILE_SUFFIXES: Final = (SUFFIX, GGUF_SUFFIX)
NOT_MODELS: Final = frozenset({"datasets", "spaces", "buckets", "kernels"})

_SOURCE = re.compile(
    r"hf://(?:models/)?(?P<repository>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(?P<path>[^@]+?))?/?",
    re.ASCII,
)
# Resolves the revision at the price of two small files, one of which every repository has.
_FIRST = ("config.json", ".gitattributes")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the hub, perhaps at a revision, perhaps a folder or a weights file in it."""

    repository: str
    revision: str | None = None
    path: str = ""

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"{PREFIX}{self.repository}{revision}" + (f"/{self.path}" if self.path else "")


@dataclass(frozen=True, slots=True)
class HubSnapshot(os.PathLike[str]):
    """Files of one commit on this disk.

    Attributes
    ----------
    path
        The model's folder in the hub's cache, or its one weights file.
    origin
        What they are: ``source``, ``commit``, and ``revision`` and ``path`` if they were asked for.
    ignored
        Files of the repository that are left out.
    """

    path: Path
    origin: Mapping[str, str]
    ignored: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        return str(self.path)


def locate(path: str | os.PathLike[str], progress: Progress | None = None) -> str | os.PathLike[str]:
    """Download what ``hf://...`` names; any other path stays what it is.

    Only a text that the caller gives is a source; nothing that was read from a file or a row gets here.
    """
    is_source = isinstance(path, str) and path.startswith(PREFIX)
    return download(parse_source(str(path)), progress) if is_source else path


def parse_source(text: str) -> HubSource:
    """Read ``hf://ORG/NAME[@REVISION][/PATH]``; a slash in a revision is written ``%2F``, but for ``refs/pr/N``.

    Raises
    ------
    InvalidName
        It is something else.
    """
    match = _SOURCE.fullmatch(text)
    if match is None:
        raise InvalidName(f"{text!r:.200} names no model of the hub; write hf://ORG/NAME[@REVISION][/FOLDER]")
    repository, path = match["repository"], match["path"] or ""
    if repository.split("/")[0] in NOT_MODELS:
        raise InvalidName(f"{text!r:.200} is no model; write hf://ORG/NAME[@REVISION][/FOLDER]")
    if path and not is_portable(path):
        raise InvalidName(f"{path!r:.200} is no path inside a repository; give a folder or a {SUFFIX} file in it")
    return HubSource(repository, unquote(match["revision"]) if match["revision"] else None, path)


def download(source: HubSource, progress: Progress | None = None) -> HubSnapshot:
    """Download the files that an import takes, and nothing else: no pickles, no weights of other frameworks.

    What is in the hub's cache is not downloaded again. Where the hub is unavailable, or under ``HF_HUB_OFFLINE``, a
    revision is what it was when it was last looked up; a refusal of the hub's is an error.

    Raises
    ------
    ConfigurationError
        The extra ``hub`` is not installed.
    HubError
        No such model, no access, no answer, or no space.
    PickleRefused
        The repository has pickles for weights.
    ModelFolderError
        It has no weights, or several and no index, or more than 10,000 files.
    """
    root = _resolve(source)
    found, origin = root / source.path, _origin(source, root.name)
    try:
        sizes = _sizes(source, root.name)
    except HubUnavailable:
        if not _has_weights(found):
            raise
        return HubSnapshot(found, origin)
    plan, getter = _Plan(source, sizes), _Getter(source, root, progress)
    getter.get(plan.side_files(), sizes)
    getter.get(plan.weights(root), sizes)
    return HubSnapshot(found, origin, plan.ignored())


def _resolve(source: HubSource) -> Path:
    """The folder of the revision's commit in the hub's cache, named by its hash."""
    with translated(str(source)):
        folder = load_library().snapshot_download(
            source.repository, revision=source.revision, allow_patterns=list(_FIRST), tqdm_class=_bar(_ignore)
        )
    return Path(folder)


def _sizes(source: HubSource, commit: str) -> dict[str, int]:
    """Size of each file of the source by its name in the repository."""
    with translated(str(source)):
        info = load_library().HfApi().model_info(source.repository, revision=commit, files_metadata=True)
    return {file.rfilename: int(file.size or 0) for file in info.siblings or () if _is_below(file.rfilename, source)}


def _origin(source: HubSource, commit: str) -> dict[str, str]:
    origin = {"source": f"{PREFIX}{source.repository}", "commit": commit}
    if source.revision is not None:
        origin["revision"] = source.revision
    return origin | ({"path": source.path} if source.path else {})


def _is_below(name: str, source: HubSource) -> bool:
    return not source.path or name == source.path or name.startswith(f"{source.path}/")


def _has_weights(path: Path) -> bool:
    """Whether the cache has weights here: they are downloaded last, so the rest is there then."""
    return path.is_file() or any(path.glob(f"*{SUFFIX}"))


class _Plan:
    """Which files of a repository make the model."""

    def __init__(self, source: HubSource, sizes: Mapping[str, int]) -> None:
        self.source = source
        self.sizes = sizes
        self.chosen: set[str] = set()

    def side_files(self) -> list[str]:
        """Everything but weights that an import keeps; none for a single file."""
        side = (
            []
            if self.source.path.endswith(FILE_SUFFIXES)
            else [name for name in self.sizes if self._is_side_file(name)]
        )
        if len(side) > MAX_FILES:
            raise ModelFolderError(f"{self.source} holds more than {MAX_FILES} files; give the folder of one model")
        self.chosen |= set(side)
        return side

    def weights(self, root: Path) -> list[str]:
        """The weights; the side files, an index among them, are below ``root`` by now."""
        prefix = f"{self.source.path}/" if self.source.path else ""
        found = [
            name
            for name in self.sizes
            if name.endswith(SUFFIX) and is_of_model(name) and "/" not in name.removeprefix(prefix)
        ]
        indexes = [name for name in self.chosen if name.endswith(INDEX_SUFFIX) and "/" not in name.removeprefix(prefix)]
        weights = self._indexed(root, prefix, [*indexes, *found]) if indexes else self._single(found, prefix)
        self.chosen |= set(weights)
        return weights

    def ignored(self) -> tuple[str, ...]:
        """What is left in the repository."""
        return tuple(sorted(self.sizes.keys() - self.chosen))

    def _is_side_file(self, name: str) -> bool:
        is_small = self.sizes[name] <= MAX_SIDE_NBYTES and name.count("/") <= MAX_DEPTH
        return is_small and is_of_model(name) and not name.endswith(SUFFIX)

    def _indexed(self, root: Path, prefix: str, names: Iterable[str]) -> list[str]:
        sizes = {name.removeprefix(prefix): self.sizes[name] for name in names}
        shards, _ = choose_weights(root / self.source.path, sizes)
        return [prefix + shard for shard in shards]

    def _single(self, found: list[str], prefix: str) -> list[str]:
        if self.source.path in self.sizes and self.source.path.endswith(FILE_SUFFIXES):
            return [self.source.path]
        if f"{prefix}model{SUFFIX}" in found:
            return [f"{prefix}model{SUFFIX}"]
        if len(found) == 1:
            return found
        if found:
            raise ModelFolderError(
                f"{self.source} holds {len(found)} weights files ({min(found)}, ...), and not one model{SUFFIX} or "
                f"index; give one of them: {replace(self.source, path=min(found))}"
            )
        if ggufs := [name for name in self.sizes if name.endswith(GGUF_SUFFIX)]:
            raise ModelFolderError(
                f"{self.source} holds no {SUFFIX} file, but {len(ggufs)} {GGUF_SUFFIX}; "
                f"give the one you want: {replace(self.source, path=min(ggufs))}"
            )
        if any(Path(name).suffix.lower() in PICKLE_SUFFIXES for name in self.sizes):
            raise PickleRefused(
                f"{self.source} has its weights as pickles only, programs that run when they are read; "
                f"look for {SUFFIX} files in another revision or among its pull requests (@refs/pr/N)"
            )
        raise ModelFolderError(f"{self.source} holds no {SUFFIX} file; give a repository, or a folder in it, that does")


class _Getter:
    """Downloads files of one commit side by side, and reports progress from the caller's thread."""

    def __init__(self, source: HubSource, root: Path, progress: Progress | None) -> None:
        self.source = source
        self.root = root
        self.progress = progress
        self.done: dict[str, int] = {}
        self.stopped = Event()

    def get(self, names: list[str], sizes: Mapping[str, int]) -> None:
        missing = {name: sizes[name] for name in names if not (self.root / name).is_file()}
        if not missing:
            return
        self._refuse_full_disk(sum(missing.values()))
        self.done, total = dict.fromkeys(missing, 0), sum(missing.values())
        pool = ThreadPoolExecutor(min(WORKERS, len(missing)))
        try:
            waiting = {pool.submit(self._get, name, size) for name, size in missing.items()}
            while waiting:
                finished, waiting = wait(waiting, SECONDS, "FIRST_COMPLETED")
                with translated(str(self.source)):
                    for future in finished:
                        future.result()
                if self.progress is not None:
                    self.progress("download", min(sum(self.done.values()), total), total)
        finally:
            self.stopped.set()  # whoever is still at it is no longer wanted: an error, or Ctrl-C
            pool.shutdown(cancel_futures=True)
            self.stopped.clear()

    def _get(self, name: str, size: int) -> None:
        def count(nbytes: int) -> None:
            if self.stopped.is_set():
                raise InterruptedError
            self.done[name] += nbytes

        hub = load_library()
        hub.hf_hub_download(self.source.repository, name, revision=self.root.name, tqdm_class=_bar(count))
        self.done[name] = size

    def _refuse_full_disk(self, nbytes: int) -> None:
        free = shutil.disk_usage(self.root).free
        if free < nbytes:
            raise HubError(
                f"{self.source} takes {nbytes} bytes of the hub's cache, whose disk has {free}; "
                "free some, or let HF_HUB_CACHE name a larger disk"
            )


def _ignore(_nbytes: int) -> None:
    """Count nothing."""


def _bar(count: Callable[[int], None]) -> Any:
    """A class for the library's progress bars which draws nothing and counts what comes in."""
    bar: Any = load_library().utils.tqdm

    class Counter(bar):  # type: ignore[misc]  # untyped base
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})
            count(int(kwargs.get("initial") or 0))

        def update(self, n: float | None = 1) -> None:
            count(int(n or 0))

    return Counter
