from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arc_halo.errors import ModelFolderError
from arc_halo.formats import strict_json
from arc_halo.formats.strict_json import parse_object

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(value=st.dictionaries(TEXT, JSON), ascii_only=st.booleans())
def test_objects_come_back(value, ascii_only):
    assert parse_object(json.dumps(value, ensure_ascii=ascii_only).encode(), "config.json") == value


@given(raw=st.binary(max_size=60) | st.text(alphabet='{}[]":,0e-9\\ud', max_size=40).map(str.encode))
def test_any_bytes_give_an_object_or_a_typed_error(raw):
    try:
        parsed = parse_object(raw, "config.json")
    except ModelFolderError:
        return
    assert isinstance(parsed, dict)


def test_numbers_that_json_has_not_become_text():
    parsed = parse_object(b'{"a": [0.0, Infinity], "b": NaN, "c": -Infinity}', "config.json")
    assert parsed == {"a": [0.0, "Infinity"], "b": "NaN", "c": "-Infinity"}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[1]", "a list, not a JSON object"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice"),
        (b'{"a": 1e999}', "beyond float64"),
        (b'{"a": "\\u0000"}', "NUL"),
        (b'{"a": ["\\ud800"]}', "surrogate"),
        (b'{"\\ud800": 1}', "surrogate"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not strict JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "not strict JSON"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    ],
)
def test_what_is_refused(raw, message):
    with pytest.raises(ModelFolderError, match=message):
        parse_object(raw, "config.json")


@pytest.mark.timeout(20)  # looking each key up in a list would take an hour
def test_a_key_that_stands_twice_among_many_is_found_at_once():
    keys = ",".join(f'"{number}":0' for number in range(200_000))
    with pytest.raises(ModelFolderError, match="'last' stands twice"):
        parse_object(f'{{{keys},"last":0,"last":0}}'.encode(), "config.json")


def peak_of(parse):
    tracemalloc.start()
    try:
        parse()
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


def repeated(unit, nbytes):
    return b'{"a":[' + unit * (nbytes // len(unit)) + b"0]}"


UNITS = [
    b"[],",
    b"{},",
    b"[1],",
    b'{"":0},',
    b'{"a":0.5},',
    b"0,",
    b"300,",
    b'"ab",',
    '"éé",'.encode(),
    '"😀",'.encode(),
]
MEMBERS = b"{" + b",".join(b'"%x":%d' % (number, number) for number in range(20_000)) + b"}"


def refusal(raw):
    """The message, or None for what was parsed."""
    try:
        parse_object(raw, "config.json")
    except ModelFolderError as error:
        return str(error)
    return None


@pytest.mark.parametrize("raw", [*(repeated(unit, 200_000) for unit in UNITS), MEMBERS], ids=[*map(str, UNITS), "keys"])
def test_memory_is_proportional_to_what_is_not_refused(monkeypatch, raw):
    assert refusal(raw) is None  # a file so small may have any values
    monkeypatch.setattr(strict_json, "_ALLOWED_NBYTES", 0)
    assert "so many values" in (refusal(raw) or "so many values")
    assert len(raw) + peak_of(lambda: refusal(raw)) <= 16 * len(raw) + 50_000


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON)
def test_memory_is_bounded_whatever_is_repeated(monkeypatch, value):
    monkeypatch.setattr(strict_json, "_ALLOWED_NBYTES", 0)
    raw = repeated(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b",", 50_000)
    assert "so many values" in (refusal(raw) or "so many values")
    assert len(raw) + peak_of(lambda: refusal(raw)) <= 16 * len(raw) + 50_000


def test_a_bloated_file_is_refused_before_it_is_parsed():
    raw = repeated(b"[],", 10_000_000)
    assert "config.json has 10000008 bytes, but so many values that about 489 MiB would be needed" in refusal(raw)
    assert peak_of(lambda: refusal(raw)) < 2 * len(raw)
