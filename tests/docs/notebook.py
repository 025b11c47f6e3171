"""The notebooks, run: ``python -m tests.docs.notebook`` writes them with the outputs of a new database."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import nbformat
from nbclient import NotebookClient

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbformat import NotebookNode

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICKSTART, TRAINING = EXAMPLES / "quickstart.ipynb", EXAMPLES / "training.ipynb"
INFERENCE, FUSION = EXAMPLES / "inference.ipynb", EXAMPLES / "fusion.ipynb"
SECONDS = 240


def run(folder: Path, path: Path = QUICKSTART, edits: Mapping[str, str] = MappingProxyType({})) -> NotebookNode:
    """A notebook with new outputs, from a kernel of this interpreter that works in ``folder``.

    Only what a page shows is kept, and nothing of the run: no times, no warnings of what is installed here, and of an
    output in HTML no other form.
    """
    notebook = nbformat.read(path, as_version=4)
    for before, after in edits.items():
        assert any(before in cell.source for cell in notebook.cells), before
        for cell in notebook.cells:
            cell.source = cell.source.replace(before, after)
    NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                del output.data["text/plain"]
    return notebook


def printed(notebook: NotebookNode) -> list[str]:
    """What each cell prints or gives as text; a kernel may cut what is printed anywhere."""
    cells = [cell.get("outputs", []) for cell in notebook.cells]
    return ["".join(each.get("text") or each["data"].get("text/plain", "") for each in outputs) for outputs in cells]


def shown(notebook: NotebookNode) -> str:
    """What the cells give as HTML, without its tags."""
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return re.sub(r"<[^>]+>", " ", " ".join(data.get("text/html", "") for data in outputs))


def main() -> None:
    """Write the notebooks as a user without a server sees them; all but the first need torch and transformers."""
    for path in (QUICKSTART, TRAINING, INFERENCE, FUSION):
        with tempfile.TemporaryDirectory(prefix="arc-halo-notebook-", ignore_cleanup_errors=True) as home:
            os.environ |= {"ARC_HALO_HOME": home, "ARC_HALO_DATABASE_URL": "", "DATABASE_URL": ""}
            nbformat.write(run(Path(home), path), path)


if __name__ == "__main__":
    main()
