"""``arc-halo attention``."""

from __future__ import annotations

import numpy as np
import pytest

from arc_halo.database import connect
from arc_halo.inference.attention import put_attention
from arc_halo.schema import InferenceSession
from tests.inference.patterns import add_served, attention, looking_at
from tests.schema.rows import add

PLACES = ([0] * 4, [0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 3])


@pytest.fixture
def served(migrated_url):
    """The id of a session with one request, of which heads of block 0 look at one place each."""
    with connect(migrated_url) as database, database.session() as session:
        served = add_served(session)
        layers = {0: np.stack([looking_at(each) for each in PLACES]), 1: attention(4, 4)}
        put_attention(session, served, 0, [1, 2, 1, 2], layers)
        add(session, InferenceSession(model=served.model))
        session.commit()
        return str(served.id)


def test_heads_are_shown_with_what_they_do(arc_halo, served):
    for source in ("gpt", "gpt@1", served):
        lines = arc_halo.says("attention", "show", source).splitlines()
        assert lines[0].split()[:5] == ["layer", "head", "requests", "entropy", "distance"]
        assert len(lines) == 9
    assert lines[3].split()[1:] == ["2", "1", "0.000", "0.50", "25.0%", "66.7%", "100.0%"]


def test_heads_are_sorted_and_chosen(arc_halo, served):
    heads = arc_halo.json("attention", "show", served, "--sort", "previous", "--layer", "0")
    assert [head["head_index"] for head in heads] == [1, 2, 0, 3]
    assert heads[0] | {"layer_path": ""} == {
        "layer_path": "", "layer_index": 0, "head_index": 1, "request_count": 1, "entropy": 0.0, "distance": 0.75,
        "first": 0.5, "previous": 1.0, "induction": 1.0,
    }  # fmt: skip
    assert len(arc_halo.json("attention", "show", "gpt", "--layer", heads[0]["layer_path"])) == 4


def test_all_heads_are_drawn(arc_halo, served, tmp_path):
    path = tmp_path / "heads.svg"
    assert f"drawn in {path}" in arc_halo.says("attention", "show", served, "--sort", "induction", "--plot", path)
    assert path.stat().st_size > 1000


def test_sessions_are_told_apart_by_their_ids(arc_halo, served):
    assert len(arc_halo.json("attention", "show", served[:-1])) == 8
    said = arc_halo.error("attention", "show", served[:8])
    assert said.startswith(f"error: several ids begin with '{served[:8]}': ")
    assert served in said


@pytest.mark.usefixtures("served")
def test_what_is_not_there_is_said(arc_halo, stored, tmp_path):
    assert arc_halo.says("attention", "show", "m").startswith("no attention is stored of it")
    assert "no model 'x'" in arc_halo.error("attention", "show", "x")
    assert "block 7" in arc_halo.error("attention", "show", "gpt", "--layer", 7)
    for wrong in (["--sort", "size"], ["--plot", tmp_path / "heads.txt"], ["--plot", tmp_path / "no" / "heads.png"]):
        arc_halo.run("attention", "show", "gpt", *wrong, code=2)
    assert stored is arc_halo
