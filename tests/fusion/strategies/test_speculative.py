"""What is drafted and verified is the verifier's own answer."""

from collections import Counter

import numpy as np
import pytest

from arc_halo.errors import FusionError, OperationFailed
from arc_halo.fusion.plan import Budget
from tests.fusion.predicting import TableMember
from tests.fusion.reactors import make_reactor

WORDS = ["x", "y", "z"]
TABLE = {
    "<q>": {"x": 0.5, "y": 0.3, "z": 0.2},
    "x": {"y": 0.6, "z": 0.3, "<end>": 0.1},
    "y": {"x": 0.7, "z": 0.2, "<end>": 0.1},
    "z": {"x": 0.4, "y": 0.4, "<end>": 0.2},
}
DRAFTS = {
    "<q>": {"x": 0.2, "y": 0.7, "z": 0.1},
    "x": {"y": 0.3, "z": 0.6, "<end>": 0.1},
    "y": {"x": 0.9, "z": 0.05, "<end>": 0.05},
    "z": {"x": 0.1, "y": 0.8, "<end>": 0.1},
}
MEMBERS = {"quick": {"role": "drafter"}, "slow": {"role": "primary"}}


class Verifier(TableMember):
    """Looks at many places at once, and counts how often it is asked."""

    passes = 0

    def each_next_logits(self, token_ids, first):
        self.passes += 1
        return np.stack([self.next_logits(token_ids[:end]) for end in range(first, len(token_ids) + 1)])


def speculative(database, quick, slow, *, name="reactor", question=None, **options):
    config = {"options": options, "question": {"max_tokens": 8} | (question or {})}
    return make_reactor(
        database, {"quick": quick, "slow": slow}, members=MEMBERS, strategy="speculative", config=config, name=name
    )


def alone(database, member, **question):
    config = {"question": {"max_tokens": 8} | question}
    return make_reactor(database, {"slow": member}, config=config, name="alone")


@pytest.mark.parametrize("drafts", [TABLE, DRAFTS, {}])
def test_greedy_text_is_that_of_the_verifier(database, drafts):
    expected = alone(database, TableMember(TABLE, WORDS)).run("?").text
    outcome = speculative(database, TableMember(drafts, WORDS), TableMember(TABLE, WORDS)).run("?")
    assert outcome.text == expected == "xyxyxyxy"
    assert [call.text for call in outcome.calls] == [expected, expected]


def test_a_good_draft_saves_passes(database):
    slow = Verifier(TABLE, WORDS)
    outcome = speculative(database, TableMember(TABLE, WORDS), slow, draft_tokens=3).run("?")
    assert outcome.text == "xyxyxyxy"
    assert slow.passes == outcome.fused.details["passes"] == 2
    assert outcome.fused.details["accepted"] == outcome.fused.details["drafted"] == 6


def test_drawn_tokens_are_distributed_as_the_verifiers(database):
    reactor = speculative(
        database, TableMember(DRAFTS, WORDS), Verifier(TABLE, WORDS), question={"max_tokens": 2, "temperature": 1.0}
    )
    count = 600
    drawn = Counter(outcome.text for outcome in reactor.run_many(["?"] * count, seed=0, concurrency=4))
    expected = {
        first + (second if second != "<end>" else ""): TABLE["<q>"][first] * share
        for first in WORDS
        for second, share in TABLE[first].items()
    }
    assert drawn.keys() == expected.keys()
    statistic = sum((drawn[text] - count * share) ** 2 / (count * share) for text, share in expected.items())
    assert statistic < 24  # of chi-squared with 8 degrees of freedom, 0.2 % are above


def test_the_end_and_stops_end_the_answer(database):
    ending = {"<q>": {"x": 1.0}, "x": {"y": 1.0}, "y": {"<end>": 1.0}}
    outcome = speculative(database, TableMember(ending, WORDS), Verifier(ending, WORDS)).run("?")
    assert (outcome.text, outcome.calls[1].answer.finish_reason) == ("xy", "stop")
    stopped = speculative(
        database, TableMember(TABLE, WORDS), Verifier(TABLE, WORDS), name="stopped", question={"stop": ["yx"]}
    ).run("?")
    assert stopped.text == "x"


def test_the_verifier_goes_on_alone(database):
    def fail(token_ids):
        if len(token_ids) > 2:
            raise RuntimeError("no more drafts")

    outcome = speculative(database, TableMember(TABLE, WORDS, before=fail), TableMember(TABLE, WORDS)).run("?")
    assert outcome.text == "xyxyxyxy"
    assert [call.status for call in outcome.calls] == ["failed", "answered"]


def test_without_the_verifier_there_is_no_answer(database):
    def fail(_):
        raise RuntimeError("broken")

    with pytest.raises(OperationFailed):
        speculative(database, TableMember(TABLE, WORDS), TableMember(TABLE, WORDS, before=fail)).run("?")


def test_who_cannot_draft_or_verify_is_told(database):
    with pytest.raises(FusionError, match="level N"):
        speculative(database, "words", TableMember(TABLE, WORDS)).run("?")
    with pytest.raises(FusionError, match="vocabulary"):
        speculative(database, TableMember(TABLE, [*WORDS, "w"]), TableMember(TABLE, WORDS), name="other").run("?")
    with pytest.raises(FusionError, match="role drafter"):
        make_reactor(database, {"a": "x"}, strategy="speculative", name="alone").run("?")


@pytest.mark.parametrize("tokens", [4, 5, 9, 12])
@pytest.mark.parametrize("drafts", [TABLE, DRAFTS])
def test_a_budget_of_tokens_is_kept_and_drafts_count(database, tokens, drafts):
    reactor = speculative(database, TableMember(drafts, WORDS), Verifier(TABLE, WORDS), draft_tokens=3)
    outcome = reactor.run("?", budget=Budget(tokens=tokens))
    assert 0 < outcome.token_count <= tokens
    whole = reactor.run("?")
    drafter, verifier = (call.answer.generated_token_count for call in whole.calls)
    assert (drafter, verifier) == (whole.fused.details["drafted"], 8)
