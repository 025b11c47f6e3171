"""The notebook of what is computed once does what it says."""

from __future__ import annotations

import re
from itertools import pairwise

import nbformat
import pytest
import transformers

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
    r"0 tokens of the prompt\nactivations: None\nanswer: None\nswept \d+ blocks, 2 activations, 1 answer",
)


@pytest.fixture(scope="module")
def written():
    return nbformat.read(INFERENCE, as_version=4)


def check(notebook):
    said = "".join(printed(notebook))
    assert [each for each in SAID if not re.search(each, said)] == []
    assert re.search(r"talk 10 5000 0\.8", re.sub(r"\s+", " ", shown(notebook)))


def test_what_was_computed_is_served_until_it_is_not_the_same(reader):
    assert transformers.__version__  # its cells need it
    check(run(reader.folder, INFERENCE))


def test_it_is_kept_with_its_outputs_and_names_no_machine(written):
    check(written)
    outputs = [output for cell in written.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    kinds = [cell.cell_type for cell in written.cells]
    assert all(before == "markdown" for before, kind in pairwise(kinds) if kind == "code")
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|work)/", nbformat.writes(written))
