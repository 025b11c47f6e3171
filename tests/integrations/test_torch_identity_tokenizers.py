"""Tokenizers are told by what they make of text."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from arc_halo.errors import CacheError
from arc_halo.integrations.torch_identity import identify, tokenizer_digest


def tokenizer(words=("a", "b", "[UNK]"), **options):
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[UNK]", **options)


def test_tokenizers_are_told_by_what_they_make_of_text():
    plain = tokenizer()
    digest = tokenizer_digest(plain)
    assert identify(torch.nn.ReLU(), tokenizer=plain).tokenizer_digest == digest
    plain(["a b", "a"], padding=True, truncation=True, max_length=1)
    assert tokenizer_digest(plain) == digest == tokenizer_digest(tokenizer())
    assert tokenizer_digest(tokenizer(("b", "a", "[UNK]"))) != digest
    assert tokenizer_digest(tokenizer(chat_template="{{ messages }}")) != digest
    assert tokenizer_digest(tokenizer(bos_token="a")) != digest
    plain.add_tokens(["c"])
    assert tokenizer_digest(plain) != digest
    with pytest.raises(CacheError, match="no tokenizer"):
        tokenizer_digest(object())


class InPython:
    special_tokens_map = {"unk_token": "u"}  # noqa: RUF012

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def get_vocab(self):
        return self.vocabulary


def test_a_tokenizer_in_python_is_told_by_its_vocabulary():
    digest = tokenizer_digest(InPython({"a": 0, "b": 1}))
    assert tokenizer_digest(InPython({"b": 1, "a": 0})) == digest
    assert tokenizer_digest(InPython({"a": 1, "b": 0})) != digest
