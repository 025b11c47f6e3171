"""The hub's view of a model: a repository's folder, with a card that says what is known of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from arc_halo.formats.folder import SUFFIX
from arc_halo.formats.gguf import SUFFIX as GGUF_SUFFIX
from arc_halo.registry.exporting import export_model, write_side_file
from arc_halo.registry.naming import find_model
from arc_halo.registry.origins import origin_of
from arc_halo.registry.reading import weights_of
from arc_halo.schema import Model, ModelLineage

if TYPE_CHECKING:
    import os
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.store import Progress


CARD_NAME: Final = "README.md"
ATTRIBUTES_NAME: Final = ".gitattributes"
ATTRIBUTES: Final = b"".join(
    b"*%s filter=lfs diff=lfs merge=lfs -text\n" % suffix.encode() for suffix in (SUFFIX, GGUF_SUFFIX)
)
# What the hub calls the ways of model_lineage that it knows.
_RELATIONS: Final = {"finetune": "finetune", "merge": "merge", "quantize": "quantized"}


def export_repository(
    session: Session,
    model: Model | uuid.UUID | str,
    folder: str | os.PathLike[str],
    *,
    max_shard_nbytes: int | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a model as a repository of the hub: its files, ``.gitattributes``, and a card if it was imported without.

    A card and attributes that are in the folder already stay as they are.

    Parameters
    ----------
    max_shard_nbytes
        As in `export_model`.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ModelNotFound, CorruptionError, ModelFolderError
        As `export_model` does.
    """
    found = find_model(session, model)
    written = export_model(session, found, folder, max_shard_nbytes=max_shard_nbytes, progress=progress)
    for name in (CARD_NAME, ATTRIBUTES_NAME):
        if not (Path(folder) / name).exists():
            content = ATTRIBUTES if name == ATTRIBUTES_NAME else write_card(session, found).encode()
            written.append(write_side_file(Path(folder), name, content))
    return written


def write_card(session: Session, model: Model) -> str:
    """A card in Markdown: what the model is, its digest, and what it was made from."""
    made_from = select(ModelLineage).where(ModelLineage.child_id == model.id).options(joinedload(ModelLineage.parent))
    links = session.scalars(made_from.order_by(ModelLineage.created_at, ModelLineage.id)).all()
    parts = [_front_matter(model, links), f"# {_plain(model.name)}", _summary(session, model)]
    if links:
        made = [f"- {link.kind} of {_code(f'{link.parent.name}@{link.parent.version}')}" for link in links]
        parts += ["## Lineage", "\n".join(made)]
    return "\n\n".join(parts) + "\n"


def _front_matter(model: Model, links: Sequence[ModelLineage]) -> str:
    said: dict[str, Any] = {"tags": ["arc-halo", model.model_type]}
    if model.architecture_config.get("architectures"):
        said["library_name"] = "transformers"
    bases = [(link.kind, origin["source"]) for link in links if (origin := origin_of(link.parent))]
    if bases:
        said["base_model"] = [source.removeprefix("hf://") for _, source in bases]
    if bases and bases[0][0] in _RELATIONS:
        said["base_model_relation"] = _RELATIONS[bases[0][0]]
    # JSON is YAML, and nothing in a name can break out of it.
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in said.items()), "---"])


def _summary(session: Session, model: Model) -> str:
    weights = weights_of(session, model)
    parameters = session.scalar(select(Model.parameter_count).where(Model.id == model.id)) or 0
    rows: Mapping[str, str] = {
        "version": _code(model.version),
        "architecture": _code(model.model_type),
        "parameters": f"{parameters:,}",
        "tensors": f"{len(weights):,}",
        "types": ", ".join(sorted({weight.tensor.dtype for weight in weights})),
        "digest of the weights (BLAKE3-256, Merkle root)": _code((model.weights_digest or b"").hex()),
    }
    if origin := origin_of(model):
        rows = {**rows, "imported from": f"{_code(origin['source'])}, commit {_code(origin['commit'])}"}
    table = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    return "Exported from an Arc-Halo database.\n\n" + "\n".join(table)


def _plain(text: str) -> str:
    """Text that Markdown takes for nothing else."""
    return "".join(f"\\{each}" if each in "\\`*_{}[]<>#|&" else each for each in text)


def _code(text: str) -> str:
    """Text as code in a table's cell, on one line."""
    text = "".join(each if each.isprintable() else " " for each in text)
    return f"`{text.replace('`', chr(39)).replace('|', chr(92) + '|')}`"
