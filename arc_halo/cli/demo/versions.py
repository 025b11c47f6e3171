"""Further versions of a model: tuned, compared, quantised, and what the family takes."""

# ruff: noqa: PLC0415  (commands import what is heavy when they run, so that --help is fast)

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from arc_halo.cli.demo.step import step
from arc_halo.cli.model.looking import print_family, print_layers, read_family
from arc_halo.cli.output import count, say, shown, size
from arc_halo.cli.progress import progress_bars
from arc_halo.errors import ModelFolderError, NotFound

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.schema import Model

_NOISE: Final = 0.003
_LAYERS: Final = 6


def perturb(session: Session, model: Model, exported: Path, folder: Path) -> Path:
    """A copy of an export with noise on the matrices of its upper blocks, where their bytes lie."""
    import numpy as np

    from arc_halo.formats.hf import open_model
    from arc_halo.registry import iter_tensors

    shutil.copytree(exported, folder)
    random = np.random.default_rng()
    with open_model(folder) as opened:
        places = {
            name: (file.path, file.tensors[name].offset) for file in opened.weights.values() for name in file.tensors
        }
    for name, array in iter_tensors(session, model, _upper_matrices(session, model)):
        noise = 1 + _NOISE * random.standard_normal(array.shape, np.float32)
        path, offset = places[name]
        with path.open("r+b") as file:
            file.seek(offset)
            file.write((array.astype(np.float32) * noise).astype(array.dtype).tobytes())
    return folder


def _upper_matrices(session: Session, model: Model) -> list[str]:
    """Names of the matrices of the upper half of the blocks; of a model without blocks one tensor in the middle."""
    from arc_halo.dtypes import by_name
    from arc_halo.registry import find_model

    weights = [each for each in find_model(session, model.id).weights if each.tensor.std]
    weights = [each for each in weights if by_name(each.tensor.dtype).numpy is not None]
    if not weights:
        raise ModelFolderError(f"{model.name} has no floating-point tensor to change; give the demo another model")
    matrices = [each for each in weights if each.category == "weight" and len(each.tensor.shape) > 1] or weights
    blocks = {each.name: each.layer.layer_index for each in matrices if each.layer is not None}
    numbers = sorted({number for number in blocks.values() if number is not None})
    upper = set(numbers[len(numbers) // 2 :])
    return [name for name, number in blocks.items() if number in upper] or [matrices[len(matrices) // 2].name]


def second_version(database: Database, model: Model, folder: Path) -> Model:
    """Import the tuned copy."""
    from arc_halo.registry import find_model, import_model, measure_storage

    with step(
        "8  A second version",
        "The matrices of the upper blocks move by 0.3 %, as if tuned. Equal tensors are shared with the first version, "
        "the others are stored as differences from it.",
    ):
        with progress_bars(silent=False) as progress:
            second = database.transaction(
                lambda session: import_model(session, folder, name=model.name, parent=model.id, progress=progress)
            )
        with database.session() as session:
            storage = measure_storage(session, find_model(session, second.id))
        say(
            (f"{shown(second.name)}@{shown(second.version)}", "bold"),
            f": {size(storage.raw_nbytes)} as a file; it adds ",
            (size(storage.own_nbytes), "bold"),
            f" ({storage.own_nbytes / storage.raw_nbytes:.1%}) to the database",
        )
    return second


def compare(session: Session, model: Model, second: Model, folder: Path | None) -> None:
    """How far each layer moved, as a table and as a picture."""
    from arc_halo.registry import compare_models

    with step("9  What moved", "Only chunks that differ are read. Distances are in units of the first one's norm."):
        with progress_bars(silent=False) as progress:
            comparison = compare_models(session, model.id, second.id, values=True, progress=progress)
        print_layers(comparison, _LAYERS)
        picture = (folder or Path(tempfile.mkdtemp(prefix="arc-halo-demo-"))) / "moved.html"
        picture.write_text(comparison.heat_map().to_html(), encoding="utf-8")
        differ = "differs" if len(comparison.differences) == 1 else "differ"
        say(f"{count(len(comparison.differences), 'tensor')} {differ}, {comparison.equal_count:,} are equal")
        say("heat map of all: ", (shown(str(picture)), "bold"))


def quantize(database: Database, model: Model) -> Model | None:
    """Make a version with codes of 8 bits, if it has matrices that are quantised by default."""
    from arc_halo.registry import quantize_model

    with step("10  Eight bits", "int8 codes for the matrices of its blocks; the error of each is measured and kept."):
        version = f"{model.version}-int8"
        try:
            with progress_bars(silent=False) as progress:
                quantized = database.transaction(
                    lambda session: quantize_model(session, model.id, "int8", version=version, progress=progress)
                )
        except NotFound as error:
            say(shown(str(error)))
            return None
        with database.session() as session:
            _tell_errors(session, quantized)
    return quantized


def _tell_errors(session: Session, model: Model) -> None:
    from sqlalchemy import select

    from arc_halo.registry import find_model, measure_storage
    from arc_halo.schema import ModelLineage

    recipe = session.scalars(select(ModelLineage.recipe).filter_by(child_id=model.id)).one()
    errors = list(recipe["tensors"].values())
    before, after = (sum(each[f"nbytes_{when}"] for each in errors) for when in ("before", "after"))
    stored = measure_storage(session, find_model(session, model.id)).own_nbytes
    cosines = [each["cosine"] for each in errors if each["cosine"] is not None]
    say(
        (f"{shown(model.name)}@{shown(model.version)}", "bold"),
        f": {count(len(errors), 'tensor')} of {size(before)} became codes and scales of {size(after)}",
    )
    worst = min(cosines, default=1.0)
    say("stored in ", (size(stored), "bold"), "; the worst cosine of a tensor is ", (f"{worst:.6f}", "bold"))


def show_family(session: Session, model: Model) -> None:
    """What each version added."""
    with step("12  A family", "Each version below the one it was made from; added is what it cost."):
        print_family(read_family(session, model.id))
