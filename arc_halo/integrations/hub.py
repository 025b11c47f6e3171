"""Models out to the Hugging Face hub, in one commit each; the extra ``hub``."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from arc_halo.errors import InvalidName
from arc_halo.formats.folder import INDEX_SUFFIX, SUFFIX
from arc_halo.formats.hub import FILE_SUFFIXES, HubSource, parse_source
from arc_halo.formats.hub_errors import load_library, translated
from arc_halo.registry import find_model
from arc_halo.registry.cards import ATTRIBUTES_NAME, CARD_NAME, export_repository
from arc_halo.schema import Model, ModelFile

if TYPE_CHECKING:
    import os
    import uuid
    from collections.abc import Collection, Iterator

    from arc_halo.database import Database
    from arc_halo.store import Progress


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did: the commit, and the files that it added or replaced, and deleted."""

    repository: str
    commit: str
    added: tuple[str, ...]
    deleted: tuple[str, ...]


def push_model(
    database: Database,
    model: Model | uuid.UUID | str,
    target: str,
    *,
    private: bool = True,
    message: str | None = None,
    max_shard_nbytes: int | None = None,
    progress: Progress | None = None,
) -> Pushed:
    """Upload a model as one commit of a repository of the hub, which is made if it is not there.

    The files wait in a temporary folder (in ``TMPDIR``), so no transaction waits for the hub. Safetensors files that
    the repository has beside new ones, which would make it two models, are deleted by the same commit; a GGUF file is
    added beside whatever there is. A card that the repository has stays, unless the model was imported with one.

    Parameters
    ----------
    target
        ``hf://ORG/NAME[@BRANCH][/FOLDER]``.
    private
        Of a repository that is made; one that is there stays what it is.
    message
        Of the commit.
    max_shard_nbytes
        As in `export_model`.

    Raises
    ------
    ModelNotFound
        There is no such model.
    HubError
        The hub does not know the token, or it may not write there; the branch is not there; no answer; or somebody
        else has committed meanwhile.

    Examples
    --------
    >>> push_model(db, "minilm@2", "hf://lab/minilm")  # doctest: +SKIP
    """
    source = parse_source(target)
    load_library()
    with TemporaryDirectory(prefix="arc-halo-push-") as folder:
        with database.session() as session:
            found = find_model(session, model)
            said = message or f"Upload {found.name}@{found.version}"
            export_repository(session, found, folder, max_shard_nbytes=max_shard_nbytes, progress=progress)
            own = session.scalars(select(ModelFile.path).where(ModelFile.model_id == found.id)).all()
        kept = {CARD_NAME, ATTRIBUTES_NAME}.difference(own)
        return push_folder(folder, source, private=private, message=said, kept=kept)


def push_folder(
    folder: str | os.PathLike[str],
    target: HubSource | str,
    *,
    message: str,
    private: bool = True,
    kept: Collection[str] = (),
) -> Pushed:
    """Upload a folder as `export_repository` writes it, as one commit.

    Parameters
    ----------
    kept
        Files that stay as they are if the repository has them.

    Raises
    ------
    HubError
        As in `push_model`.
    """
    source = parse_source(target) if isinstance(target, str) else target
    if source.path.endswith(FILE_SUFFIXES):
        raise InvalidName(f"{source} is a file; give hf://ORG/NAME[@BRANCH][/FOLDER]")
    hub = load_library()
    api, prefix = hub.HfApi(), f"{source.path}/" if source.path else ""
    files = {prefix + path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
    with translated(str(source)), _silent(hub):
        api.create_repo(source.repository, private=private, exist_ok=True)
        info = api.model_info(source.repository, revision=source.revision)
        there = {file.rfilename for file in info.siblings or ()}
        added = sorted(name for name in files if not (name in there and name.removeprefix(prefix) in kept))
        # A GGUF file beside safetensors is another copy of a model, as in `open_model`: it takes nobody's place.
        takes_their_place = any(_is_weights_in(prefix, name) for name in files)
        deleted = sorted(name for name in there - files.keys() if takes_their_place and _is_weights_in(prefix, name))
        commit = api.create_commit(
            source.repository,
            [
                *(hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=files[name]) for name in added),
                *(hub.CommitOperationDelete(path_in_repo=name) for name in deleted),
            ],
            commit_message=message,
            revision=source.revision,
            parent_commit=info.sha,
        )
    return Pushed(source.repository, commit.oid, tuple(added), tuple(deleted))


def _is_weights_in(prefix: str, name: str) -> bool:
    inside = name.removeprefix(prefix)
    return name.startswith(prefix) and "/" not in inside and inside.endswith((SUFFIX, INDEX_SUFFIX))


@contextmanager
def _silent(hub: Any) -> Iterator[None]:
    """Without the library's progress bars, which have no other switch on this way."""
    if hub.utils.are_progress_bars_disabled():
        yield
        return
    hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        hub.utils.enable_progress_bars()
