"""A member that can answer by itself is asked for that; alternatives with one text are one."""

import threading

import numpy as np
import pytest

from arc_halo.fusion.members import Answer, CallableMember, Question
from arc_halo.fusion.members.generating import choose, generate
from tests.fusion.reactors import make_reactor


class Letters:
    """Says ``a``, and then ends; two of its tokens have the same text."""

    level = "N"
    vocabulary = ("a", "b", "b", ".")
    end_ids = frozenset({3})

    def encode(self, text):
        return [1] * len(text)

    def decode(self, token_ids):
        return "".join(self.vocabulary[each] for each in token_ids)

    def next_logits(self, token_ids):
        return np.log(np.array([0.7, 0.15, 0.1, 0.05] if token_ids[-1] else [0.1, 0.1, 0.1, 0.7], np.float32))


class Speaking(Letters):
    def answer(self, _question):
        return Answer("by itself", cached_token_count=3)


class Stopping(CallableMember):
    """Goes on until nobody waits."""

    def __init__(self):
        super().__init__(str)
        self.stopped = threading.Event()

    def answer_while(self, _question, is_wanted):
        while is_wanted():
            threading.Event().wait(0.01)
        self.stopped.set()
        return Answer("late")


def test_what_it_answers_itself_comes_before_its_logits(database):
    outcome = make_reactor(database, {"logits": Letters(), "speaking": Speaking()}).run("??")
    assert [call.answer.text for call in outcome.calls] == ["a", "by itself"]
    assert outcome.calls[1].answer.cached_token_count == 3


def test_it_is_told_when_nobody_waits_any_more(database):
    member = Stopping()
    outcome = make_reactor(database, {"a": member, "b": "yes"}, config={"member_seconds": 0.1}).run("?")
    assert [call.status for call in outcome.calls] == ["timed_out", "answered"]
    assert member.stopped.wait(10)


def test_of_alternatives_with_one_text_the_best_counts():
    choice = generate(Letters(), Question("?", top_count=3)).choices[0]
    assert {text: round(float(np.exp(value)), 2) for text, value in choice.top.items()} == {"a": 0.7, "b": 0.15}


@pytest.mark.parametrize("temperature", [1e-310, 1e-30, 1e-3])
def test_a_temperature_near_0_takes_the_most_probable_token(temperature):
    logits = np.array([1.0, 3.0, -np.inf, 2.0], np.float32)
    assert choose(logits, temperature, np.random.default_rng(0)) == 1
