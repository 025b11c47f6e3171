from __future__ import annotations

import json
import pickle
import threading

import pytest
from sqlalchemy import text

from arc_halo.errors import FormatError, PickleRefused, SafetensorsError
from arc_halo.formats.safetensors import PICKLE_SUFFIXES
from arc_halo.registry import import_model
from arc_halo.store import put as store_put
from tests.fixtures.models import bert, mixtral, write_folder
from tests.fixtures.tensors import count, weights
from tests.formats.test_safetensors import FAULTS

TABLES = ("models", "model_files", "model_weights", "tensor_metadata", "tensor_chunks", "tensor_data", "embeddings")


@pytest.fixture
def good(tmp_path):
    return write_folder(bert(), tmp_path / "good")


def assert_nothing_stored_and_good_input_works(session, good):
    assert {table: count(session, table) for table in TABLES} == dict.fromkeys(TABLES, 0)
    assert import_model(session, good, name="good").version == "1"


@pytest.mark.parametrize("case", FAULTS)
def test_a_faulty_file_stores_nothing(session, tmp_path, case, good):
    path = tmp_path / "model.safetensors"
    path.write_bytes(FAULTS[case][0])
    with pytest.raises(SafetensorsError, match=FAULTS[case][1]):
        import_model(session, path, name="faulty")
    assert_nothing_stored_and_good_input_works(session, good)


@pytest.mark.parametrize("suffix", sorted(PICKLE_SUFFIXES))
def test_a_pickle_is_refused(session, tmp_path, suffix, good):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(PickleRefused, match="safetensors"):
        import_model(session, path, name="pickle")
    assert_nothing_stored_and_good_input_works(session, good)


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def to_a_missing_shard(weight_map):
    weight_map["model.norm.weight"] = "model-00009-of-00003.safetensors"


def out_of_the_folder(weight_map):
    weight_map["model.norm.weight"] = "../model-00001-of-00003.safetensors"


def without_a_tensor(weight_map):
    del weight_map["model.norm.weight"]


@pytest.mark.parametrize("change", [to_a_missing_shard, out_of_the_folder, without_a_tensor])
def test_shards_that_do_not_fit_together_store_nothing(session, tmp_path, change, good):
    folder = write_folder(mixtral(), tmp_path / "sharded", shards=3)
    change_index(folder, change)
    with pytest.raises(FormatError, match=r"model\.norm\.weight|model-0000|\.\./"):
        import_model(session, folder, name="sharded")
    assert_nothing_stored_and_good_input_works(session, good)


CONFIGS = {
    "not JSON": b"{",
    "array": b"[1]",
    "not UTF-8": b'{"a": "\xff"}',
    "NUL": b'{"model_type": "bert", "a": "\\u0000"}',
    "half a surrogate": b'{"model_type": "bert", "a": "\\ud800"}',
    "NaN": b'{"model_type": "bert", "a": NaN}',
    "infinite": b'{"model_type": "bert", "a": -Infinity}',
    "a number beyond PostgreSQL's": b'{"model_type": "bert", "a": 1e400}',
    "an integer of many digits": b'{"model_type": "bert", "a": ' + b"9" * 5000 + b"}",
    "nesting 100k": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "negative numbers": b'{"model_type": "bert", "num_attention_heads": -4, "hidden_size": 16}',
    "heads that do not divide": b'{"model_type": "bert", "num_attention_heads": 5, "hidden_size": 16}',
    "dimensions beyond bigint": b'{"model_type": "bert", "num_attention_heads": 4, "hidden_size": 1' + b"0" * 30 + b"}",
    "types of other kinds": b'{"model_type": ["bert"], "num_attention_heads": "4", "hidden_size": {}}',
}


def attempt(session, folder):
    """Import and roll back; says that it went, or the file that the error names."""
    with session.begin_nested() as savepoint:
        try:
            assert import_model(session, folder, name="strange").parameter_count > 0
        except FormatError as error:
            return next(path.name for path in folder.iterdir() if path.name in str(error))
        finally:
            savepoint.rollback()
    return "imported"


@pytest.mark.parametrize("case", CONFIGS)
def test_a_strange_config_is_imported_or_refused_with_nothing_stored(session, tmp_path, case, good):
    folder = write_folder(bert(), tmp_path / "strange")
    (folder / "config.json").write_bytes(CONFIGS[case])
    assert attempt(session, folder) in ("imported", "config.json")
    assert_nothing_stored_and_good_input_works(session, good)


TOKENIZERS = [b"{", b"[]", b'{"model": {"vocab": {"a": "x"}}}', b'{"model": {"vocab": {"a\\u0000": 2}}}']


@pytest.mark.parametrize("content", TOKENIZERS)
def test_a_strange_tokenizer_is_kept_or_refused_with_nothing_stored(session, tmp_path, content, good):
    folder = write_folder(bert(), tmp_path / "strange")
    (folder / "tokenizer.json").write_bytes(content)
    assert attempt(session, folder) in ("imported", "tokenizer.json")
    assert_nothing_stored_and_good_input_works(session, good)


@pytest.mark.parametrize("small_nbytes", [-1, 2**30])
def test_a_file_cut_short_while_it_is_read_leaves_no_model(database, tmp_path, monkeypatch, small_nbytes, good):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", small_nbytes)
    folder = write_folder(bert(), tmp_path / "cut", arrays={f"t{i}": weights((900, 900), i) for i in range(4)})

    def cut(phase, _done, _total):
        if phase == "hash":
            with (folder / "model.safetensors").open("r+b") as file:
                file.truncate(5000)

    with database.session() as session:
        with pytest.raises(SafetensorsError, match=r"model\.safetensors"):
            import_model(session, folder, name="cut", progress=cut)
        assert count(session, "models") == 0
        assert import_model(session, good, name="good").version == "1"


def test_an_interrupt_in_the_middle_leaves_the_session_usable(database, tmp_path, good):
    folder = write_folder(bert(), tmp_path / "big", arrays={f"t{i}": weights((900, 900), i) for i in range(4)})

    def interrupt(phase, _done, _total):
        if phase == "hash":
            raise KeyboardInterrupt

    before = threading.active_count()
    with database.session() as session:
        with pytest.raises(KeyboardInterrupt):
            import_model(session, folder, name="big", progress=interrupt)
        assert_nothing_stored_and_good_input_works(session, good)
    assert threading.active_count() == before


def test_nothing_stored_is_what_the_tables_say(session, good):
    import_model(session, good, name="good")
    assert all(count(session, table) for table in TABLES)
    assert session.scalar(text("SELECT count(*) FROM arc_halo.models")) == 1
