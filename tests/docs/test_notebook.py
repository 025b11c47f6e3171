"""The quickstart notebook runs from top to bottom, and shows what it showed when it was written."""

from __future__ import annotations

import re
from itertools import pairwise

import nbformat
import pytest

from arc_halo import connect, find_model
from tests.docs.notebook import QUICKSTART, printed, run, shown


@pytest.fixture(scope="module")
def written():
    return nbformat.read(QUICKSTART, as_version=4)


def test_it_runs_and_prints_what_it_printed_before(reader, written):
    read = run(reader.folder)
    assert printed(read) == printed(written), "run `python -m tests.docs.notebook`"
    assert "1,262,720 parameters" in shown(read)
    assert re.search(r"Ġclient +0\.62", shown(read))
    assert "quickstart@1 → quickstart@2" in shown(read)
    assert re.search(r"block 2 ( 0)+.* block 3 +\S*e-\S", shown(read))
    with connect() as database, database.session() as session:
        assert find_model(session, "quickstart@candidate").version == "2"


def test_what_went_in_came_out(written):
    digests = [line for line in "".join(printed(written)).splitlines() if "..." in line]
    assert len(digests) == 6
    assert all(line.endswith("equal") for line in digests)


def test_every_cell_is_introduced(written):
    kinds = [cell.cell_type for cell in written.cells]
    assert all(before == "markdown" for before, kind in pairwise(kinds) if kind == "code")


def test_it_names_no_machine(written):
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|work)/", nbformat.writes(written))
