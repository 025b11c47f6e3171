"""What commands print."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from dataclasses import dataclass

import pytest

from arc_halo.cli.output import count, print_error, print_json, print_table, say, shown, size, some


@dataclass
class Measured:
    value: float
    at: dt.datetime


def test_json_of_everything_we_print(capsys):
    at = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    key = uuid.UUID(int=1)
    print_json({"rows": [Measured(float("nan"), at), Measured(1.5, at)], "digest": b"\x01\xff", "id": key, "no": None})
    assert json.loads(capsys.readouterr().out) == {
        "rows": [
            {"value": None, "at": "2026-01-02T00:00:00+00:00"},
            {"value": 1.5, "at": "2026-01-02T00:00:00+00:00"},
        ],
        "digest": "01ff",
        "id": str(key),
        "no": None,
    }


def test_a_piped_table_cuts_nothing(capsys):
    name = "encoder." * 60
    print_table(["name", "size"], [(name, "1 kB")], right=["size"])
    assert name in capsys.readouterr().out


def test_names_are_no_markup(capsys):
    print_table(["token"], [("[PAD]",), ("[bold]",)])
    say("[red]", ("[/]", "bold"))
    assert capsys.readouterr().out.split() == ["token", "[PAD]", "[bold]", "[red][/]"]


def test_errors_go_to_stderr(capsys):
    print_error("a\n  b")
    assert tuple(capsys.readouterr()) == ("", "error: a b\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (1234567, "1,234,567"), (True, "True"), ("a\x1b[0m\n", "a\\x1b[0m\\n"), ("\u0120king", "\u0120king")],
)
def test_shown(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(("nbytes", "text"), [(0, "0 bytes"), (90_868_376, "90.9 MB"), (-1500, "-1.5 kB")])
def test_size(nbytes, text):
    assert size(nbytes) == text


def test_count():
    assert [count(1, "chunk"), count(1024, "chunk")] == ["1 chunk", "1,024 chunks"]


@pytest.mark.parametrize(
    ("names", "said"), [([], ""), (["a"], "a"), (["a", "b", "c"], "a, b, c"), (list("abcde"), "a, b, c and 2 more")]
)
def test_many_names_are_cut(names, said):
    assert some(names) == said
