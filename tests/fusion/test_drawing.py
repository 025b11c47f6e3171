"""Pictures of reactors: nothing overlaps, and all that is said can be read."""

from __future__ import annotations

import random
import sys
import uuid
from itertools import combinations

import pytest

from arc_halo.fusion.drawing import draw_graph
from arc_halo.fusion.layout import lay_out
from arc_halo.fusion.plan import Edge, MemberPlan, Plan, ReactorConfig
from arc_halo.schema.fusion import MEMBER_ROLES
from tests.fusion.reactors import make_reactor

KINDS = ("feeds_into", "validates", "augments")


def plan_of(names, edges=(), strategy="hierarchical", **columns) -> Plan:
    ids = {name: uuid.uuid4() for name in names}
    own = {"role": "primary", "weight": 1.0, "endpoint": "x"} | columns
    members = tuple(
        MemberPlan(
            id=ids[name], name=name, priority=number, config={}, model_id=None, model=None, weights_digest=None,
            model_status=None, **own,
        )
        for number, name in enumerate(names)
    )  # fmt: skip
    drawn = tuple(Edge(ids[source], ids[target], kind, {}) for source, target, kind in edges)
    return Plan(uuid.uuid4(), "essays", strategy, "active", ReactorConfig(), {}, 0, None, members, drawn)


def some_plan(seed: int) -> Plan:
    """Up to twelve members; ``feeds_into`` has no cycle, other kinds go anywhere."""
    chance = random.Random(seed)
    names = [f"m{number}" for number in range(chance.randint(1, 12))]
    pairs = [(one, other) for one in names for other in names if one < other]
    edges = [(*pair, "feeds_into") for pair in pairs if chance.random() < 0.2]
    edges += [(*pair[:: chance.choice((1, -1))], chance.choice(KINDS[1:])) for pair in pairs if chance.random() < 0.1]
    return plan_of(names, edges)


@pytest.mark.parametrize("seed", range(30))
def test_everybody_has_a_place_of_its_own(seed):
    plan = some_plan(seed)
    layout = lay_out(plan)
    between = [slot for way in layout.ways for slot in way.slots[1:-1]]
    boxes = [(*slot, 1.0) for slot in layout.slots.values()] + [(*slot, 0.5) for slot in between]
    for one, other in combinations(boxes, 2):
        assert one[0] != other[0] or abs(one[1] - other[1]) >= (one[2] + other[2]) / 2 - 1e-9
    assert len(layout.slots) == len(plan.members)
    assert all(2 * abs(height) + size <= layout.height + 1e-9 for _, height, size in boxes)
    assert sorted(member.id for wave in (*layout.waves, layout.beside) for member in wave) == sorted(layout.slots)


def test_ways_go_from_column_to_column():
    plan = plan_of("abcd", [("a", "b", KINDS[0]), ("b", "c", KINDS[0]), ("a", "c", KINDS[0]), ("d", "c", KINDS[1])])
    layout = lay_out(plan)
    columns = {member.name: layout.slots[member.id][0] for member in plan.members}
    assert columns == {"a": 0, "b": 1, "d": 2, "c": 3}
    assert [[slot[0] for slot in way.slots] for way in layout.ways] == [[0, 1], [1, 2, 3], [0, 1, 2, 3], [2, 3]]


def test_what_can_be_straightened_does_not_cross():
    plan = plan_of("abcd", [("a", "d", KINDS[0]), ("b", "c", KINDS[0])])
    heights = {member.name: lay_out(plan).slots[member.id][1] for member in plan.members}
    assert (heights["a"] > heights["b"]) == (heights["d"] > heights["c"])


def test_a_graph_in_which_nobody_answers_can_be_seen():
    plan = plan_of("ab", [("a", "b", "validates"), ("b", "a", "augments")])
    assert str(draw_graph(plan)).count("(primary") == 2
    assert lay_out(plan_of("")).column_count == 0


@pytest.fixture
def figure_of():
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  an extra

    def draw(plan):
        figure = draw_graph(plan).figure()
        FigureCanvasAgg(figure).draw()
        return figure

    return draw


def test_texts_stay_in_their_boxes(figure_of):
    plan = plan_of(["W" * 60, "$x_1$ <b>", "ok"], role="synthesizer", weight=0.123456)
    (panel,) = figure_of(plan).axes
    boxes = [patch.get_window_extent() for patch in panel.patches]
    for text in panel.texts:
        inside = text.get_window_extent()
        assert any(box.x0 <= inside.x0 and inside.x1 <= box.x1 for box in boxes), text.get_text()


def test_roles_are_colours_and_kinds_are_styles(figure_of):
    figure = figure_of(some_plan(3))
    assert {text.get_text() for text in figure.legends[0].get_texts()} <= {
        *MEMBER_ROLES,
        *(k.replace("_", " ") for k in KINDS),
    }
    assert draw_graph(some_plan(3))._repr_html_().startswith('<img alt="essays: hierarchical')


def test_without_matplotlib_a_notebook_shows_text(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    picture = draw_graph(plan_of("ab"))
    assert picture._repr_html_() is None
    assert repr(picture).splitlines()[1] == "1  a  (primary, weight 1, endpoint x)"


def test_a_notebook_shows_reactors_and_outcomes(database):
    reactor = make_reactor(database, {"a": "yes <b>", "b": lambda _: 1 / 0})
    assert "<b>Reactor reactor</b>, parallel, active<table>" in reactor._repr_html_()
    shown = reactor.run("Is it?")._repr_html_()
    assert "yes &lt;b&gt;" in shown
    assert "ZeroDivisionError: division by zero" in shown
