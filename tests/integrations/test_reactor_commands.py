"""``arc-halo reactor run`` and ``replay`` with models straight out of the database."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
import transformers

from arc_halo import connect
from arc_halo.registry import import_model
from tests.cli.command_line import arc_halo

__all__ = ["arc_halo"]

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is not ours

FOLDER = Path(str(files("arc_halo"))) / "demo_model"
PROMPT = "Return a list of the names in the current local scope. If an object is given, return"


@pytest.fixture
def reactor(arc_halo, migrated_url):
    """Two members of the demo model."""
    with connect(migrated_url) as database:
        database.transaction(lambda session: import_model(session, FOLDER, name="demo", embeddings=False).id)
    arc_halo.run("reactor", "create", "answers", "--strategy", "ensemble")
    for name, weight in (("first", 1), ("second", 0.5)):
        arc_halo.run("reactor", "add", "answers", name, "--model", "demo@1", "--weight", weight)
    return "answers"


def test_models_answer_and_answer_the_same_again(arc_halo, reactor):
    assert transformers.__version__  # its members need it
    first = json.loads(arc_halo.run("reactor", "run", reactor, PROMPT, "--seed", 1, "--json").stdout)
    assert first["status"] == "completed"
    assert first["text"]
    for words in ([], ["--recorded"]):
        again = json.loads(arc_halo.run("reactor", "replay", reactor, "last", *words, "--json").stdout)
        assert again["is_equal"]
        assert again["answers_are_equal"] == [True, True]
        assert again["outcome"]["text"] == first["text"]


def test_what_happens_is_told_beside_the_answer(arc_halo, reactor):
    done = arc_halo.run("reactor", "run", reactor, PROMPT, "--seed", 1)
    assert "loading demo@1 for first" in done.stderr
    assert "second answered" in done.stderr
    assert "loading" not in done.stdout
    replayed = arc_halo.run("reactor", "replay", reactor, "last").stdout
    assert replayed.startswith("the same: output equal, decisions equal, 2 of 2 calls equal")


def test_a_template_is_asked_for_by_an_option(arc_halo, reactor):
    arc_halo.run("reactor", "add", reactor, "chatting", "--model", "demo@1", "--chat-template")
    assert "no chat template" in arc_halo.run("reactor", "run", reactor, PROMPT, code=1).output
    refused = arc_halo.run("reactor", "add", reactor, "far", "--endpoint", "far", "--chat-template", code=2)
    assert "an endpoint has its own" in " ".join(refused.output.replace("│", " ").split())
