from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import ModelFolderError
from arc_halo.formats.vocabulary import from_tokenizer_json, from_vocab_json, from_vocab_txt

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["vocab", "id", "content"]), inner),
    max_leaves=6,
)


def tokenizer(vocab, added=()):
    return json.dumps({"added_tokens": list(added), "model": {"vocab": vocab}}).encode()


def test_byte_pair_and_word_piece_vocabularies():
    assert from_tokenizer_json(tokenizer({"the": 0, "Ġking": 1})) == {0: "the", 1: "Ġking"}


def test_unigram_vocabularies():
    assert from_tokenizer_json(tokenizer([["<unk>", 0.0], ["▁king", -3.5]])) == {0: "<unk>", 1: "▁king"}


def test_added_tokens_stand_beside_the_vocabulary():
    added = [{"id": 7, "content": "<mask>"}, {"id": 0, "content": "<s>"}]
    assert from_tokenizer_json(tokenizer({"a": 0}, added)) == {0: "<s>", 7: "<mask>"}


def test_lines_of_a_vocabulary():
    assert from_vocab_txt("[PAD]\nking\r\n\n\u2028\nend".encode()) == {
        0: "[PAD]",
        1: "king",
        2: "",
        3: "\u2028",
        4: "end",
    }


def test_what_no_text_column_holds_is_escaped():
    assert from_vocab_json(b'{"a\\u0000": 0, "\\ud800": 1}') == {0: "a\\x00", 1: "\\ud800"}


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"\xff", b"{}", b'{"model": []}', b'{"model": {"vocab": 1}}', b"[" * 100_000,
        tokenizer({"a": -1}), tokenizer({"a": 2**40}), tokenizer({"a": True}), tokenizer({"a": None}),
        tokenizer([[1, 2.0]]), tokenizer({}, [{"id": 1}]), tokenizer({}, [{"content": "a"}]),
    ],
)  # fmt: skip
def test_files_that_are_no_tokenizer(raw):
    with pytest.raises(ModelFolderError, match=r"tokenizer.json"):
        from_tokenizer_json(raw)


def test_a_vocabulary_that_is_not_utf8():
    with pytest.raises(ModelFolderError, match=r"vocab.txt is not UTF-8"):
        from_vocab_txt(b"king\n\xff\n")


@given(model=JSON, added=JSON)
def test_any_json_gives_texts_or_a_typed_error(model, added):
    raw = json.dumps({"model": model, "added_tokens": added}).encode()
    try:
        texts = from_tokenizer_json(raw)
    except ModelFolderError:
        return
    assert all(token >= 0 and "\0" not in text for token, text in texts.items())


@given(raw=st.binary(max_size=40))
def test_any_bytes_give_texts_or_a_typed_error(raw):
    for parse in (from_tokenizer_json, from_vocab_json, from_vocab_txt):
        try:
            texts = parse(raw)
        except ModelFolderError:
            continue
        assert not any("\0" in text for text in texts.values())


def large_tokenizer(words, merges, indent):
    """As byte pair encodings are written: a vocabulary, twice as many merges, a character beyond the first plane."""
    vocabulary = {f"\u2581{number:x}": number for number in range(words)} | {"\U0001f600": words}
    pairs = [[f"\u2581th{number % 997:x}", f"er{number % 991:x}"] for number in range(merges)]
    content = {"added_tokens": [], "model": {"vocab": vocabulary, "merges": pairs}}
    return json.dumps(content, ensure_ascii=False, indent=indent).encode()


@pytest.mark.parametrize("indent", [None, 2])
def test_a_large_tokenizer_takes_bounded_memory(indent):
    raw = large_tokenizer(60_000, 120_000, indent)
    tracemalloc.start()
    try:
        assert len(from_tokenizer_json(raw)) == 60_001
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(raw) + peak < 16 * len(raw)


def test_a_tokenizer_that_would_take_gigabytes_is_refused():
    raw = b'{"model": {"vocab": {}, "merges": [' + b"[]," * 10_000_000 + b"0]}}"
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json has .* MiB would be needed .* without embeddings"):
        from_tokenizer_json(raw)


def test_a_vocabulary_of_nothing_but_lines_is_refused():
    assert len(from_vocab_txt(b"\n" * 300_000)) == 300_000
    for end in (b"\n", b"\r"):
        with pytest.raises(ModelFolderError, match=r"vocab\.txt has 1000000 bytes, but so many values"):
            from_vocab_txt(end * 1_000_000)
