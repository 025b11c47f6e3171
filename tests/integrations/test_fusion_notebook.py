"""The notebook of models that answer as one does what it says."""

from __future__ import annotations

import re
from itertools import pairwise

import nbformat
import pytest
import transformers

from tests.docs.notebook import FUSION, printed, run, shown
from tests.docs.reader import reader

__all__ = ["reader"]

SAID = (
    r"each is the best at its own: True",
    r"asked member english\nanswered member english\nnoted member english",
    r"every pool is better than the best alone: True",
    r"120 questions",
    r"the cascade made \d+ calls, surest 360",
    r"the same: True\nchanged since: \(\)",
    r"True\n\['cpp', 'python'\] is archived",
)


@pytest.fixture(scope="module")
def written():
    return nbformat.read(FUSION, as_version=4)


def check(notebook):
    said = "".join(printed(notebook))
    assert [each for each in SAID if not re.search(each, said)] == []
    assert re.search(r"Operation [\da-f-]{36}", shown(notebook))


def test_it_says_so_and_runs_again_on_the_same_database(reader):
    assert transformers.__version__  # its cells need it
    check(run(reader.folder, FUSION))
    again = run(reader.folder, FUSION, {"STEPS, CONTEXT = 500,": "STEPS, CONTEXT = 20,"})  # sooner trained, no better
    assert "the same: True\nchanged since: ()" in "".join(printed(again))


def test_it_is_kept_with_its_outputs_and_names_no_machine(written):
    check(written)
    outputs = [output for cell in written.cells for output in cell.get("outputs", [])]
    assert any("<img alt=" in output.get("data", {}).get("text/html", "") for output in outputs)
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    kinds = [cell.cell_type for cell in written.cells]
    assert all(before == "markdown" for before, kind in pairwise(kinds) if kind == "code")
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|work)/", nbformat.writes(written))
