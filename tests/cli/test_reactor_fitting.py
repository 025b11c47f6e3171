"""``arc-halo reactor fit``."""

import json

import pytest
import typer
from typer.testing import CliRunner

from arc_halo.cli.application import RootGroup, root
from arc_halo.cli.reactor import fitting
from arc_halo.database import connect
from arc_halo.fusion.plan import load_plan
from arc_halo.fusion.reactor import Reactor
from tests.fusion.learning.test_fitting import ask, make

application = typer.Typer(cls=RootGroup)
application.callback()(root)
application.add_typer(fitting.app, name="reactor")


@pytest.fixture
def run(migrated_url):
    def run(*words, code=0):
        url = migrated_url.render_as_string(hide_password=False)
        result = CliRunner().invoke(application, ["--url", url, "reactor", "fit", *words])
        assert result.exit_code == code, result.output
        return result

    return run


def test_votes_are_shown_and_written(database, run):
    ask(make(database, {"often": 0.95, "never": 0.1}, strategy="ensemble"))
    shown = run("reactor", "--what", "votes").stdout
    assert "nothing was written" in shown
    assert "often" in shown
    said = json.loads(run("reactor", "--what", "votes", "--apply", "--json").stdout)
    assert said["is_applied"]
    with connect(database.url) as other, other.session() as session:
        assert {each.name: each.weight for each in load_plan(session, "reactor").members} == said["after"]


def test_thresholds_and_routes_are_shown(database, run):
    ask(make(database, {"cheap": 0.7, "dear": 0.98}))
    assert "cost" in run("reactor", "--what", "thresholds", "--least-quality", "0.8").stdout
    options = {"options": {"method": "bandit", "epsilon": 0.5}}
    ask(make(database, {"good": 0.9, "bad": 0.2}, strategy="routing", config=options, name="router"))
    shown = run("router", "--what", "routes").stdout
    assert "always bad" in shown
    assert "left out" not in shown
    router = Reactor(database, "router", {"good": lambda prompt: prompt, "bad": lambda prompt: prompt})
    router.run("nobody knows the answer")
    shown = " ".join(run("router", "--what", "routes").stdout.split())
    assert "left out: 1 operation whose quality is not known, 0 of them without an answer" in shown
    said = json.loads(run("router", "--what", "routes", "--json").stdout)
    assert {each["unmeasured_count"] for each in said} == {1}
    assert [each["policy"] for each in said] == ["greedy", "always good", "always bad"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["reactor", "--what", "routes", "--apply"], 2, "nothing to apply"),
        (["reactor", "--what", "votes", "--most-cost", "1"], 2, "thresholds"),
        (["reactor", "--what", "votes"], 1, "tell qualities"),
        (["nobody", "--what", "votes"], 1, "nobody"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(database, run, words, code, message):
    ask(make(database, {"a": 0.9, "b": 0.5}), 3)
    result = run(*words, code=code)
    assert message in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output
