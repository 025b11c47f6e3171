"""Strategies of others come by entry point."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest

from arc_halo.errors import FusionError
from arc_halo.fusion.strategies import Fused, Strategy, known, strategies, strategy_named
from tests.fusion.reactors import make_reactor


@dataclass(frozen=True)
class Loudest(Strategy):
    """The longest answer."""

    name: ClassVar[str] = "loudest"
    mark: str = "!"

    def fuse(self, operation):
        calls = operation.ask_all((member, operation.question()) for member in operation.members)
        return Fused(max((call.text for call in calls), key=len) + self.mark)


class Twin(Loudest):
    name: ClassVar[str] = "parallel"


@pytest.fixture
def bring(monkeypatch):
    def brought(value):
        entry = EntryPoint("any", f"tests.fusion.strategies.test_known:{value}", known.GROUP)
        monkeypatch.setattr(known, "entry_points", lambda group: [entry] if group == known.GROUP else [])
        strategies.cache_clear()

    yield brought
    monkeypatch.undo()
    strategies.cache_clear()


def test_a_strategy_of_others_runs_as_ours_do(database, bring):
    bring("Loudest")
    reactor = make_reactor(database, {"a": "x", "b": "xyz"}, strategy="loudest", config={"options": {"mark": "?"}})
    assert reactor.run("?").text == "xyz?"


@pytest.mark.parametrize(("value", "message"), [("make_reactor", "is no Strategy"), ("Twin", "two strategies")])
def test_what_is_none_is_refused(bring, value, message):
    bring(value)
    with pytest.raises(FusionError, match=message):
        strategies()


def test_all_of_ours_are_there():
    assert sorted(strategies()) == ["cascade", "ensemble", "hierarchical", "parallel", "routing", "speculative"]
    with pytest.raises(FusionError, match="there are cascade"):
        strategy_named("council")
