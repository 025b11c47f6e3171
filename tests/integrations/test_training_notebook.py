"""The notebook of a run that is killed does what it says."""

from __future__ import annotations

import re
from itertools import pairwise

import nbformat
import torch

from tests.docs.notebook import TRAINING, printed, run
from tests.docs.reader import reader

__all__ = ["reader"]


def test_a_run_that_is_killed_is_one_line(reader):
    assert torch.__version__  # its programs need it
    said = "".join(printed(run(reader.folder, TRAINING)))
    assert "-9" in said
    assert re.search(r"killed from step 60 to 119\nstraight from step 0 to 119", said)
    assert "120 steps by attempts [1, 2]\nequal losses: True\nL2 by 120 points and 3 checkpoints" in said


def test_it_is_kept_with_its_outputs_and_names_no_machine():
    written = nbformat.read(TRAINING, as_version=4)
    assert "equal losses: True" in "".join(printed(written))
    kinds = [cell.cell_type for cell in written.cells]
    assert all(before == "markdown" for before, kind in pairwise(kinds) if kind == "code")
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|work)/", nbformat.writes(written))
