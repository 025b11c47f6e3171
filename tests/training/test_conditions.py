from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import MetricError
from arc_halo.training.conditions import FIGURES, OPERATORS, Condition, Figure, parse_condition, parse_figure

NAMES = st.text(st.characters(categories=("L", "N"), include_characters='/_-. {}":'), min_size=1).filter(
    lambda name: name == name.strip() and name.isprintable()
)


@given(NAMES, st.sampled_from(FIGURES), st.sampled_from(OPERATORS), st.floats(allow_nan=False))
def test_a_condition_is_read_as_it_is_written(name, figure, operator, value):
    condition = Condition(Figure(name, figure), operator, value)
    assert parse_condition(str(condition)) == condition


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("loss<2.5", Condition(Figure("loss"), "<", 2.5)),
        (" validation/loss  >=  1e-3 ", Condition(Figure("validation/loss"), ">=", 1e-3)),
        ("last(top(5)) > 1", Condition(Figure("top(5)"), ">", 1.0)),
        ("max(grad norm) == inf", Condition(Figure("grad norm", "max"), "=", float("inf"))),
        ('best(train/f1 {"k": 1}) > .5', Condition(Figure('train/f1 {"k": 1}', "best"), ">", 0.5)),
    ],
)
def test_conditions(text, condition):
    assert parse_condition(text) == condition


@pytest.mark.parametrize("text", ["", "loss", "loss <", "< 2", "loss < two", "loss << 2", "loss < 2 3", "lo\0ss < 2"])
def test_what_is_no_condition(text):
    with pytest.raises(MetricError, match="write"):
        parse_condition(text)


@pytest.mark.parametrize("text", ["", "  ", "a\0", "bogus(loss)", "mean(validation/loss)", "best()", "best( )"])
def test_what_is_no_figure(text):
    with pytest.raises(MetricError, match="write"):
        parse_figure(text)


@given(st.text())
def test_any_text_is_read_or_refused(text):
    try:
        parse_condition(text)
    except MetricError:
        return
    assert any(operator in text for operator in OPERATORS)
