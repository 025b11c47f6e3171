"""The notebook of what is computed once does what it says."""

from __future__ import annotations

import re
from itertools import pairwise

import nbformat
import pytest
import transformers
from sqlalchemy import select

from arc_halo import connect
from arc_halo.schema import Model
from tests.docs.notebook import INFERENCE, printed, run, shown
from tests.docs.reader import reader

__all__ = ["reader"]

SAID = (
    r"registered: True",
    r"first: 0 of 1,000 tokens from the cache\nagain: 999 of 1,000 tokens from the cache\nequal answers: True",
    r"first token after \d+ ms computed, \d+ ms read\nbreak-even [\d,]+ MB/s, read at [\d,]+ MB/s: read",
    r"700 tokens are there",
    r"changed: 0 tokens; torch counts 0 changes\nput back: 999 tokens",
    r"computing\n\{'model.layers.1'.*\}\n\{'model.layers.1'.*\}\n",
    r"computing\nis new\nwas there",
    r"before: 999 tokens of the prompt, activations \(1, 200, 128\), answer '.*'\n",
    r"after: 0 tokens of the prompt, activations None, answer None\nswept [1-9]\d* blocks, 3 activations, 1 answer",
)


@pytest.fixture(scope="module")
def written():
    return nbformat.read(INFERENCE, as_version=4)


def check(notebook):
    said = "".join(printed(notebook))
    assert [each for each in SAID if not re.search(each, said)] == []
    assert re.search(r"talk 10 5000 0\.8", re.sub(r"\s+", " ", shown(notebook)))


def test_it_says_the_same_in_a_second_run_on_the_same_database(reader):
    assert transformers.__version__  # its cells need it
    check(run(reader.folder, INFERENCE))
    check(run(reader.folder, INFERENCE))
    with connect(reader.url) as database, database.session() as session:
        versions = session.scalars(select(Model).where(Model.name == "helper")).all()
        assert [version.status == "archived" for version in versions] == [False, False]
        assert len({version.weights_digest for version in versions}) == 2


def test_it_is_kept_with_its_outputs_and_names_no_machine(written):
    check(written)
    outputs = [output for cell in written.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    kinds = [cell.cell_type for cell in written.cells]
    assert all(before == "markdown" for before, kind in pairwise(kinds) if kind == "code")
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|work)/", nbformat.writes(written))
