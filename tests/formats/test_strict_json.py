from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import ModelFolderError
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
        ('{"a": 1}'.encode("utf-16"), "not strict JSON"),
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
