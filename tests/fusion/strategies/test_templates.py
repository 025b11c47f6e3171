"""Templates have the places that are known, and what fills one is not looked into."""

import pytest

from arc_halo.errors import FusionError
from arc_halo.fusion.strategies import strategy_named
from arc_halo.fusion.strategies.judging import listed
from arc_halo.fusion.strategies.templates import filled


def test_what_fills_a_place_is_not_looked_into():
    assert filled("{prompt} {answer}", prompt="{answer}", answer="{x}") == "{answer} {x}"
    assert filled("{answers} {question}", question="{answers}", answers=listed(["{question}", "b"])) == (
        "[1] {question}\n\n[2] b {answers}"
    )
    with pytest.raises(FusionError, match=r"no place \{nothing\}"):
        filled("{nothing}", prompt="")


@pytest.mark.parametrize(
    ("strategy", "option"),
    [
        ("ensemble", "order_template"),
        ("ensemble", "mark_template"),
        ("parallel", "choice_template"),
        ("parallel", "synthesis_template"),
        ("hierarchical", "context"),
        ("hierarchical", "feed"),
        ("hierarchical", "verdict"),
        ("hierarchical", "feedback"),
    ],
)
def test_a_template_with_a_place_that_nothing_fills_is_refused_before_anybody_is_asked(strategy, option):
    with pytest.raises(FusionError, match=rf"{option} has no place \{{nothing\}}"):
        strategy_named(strategy).of({option: "{nothing}"})
    assert getattr(strategy_named(strategy).of({option: '{"best": 1}'}), option)
