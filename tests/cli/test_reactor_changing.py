"""``arc-halo reactor define``, ``change``, ``unlink`` and ``set-status``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.command_line import CommandLine

YAML = """\
# a comment
name: essays
strategy: hierarchical
config:
  options: {max_rejections: 1}
members:
  facts: {endpoint: x, role: secondary}
  draft:
    endpoint: y
    weight: 2
    config: {price: 3}
  no: {model: m@1, endpoint: z, priority: 0}
edges:
  - [facts, augments, draft, Known]
  - [no, feeds_into, draft]
  - [draft, validates, no, {label: Critic, what: answer}]
"""


@pytest.fixture
def essays(stored: CommandLine, tmp_path: Path) -> CommandLine:
    (tmp_path / "essays.yml").write_text(YAML)
    stored.run("reactor", "define", tmp_path / "essays.yml")
    return stored


def test_a_file_is_a_reactor_and_the_same_again_is_the_same(stored: CommandLine, tmp_path: Path):
    path = tmp_path / "essays.yml"
    path.write_text(YAML)
    told = stored.json("reactor", "define", path)
    assert (told["strategy"], told["status"], told["config"]) == (
        "hierarchical",
        "active",
        {"options": {"max_rejections": 1}},
    )
    assert [
        (each["name"], each["role"], each["weight"], each["priority"], each["model"]) for each in told["members"]
    ] == [
        ("facts", "secondary", 1.0, 0, None),
        ("no", "primary", 1.0, 0, "m@1"),
        ("draft", "primary", 2.0, 1, None),
    ]
    assert sorted((each["source"], each["kind"], each["label"] or "") for each in told["edges"]) == [
        ("draft", "validates", "Critic"),
        ("facts", "augments", "Known"),
        ("no", "feeds_into", ""),
    ]
    assert stored.json("reactor", "define", path) == told
    assert stored.says("reactor", "define", path) == "essays: hierarchical, active, 3 members, 3 edges\n"


def test_json_is_read_too_with_tabs_and_every_character(arc_halo: CommandLine, tmp_path: Path):
    path = tmp_path / "answers.json"
    said = {"name": "answers", "strategy": "ensemble", "members": {"a\\\N{OWL}": {"endpoint": "x", "weight": 1e-3}}}
    path.write_text(json.dumps(said, indent="\t"))
    (member,) = arc_halo.json("reactor", "define", path)["members"]
    assert (member["name"], member["weight"]) == ("a\\\N{OWL}", 0.001)


def test_members_that_the_file_leaves_out_are_named(essays: CommandLine, tmp_path: Path):
    path = tmp_path / "less.yml"
    path.write_text("name: essays\nstrategy: ensemble\nmembers:\n  draft: {endpoint: y}\nstatus: paused\n")
    assert essays.says("reactor", "define", path).splitlines() == [
        "essays: ensemble, paused, 1 member, 0 edges",
        "disabled, since it names them not: facts, no",
    ]
    assert essays.json("reactor", "status", "essays")["edges"] == []


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("weight: 2", "wight: 2", "line 10, members.draft.wight: unknown key; there are model, endpoint, role"),
        ("weight: 2", "weight: much", "line 10, members.draft.weight: must be a number, not 'much'"),
        ("weight: 2", "weight: -2", "members.draft: the weight of 'draft' is finite, and 0 or more, not -2.0"),
        ("role: secondary", "role: boss", "line 7, members.facts.role: no role is called 'boss'"),
        ("endpoint: x, ", "", "line 7, members.facts: the member 'facts' needs a model"),
        ("hierarchical", "magic", "line 3, strategy: no strategy is called 'magic'"),
        ("max_rejections: 1", "rejections: 1", "line 5, config: "),
        ("facts, augments", "facts, likes", "line 14, edges[0][1]: no kind is called 'likes'"),
        ("no, feeds_into", "far, feeds_into", "line 15, edges[1][0]: no member 'far' is defined"),
        (", Known]", ", Known, more]", "line 14, edges[0]: must be [source, kind, target]"),
        ("name: essays\n", "", "name is missing; a definition has name, strategy and members"),
        ("  - [facts", " \t- [facts", "line 14: "),
        (YAML, "", "is empty; write name, strategy, members"),
        ("[no, feeds_into, draft]", "[no, augments, no]", "to itself"),
        ("validates, no", "feeds_into, no", "nobody would answer first"),
        ("m@1", "far@1", "no model 'far@1'"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(stored: CommandLine, tmp_path: Path, old, new, why):
    path = tmp_path / "essays.yml"
    path.write_text(YAML.replace(old, new))
    assert why in stored.error("reactor", "define", path)
    assert stored.json("reactor", "status") == []


def test_a_file_that_is_no_text_is_told(arc_halo: CommandLine, tmp_path: Path):
    (tmp_path / "x.yml").write_bytes(b"\xff")
    assert "x.yml is no UTF-8 text" in arc_halo.error("reactor", "define", tmp_path / "x.yml")


def test_a_member_is_changed(essays: CommandLine):
    said = essays.says("reactor", "change", "essays", "draft", "--weight", 0.5, "--role", "judge", "--priority", 4)
    assert said == "draft of essays: the endpoint y, judge, weight 0.5, priority 4\n"
    told = essays.json("reactor", "change", "essays", "no", "--model", "m", "--endpoint", "", "--disable")
    assert (told["model"], told["endpoint"], told["is_enabled"]) == ("m@1", None, False)
    assert essays.says("reactor", "change", "essays", "no", "--weight", 0).endswith("weight 0, priority 0, disabled\n")
    assert essays.json("reactor", "change", "essays", "no", "--enable")["is_enabled"] is True
    assert "needs a model" in essays.error("reactor", "change", "essays", "no", "--model", "")
    assert "has no member 'far'; it has " in essays.error("reactor", "change", "essays", "far", "--weight", 1)
    assert "--weight" in essays.run("reactor", "change", "essays", "no", code=2).stderr


def test_an_edge_is_taken_away(essays: CommandLine):
    unlink = "reactor", "unlink", "essays", "no", "draft", "--kind", "feeds_into"
    assert essays.says(*unlink) == "no feeds into draft no more\n"
    assert "has no edge no feeds_into draft" in essays.error(*unlink)
    essays.run("reactor", "link", "essays", "no", "draft", "--kind", "feeds_into")
    assert essays.json(*unlink)["removed"] is True


def test_a_reactor_is_paused_and_goes_on(essays: CommandLine):
    assert essays.says("reactor", "set-status", "essays", "paused") == "essays: paused\n"
    assert "is paused" in essays.error("reactor", "run", "essays", "Is it?", "--json")
    assert essays.json("reactor", "set-status", "essays", "active")["status"] == "active"
    essays.run("reactor", "set-status", "essays", "gone", code=2)


def test_errors_name_nothing_of_python(arc_halo: CommandLine):
    arc_halo.run("reactor", "create", "answers", "--strategy", "ensemble")
    arc_halo.run("reactor", "add", "answers", "a", "--endpoint", "x")
    errors = [
        arc_halo.error("reactor", "create", "answers", "--strategy", "ensemble"),
        arc_halo.error("reactor", "add", "answers", "a", "--endpoint", "x"),
        arc_halo.error("reactor", "change", "far", "a", "--weight", 1),
        arc_halo.error("reactor", "graph", "far"),
    ]
    assert [each for each in errors if "_reactor" in each or "_member" in each] == []
