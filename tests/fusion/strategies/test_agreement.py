"""Which answers say the same, and how judges' words are read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import FusionError
from arc_halo.fusion.strategies.agreement import check_expression, first_of_best, normalized, weights_that_count
from arc_halo.fusion.strategies.judging import parse_mark, parse_order
from tests.fusion.reactors import make_reactor


@pytest.mark.parametrize(
    ("text", "extract", "answer"),
    [
        ("  Straße\n9 ", None, "strasse 9"),
        ("\uff11\uff12", None, "12"),
        (" \n", None, None),
        ("A: 1\nA: 2", r"A: (\d)", "2"),
        ("It is 40 or 42.", r"\d+", "42"),
        ("It is not known.", r"\d+", None),
        ("x", r"(y)?x", None),
    ],
)
def test_answers_are_compared_without_what_makes_no_difference(text, extract, answer):
    assert normalized(text, extract) == answer


@given(st.text())
def test_what_is_normalized_stays_so(text):
    answer = normalized(text)
    assert answer is None or normalized(normalized(answer)) == normalized(answer)


def test_an_expression_that_is_none_is_refused():
    with pytest.raises(FusionError, match="no regular expression"):
        check_expression("(")


def test_weights_of_nothing_are_alike():
    assert weights_that_count([0.0, 0.0]) == [1.0, 1.0]
    assert weights_that_count([0.0, 2.0]) == [0.0, 2.0]


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("2 > 1 > 3", (1, 0, 2)),
        ("[3], [1]", (2, 0)),
        ("1. The 3 of them\n\nBest first: 3,2,2,1\nThank you!", (2, 1, 0)),
        ("0 > 4 > -1", ()),
        ("none", ()),
        ("1.5", ()),
    ],
)
def test_an_order_is_read_from_the_last_line_with_numbers(text, order):
    assert parse_order(text, 3) == order


@given(st.permutations(range(6)), st.sampled_from([" > ", ", ", "\t", "] ["]))
def test_each_order_is_read_as_it_is_written(order, between):
    assert parse_order(between.join(str(each + 1) for each in order), 6) == tuple(order)


@given(st.text(), st.integers(1, 5))
def test_no_text_gives_an_order_of_others_than_the_candidates(text, count):
    order = parse_order(text, count)
    assert len(set(order)) == len(order)
    assert set(order) <= set(range(count))


@given(st.text())
def test_no_text_gives_a_mark_beyond_the_scale(text):
    mark = parse_mark(text)
    assert mark is None or 0 <= mark <= 1


@pytest.mark.parametrize(("text", "mark"), [("7", 0.7), ("9.5/10", 0.95), ("-3", None), ("Mark: 10 of 10", 1.0)])
def test_a_mark_is_the_first_number_of_its_line(text, mark):
    assert parse_mark(text) == mark


@pytest.mark.parametrize(
    ("scores", "place"), [([0.3, 0.1 + 0.2], 0), ([0.1 + 0.2, 0.3], 0), ([0.3, 0.3001], 1), ([0.0, 0.0], 0)]
)
def test_sums_that_differ_by_rounding_are_equal(scores, place):
    assert first_of_best(scores) == place


@pytest.mark.parametrize("strategy", ["parallel", "ensemble"])
def test_of_equal_weights_in_sum_the_first_in_priority_counts(database, strategy):
    weights = {"a": 0.3, "b": 0.1, "c": 0.2}
    members = {name: {"weight": weight} for name, weight in weights.items()}
    answers = {"a": "alone", "b": "both", "c": "both"}
    assert make_reactor(database, answers, strategy=strategy, members=members).run("?").text == "alone"
