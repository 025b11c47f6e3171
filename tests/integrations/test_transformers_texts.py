"""What tokens add to a text, whatever a vocabulary is made of."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from arc_halo.integrations.transformers_texts import TokenTexts

FOLDER = Path(str(files("arc_halo"))) / "demo_model"
TEXT = "the row of a table is a row, and the name of the row is a name: naïve 🙂 rows"
CORPUS = [TEXT, "a b c d e f g h i j k l m n o p q r s t u v w x y z , . :"] * 4


def byte_level():
    return AutoTokenizer.from_pretrained(FOLDER)


def sentencepiece():
    """As those of Llama: ``▁`` for spaces, one put before the text, and bytes for what is in no token."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, limit_alphabet=40)
    inner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no token is of several words
    inner.train_from_iterator([text.replace("🙂", "") for text in CORPUS], trainer)
    said = json.loads(inner.to_str())
    said["added_tokens"] = said["added_tokens"][:3]  # bytes are tokens as others
    state = Tokenizer.from_str(json.dumps(said))
    state.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=state, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_piece():
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(cleanup=False)
    inner.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")


@pytest.mark.parametrize("make", [byte_level, sentencepiece], ids=lambda make: make.__name__)
def test_a_text_goes_on_as_it_was(make):
    texts = TokenTexts(make(), 5000)
    ids = texts.encode(TEXT)
    special = set(texts._tokenizer.all_special_ids)
    for cut in range(1, len(ids)):
        begun, rest = texts.decode(ids[:cut]), texts.decode(ids[cut:])
        if "\ufffd" not in begun + rest:
            assert (begun + rest).strip() == TEXT
            added = "".join(texts.vocabulary[each] for each in ids[cut:] if each not in special)
            assert added.replace("\ufffd", "") == "".join(c for c in rest if c in added)


@pytest.mark.parametrize("make", [byte_level, sentencepiece, word_piece], ids=lambda make: make.__name__)
def test_a_word_has_its_space(make):
    texts = TokenTexts(make(), 5000)
    assert " the" in texts.vocabulary
    assert "the" in texts.vocabulary or make is not byte_level
    assert len(texts.vocabulary) == 5000
    assert texts.vocabulary[-1] == ""
    assert not any("\0" in each or "▁" in each or "##" in each for each in texts.vocabulary if len(each) < 4)
    id_of_the = texts.vocabulary.index(" the")
    assert texts.decode([id_of_the]) == " the"


def test_bytes_that_are_no_character_alone_are_one_together():
    texts = TokenTexts(sentencepiece(), 500)
    ids = [each for each in texts.encode("🙂")[1:] if texts.vocabulary[each] == "\ufffd"]
    assert len(ids) == 4
    assert texts.decode(ids) == "🙂"


def test_special_tokens_have_names_and_add_nothing():
    texts = TokenTexts(sentencepiece(), 500)
    assert texts.vocabulary[:3] == ("<unk>", "<s>", "</s>")
    assert texts.decode([1, 2]) == ""


def test_nothing_ends_a_prompt():
    texts = TokenTexts(sentencepiece(), 500)
    ids = texts.encode("the row")
    assert (ids[0], ids.count(2)) == (1, 0)
    assert texts.encode("") == [1]
