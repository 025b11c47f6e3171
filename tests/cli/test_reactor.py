"""``arc-halo reactor``."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.command_line import CommandLine


class _Answers(BaseHTTPRequestHandler):
    """Every endpoint's model is its name; ``says-yes`` says yes."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = asked["model"].removeprefix("says-")
        status = 400 if text == "nothing" else 200
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
        body = json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.fixture
def answers(arc_halo: CommandLine, server: str, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """With a reactor ``answers`` of three endpoints, two of which agree."""
    arc_halo.run("reactor", "create", "answers", "--strategy", "ensemble")
    for name, text in (("a", "yes"), ("b", "yes"), ("c", "no")):
        monkeypatch.setenv(f"ARC_HALO_ENDPOINT_{name.upper()}_URL", server)
        monkeypatch.setenv(f"ARC_HALO_ENDPOINT_{name.upper()}_MODEL", f"says-{text}")
        monkeypatch.setenv(f"ARC_HALO_ENDPOINT_{name.upper()}_ANSWER_PRICE", "1000000")
        arc_halo.run("reactor", "add", "answers", name, "--endpoint", name)
    return arc_halo


def asked(answers: CommandLine, *options: object) -> str:
    return answers.json("reactor", "run", "answers", "Is it?", "--seed", 1, *options)["operation_id"]


def test_what_is_made_is_said(arc_halo: CommandLine, tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"options": {"max_rejections": 1}, "budget": {"seconds": 9}}')
    told = arc_halo.json("reactor", "create", "essays", "--strategy", "hierarchical", "--config", config)
    assert (told["status"], told["config"]["budget"]) == ("active", {"seconds": 9})
    for name, role in (("draft", "primary"), ("critic", "validator")):
        said = arc_halo.says("reactor", "add", "essays", name, "--endpoint", "x", "--role", role, "--weight", 2)
        assert said == f"{name} of essays: the endpoint x, {role}, weight 2\n"
    link = "reactor", "link", "essays", "critic", "draft", "--kind", "validates", "--label", "Critic"
    assert arc_halo.says(*link) == "critic validates draft\n"
    assert "has the edge critic validates draft already" in arc_halo.error(*link)
    told = arc_halo.json("reactor", "status", "essays")
    assert told["edges"] == [{"source": "critic", "target": "draft", "kind": "validates", "label": "Critic"}]
    assert [each["role"] for each in told["members"]] == ["validator", "primary"]
    assert "critic validates draft as Critic" in arc_halo.says("reactor", "status", "essays")


def test_a_model_is_a_member_at_its_version(stored: CommandLine):
    stored.run("reactor", "create", "models", "--strategy", "ensemble")
    assert stored.json("reactor", "add", "models", "m", "--model", "m")["model"] == "m@1"
    said = stored.says("reactor", "add", "models", "both", "--model", "m", "--endpoint", "x")
    assert said == "both of models: the endpoint x for m@1, primary, weight 1\n"
    assert "endpoint x for m@1" in stored.says("reactor", "graph", "models")
    assert "endpoint x for m@1" in stored.says("reactor", "status", "models")
    assert "no model 'far'" in stored.error("reactor", "add", "models", "n", "--model", "far")
    assert "needs a model" in stored.error("reactor", "add", "models", "n")


def test_what_cannot_work_yet_is_said(arc_halo: CommandLine):
    said = arc_halo.says("reactor", "create", "routes", "--strategy", "routing")
    assert """to run it here, --config '{"options": {"method": "bandit"}}'""" in said
    bandit = """{"options": {"method": "bandit"}}"""
    assert "knn" not in arc_halo.says("reactor", "create", "bandit", "--strategy", "routing", "--config", bandit)
    for name in "ab":
        arc_halo.run("reactor", "add", "routes", name, "--endpoint", "x")
    said = arc_halo.says("reactor", "link", "routes", "a", "b", "--kind", "validates")
    assert said.splitlines()[1:] == [
        "edges are drawn, and walked by the strategy hierarchical alone; this reactor's is routing"
    ]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("nothing.json", "cannot be read: No such file"),
        ("{", "it is no JSON"),
        ('{"options": {"methd": "vote"}}', "methd: Unexpected keyword argument"),
    ],
)
def test_a_config_that_is_wrong_is_told(arc_halo: CommandLine, config, why):
    result = arc_halo.run(
        "reactor", "create", "x", "--strategy", "ensemble", "--config", config, code=1 if why.startswith("methd") else 2
    )
    assert why in " ".join(result.stderr.replace("│", " ").split())


def test_events_go_to_stderr_and_the_answer_to_stdout(answers: CommandLine):
    result = answers.run("reactor", "run", "answers", "Is it?")
    assert result.stdout == "yes\n"
    lines = result.stderr.splitlines()
    assert {"a asked", "b asked", "c asked", "a answered", "b answered", "c answered"} < set(lines)
    assert re.fullmatch(
        r"a of 3 answers; 33 tokens, 12 from the cache; [\d.]+ m?s; cost 6; score [\d.]+; operation [\da-f-]{36}",
        lines[-1],
    )


def test_a_prompt_is_read_from_stdin_and_programs_get_everything(answers: CommandLine):
    result = answers.run("reactor", "run", "answers", "-", "--reference", "no", "--json", answer="Is it\nso?\n")
    told = json.loads(result.stdout)
    assert result.stderr == ""
    assert (told["text"], told["figures"]["quality"], told["cached_token_count"]) == ("yes", 0.0, 12)
    assert [call["text"] for call in told["calls"]] == ["yes", "yes", "no"]
    shown = answers.json("reactor", "show", told["operation_id"][:13])
    assert shown["input"] == {"prompt": "Is it\nso?", "reference": "no"}


def test_a_budget_takes_the_place_of_the_reactors_own(answers: CommandLine):
    said = answers.error("reactor", "run", "answers", "Is it?", "--tokens", 0, "--json")
    operation = re.search(r"arc-halo reactor show ([\da-f-]{36})", said)
    assert [call["status"] for call in answers.json("reactor", "show", operation[1])["calls"]] == 3 * ["skipped"]


def test_what_cannot_be_asked_is_a_sentence(answers: CommandLine, monkeypatch):
    monkeypatch.delenv("ARC_HALO_ENDPOINT_B_URL")
    (left_out,) = [
        each for each in answers.json("reactor", "run", "answers", "Is it?")["trace"] if each["kind"] == "left_out"
    ]
    assert (left_out["member"], "ARC_HALO_ENDPOINT_B_URL is not set" in left_out["reason"]) == ("b", True)
    assert "left out: member b, reason Conf" in answers.run("reactor", "run", "answers", "Is it?").stderr
    monkeypatch.setattr("arc_halo.cli.extras.find_spec", lambda _: None)
    said = answers.error("reactor", "run", "answers", "Is it?", "--json")
    assert said == "error: endpoints are asked by httpx: pip install 'arc-halo[endpoints]'"


def test_a_model_needs_transformers(stored: CommandLine, monkeypatch):
    stored.run("reactor", "create", "models", "--strategy", "ensemble")
    stored.run("reactor", "add", "models", "m", "--model", "m@1")
    monkeypatch.setattr("arc_halo.cli.extras.find_spec", lambda _: None)
    said = stored.error("reactor", "run", "models", "Is it?")
    assert said.endswith("by transformers and torch: pip install 'arc-halo[transformers]'")


def test_the_log_lists_operations_and_show_has_the_calls(answers: CommandLine):
    operation = asked(answers)
    said = answers.says("reactor", "log", "answers")
    assert re.search(rf"completed +ensemble .* Is it\? +yes +{operation}", said)
    said = answers.says("reactor", "show", operation)
    assert re.search(r"^ *2 +c +primary +answered .* no *$", said, re.MULTILINE)
    assert "decision 0: " in said
    assert "prompt: Is it?" in said
    assert answers.json("reactor", "show", "last")["id"] == operation
    answers.run("reactor", "create", "empty", "--strategy", "ensemble")
    assert "there is no operation yet" in answers.error("reactor", "replay", "empty", "last", "--recorded")
    assert "no operation 'ffff'" in answers.error("reactor", "show", "ffff")


def test_answers_of_a_version_are_found(answers: CommandLine, bert_folder):
    answers.run("model", "import", bert_folder, "--name", "m")
    answers.run("reactor", "add", "answers", "d", "--model", "m@1", "--endpoint", "a")
    operation = asked(answers)
    (use,) = answers.json("reactor", "log", "--model", "m@1")
    assert (use["operation_id"], use["member"], use["answer"]["text"]) == (operation, "d", "yes")
    assert "1 answer of m@1 in 1 operation" in answers.says("reactor", "log", "answers", "--model", "m@1")
    answers.run("reactor", "create", "other", "--strategy", "ensemble")
    assert answers.json("reactor", "log", "other", "--model", "m@1") == []
    answers.run("reactor", "log", code=2)


def test_a_replay_says_what_is_different(answers: CommandLine, monkeypatch):
    operation = asked(answers)
    said = answers.says("reactor", "replay", "answers", operation[:23], "--recorded")
    assert said.startswith("the same: output equal, decisions equal, 3 of 3 calls equal; operation ")
    assert answers.json("reactor", "replay", "answers", operation)["is_equal"] is True
    monkeypatch.setenv("ARC_HALO_ENDPOINT_B_MODEL", "says-no")
    result = answers.run("reactor", "replay", "answers", operation, code=1)
    assert result.stdout.startswith("not the same: output different")
    assert "call 1: answer.text was" in result.stdout
    assert answers.json("reactor", "replay", "answers", operation, "--recorded")["replay_of"] == operation
    assert "a replay" in answers.says("reactor", "log", "answers")


def test_the_status_has_figures_of_all(answers: CommandLine):
    asked(answers, "--reference", "yes")
    answers.run("reactor", "create", "empty", "--strategy", "cascade")
    told = answers.json("reactor", "status")
    assert [(each["name"], each["operation_count"]) for each in told] == [("answers", 1), ("empty", 0)]
    said = answers.says("reactor", "status")
    assert re.search(r"answers +ensemble +active +3 primary +1 +0.0% ", said)
    assert "no members yet" in answers.says("reactor", "status", "empty")
    assert "no reactor 'far'; there are answers, empty" in answers.error("reactor", "status", "far")


def test_the_graph_is_text_or_a_picture(answers: CommandLine, tmp_path):
    answers.run("reactor", "link", "answers", "a", "b", "--kind", "feeds_into", "--label", "First")
    answers.run("reactor", "link", "answers", "c", "b", "--kind", "validates")
    assert answers.says("reactor", "graph", "answers").splitlines() == [
        "answers: ensemble, 3 members",
        "1  a  (primary, weight 1, endpoint a)",
        "   └── feeds into b as 'First'",
        "2  b  (primary, weight 1, endpoint b)",
        "   └── validated by c",
        "-  c  (primary, weight 1, endpoint c)",
    ]
    told = answers.json("reactor", "graph", "answers")
    assert [(each["name"], each["wave"], each["endpoint"]) for each in told["members"]] == [
        ("a", 1, "a"),
        ("b", 2, "b"),
        ("c", None, "c"),
    ]
    assert told["edges"][0] == {"source": "a", "target": "b", "kind": "feeds_into", "label": "First"}
    for suffix, beginning in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        path = tmp_path / f"graph.{suffix}"
        assert answers.says("reactor", "graph", "answers", "--output", path) == f"drawn in {path}\n"
        assert path.read_bytes().startswith(beginning)
    answers.run("reactor", "graph", "answers", "--output", tmp_path / "graph.txt", code=2)


def test_metrics_are_over_a_time(answers: CommandLine):
    for reference in ("yes", "no"):
        asked(answers, "--reference", reference)
    told = answers.json("reactor", "metrics", "answers", "--since", "1h")
    assert (told["operation_count"], told["measured_count"], told["figures"]["quality"]) == (2, 2, 0.5)
    said = answers.says("reactor", "metrics", "answers", "--store")
    assert re.search(r"quality +0.5 ", said)
    assert "best alone: " in said
    said = answers.says("reactor", "metrics", "answers", "--until", "2020-01-01")
    assert said == "answers was asked nothing then\n"
    assert "is no moment" in answers.run("reactor", "metrics", "answers", "--since", "soon", code=2).stderr
