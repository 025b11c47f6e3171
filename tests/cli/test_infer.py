"""``arc-halo infer``."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING

import pytest

from arc_halo import connect
from arc_halo.inference.sessions import inference_session
from arc_halo.registry import find_model
from arc_halo.schema import InferenceSession
from tests.inference.used import make_months, partitions, store_model

if TYPE_CHECKING:
    from tests.cli.command_line import CommandLine

OLD = dt.datetime.now(dt.UTC) - dt.timedelta(days=400)


@pytest.fixture
def used(arc_halo: CommandLine, migrated_url) -> CommandLine:
    """With a session ``m/chat`` of four requests, one of them old, and one without a name, which failed."""
    with connect(migrated_url) as database:
        store_model(database)
        with inference_session(database, "m", name="chat", config={"temperature": 0.5}) as inference:
            for number in range(3):
                tokens = {"prompt_token_count": 10, "generated_token_count": 11, "cached_token_count": 5}
                inference.record(2.0 + number, time_to_first_token_seconds=0.25, memory_nbytes=10**9, **tokens)
            inference.record(1.0, recorded_at=OLD)
        with pytest.raises(ValueError, match="no"), inference_session(database, "m"):
            raise ValueError("no")
    return arc_halo


def test_sessions(used: CommandLine):
    header, failed, chat = used.says("infer", "sessions").splitlines()
    assert header.split()[:4] == ["model", "name", "status", "requests"]
    assert failed.split()[:3] == ["m@1", "failed", "0"]
    assert chat.split()[:4] == ["m@1", "chat", "completed", "4"]
    assert chat.split()[4:-1] == ["2.5", "s", "3.97", "s", "250", "ms", "3.6", "50%"]


def test_sessions_as_json(used: CommandLine):
    failed, chat = used.json("infer", "sessions")
    assert (failed["status"], failed["latency_p50_seconds"], failed["cached_share"]) == ("failed", None, None)
    assert (chat["model"], chat["latency_p50_seconds"], chat["cached_share"]) == ("m@1", 2.5, 0.5)
    assert (chat["measured_count"], chat["config"]) == (4, {"temperature": 0.5})
    assert used.json("infer", "sessions", "--limit", 1, "--model", "m@1") == [failed]


def test_where_there_are_none(arc_halo: CommandLine):
    assert arc_halo.says("infer", "sessions") == "no sessions yet; inference_session() makes one\n"
    assert arc_halo.json("infer", "sessions") == []
    assert "no model" in arc_halo.error("infer", "sessions", "--model", "m")
    assert "no inference session 'm/chat'" in arc_halo.error("infer", "show", "m/chat")


def test_show(used: CommandLine):
    shown = used.says("infer", "show", "m/chat")
    lines = shown.splitlines()
    assert lines[0].startswith("m@1/chat  ")
    assert lines[1].startswith("completed, began ")
    assert lines[2] == "4 requests, 30 tokens of prompts, 33 generated, 50% of prompt tokens from the cache"
    assert lines[4] == "latency ▃▆█▁ from 1 s to 4 s, medians in order"
    assert f"{OLD:%Y-%m-%d}" in lines[6]
    assert lines[7].split()[1:] == ["3", "3", "s", "3.8", "s", "3.98", "s", "250", "ms", "3.6", "50%", "1.0", "GB"]
    assert lines[9].split() == ["temperature", "0.5"]


def test_the_share_from_the_cache_is_the_same_everywhere(arc_halo: CommandLine, migrated_url):
    with connect(migrated_url) as database:
        store_model(database)
        with inference_session(database, "m", name="chat") as inference:
            inference.record(1.0, prompt_token_count=50, cached_token_count=40)
            inference.record(1.0, prompt_token_count=100)
    described = arc_halo.json("infer", "show", "m/chat")
    assert [described["cached_share"], described["days"][0]["cached_share"]] == [0.8, 0.8]
    assert arc_halo.json("infer", "sessions")[0]["cached_share"] == 0.8
    assert "80% of prompt tokens from the cache" in arc_halo.says("infer", "show", "m/chat")
    assert "80%" in arc_halo.says("infer", "sessions")


def test_listed_sessions_are_told_apart(arc_halo: CommandLine, migrated_url):
    with connect(migrated_url) as database, database.session() as session:
        store_model(database)
        for end in ("1", "2"):
            number = uuid.UUID(f"01a22b29-0000-7000-8000-00000000000{end}")
            session.add(InferenceSession(id=number, model=find_model(session, "m")))
        session.commit()
    listed = [line.split()[-1] for line in arc_halo.says("infer", "sessions").splitlines()[1:]]
    assert len(set(listed)) == 2
    assert [arc_halo.json("infer", "show", each)["id"] for each in listed] == listed


def test_show_as_json(used: CommandLine):
    described = used.json("infer", "show", "m@1/chat")
    assert described["latency_curve"] == [2.0, 3.0, 4.0, 1.0]
    assert [day["request_count"] for day in described["days"]] == [1, 3]
    assert described["days"][1]["latency_p99_seconds"] == pytest.approx(3.98)
    assert used.json("infer", "show", described["id"]) == described


def test_show_of_one_without_requests(used: CommandLine):
    failed = used.json("infer", "sessions", "--limit", 1)[0]["id"]
    assert used.says("infer", "show", failed).splitlines()[0] == f"m@1  {failed}"


def test_prune_asks_and_drops_whole_months(used: CommandLine, migrated_url):
    refused = used.run("infer", "prune", "--keep", "300d", answer="n\n", code=1)
    assert "Drop the figures of 1 request, all from before " in refused.stderr
    assert used.json("infer", "show", "m/chat")["measured_count"] == 4
    said = used.says("infer", "prune", "--keep", "300d", answer="y\n")
    assert "dropped 1 month from before " in said
    assert said.endswith("with figures of 1 request\n")
    described = used.json("infer", "show", "m/chat")
    assert (described["request_count"], described["measured_count"]) == (4, 3)
    assert "figures of 1 request were dropped since" in used.says("infer", "show", "m/chat")
    with connect(migrated_url) as database:
        assert f"inference_metrics_{OLD:%Y_%m}" not in partitions(database)


def test_prune_asks_nothing_where_there_is_nothing(used: CommandLine):
    assert used.says("infer", "prune", "--keep", "900d").startswith("nothing to do: no request is from before ")
    assert used.json("infer", "prune", "--keep", "900d")["request_count"] == 0


def test_prune_where_nobody_can_be_asked(used: CommandLine, migrated_url):
    with connect(migrated_url) as database:
        make_months(database, dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    assert "--yes" in used.run("infer", "prune", "--keep", "90d", answer="", code=1).stderr
    dropped = used.json("infer", "prune", "--keep", "90d", "--yes")
    assert (dropped["dropped_partition_count"], dropped["request_count"]) == (2, 1)
    assert used.json("infer", "prune", "--keep", "90d", "--yes")["dropped_partition_count"] == 0


@pytest.mark.parametrize("options", [(), ("--keep", "soon"), ("--keep", "-1d")])
def test_prune_needs_a_period(arc_halo: CommandLine, options):
    arc_halo.run("infer", "prune", *options, "--yes", code=2)


def test_a_period_of_ages_is_refused(arc_halo: CommandLine):
    assert "thousand years" in arc_halo.error("infer", "prune", "--keep", "999999d", "--yes")
