from __future__ import annotations

import json
import pickle
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from sqlalchemy import text

from arc_halo.dtypes import by_name
from arc_halo.errors import FormatError, GGUFError, PickleRefused, SafetensorsError, TensorError
from arc_halo.formats.safetensors import PICKLE_SUFFIXES, build_header
from arc_halo.registry import create_model, import_model, read_tensor
from arc_halo.store import put as store_put
from tests.cli.command_line import CommandLine
from tests.fixtures.models import bert, mixtral, write_folder
from tests.fixtures.tensors import count, same, weights
from tests.formats.test_gguf import FAULTS as GGUF_FAULTS
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
    with pytest.raises(SafetensorsError, match=FAULTS[case][1]) as refused:
        import_model(session, path, name="faulty")
    assert str(path) in str(refused.value)
    assert "again" in str(refused.value)
    assert_nothing_stored_and_good_input_works(session, good)


@pytest.mark.parametrize("case", GGUF_FAULTS)
def test_a_faulty_gguf_file_stores_nothing(session, tmp_path, case, good):
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF_FAULTS[case][0])
    with pytest.raises(GGUFError, match=GGUF_FAULTS[case][1]):
        import_model(session, path, name="faulty")
    assert_nothing_stored_and_good_input_works(session, good)


@pytest.mark.parametrize("suffix", sorted(PICKLE_SUFFIXES))
def test_a_pickle_is_refused(session, tmp_path, suffix, good):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(PickleRefused, match="safetensors"):
        import_model(session, path, name="pickle")
    assert_nothing_stored_and_good_input_works(session, good)


class Program:
    """What a pickle may hold: a call, made when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "model.pt", "pytorch_model.bin"])
def test_a_pickle_is_refused_whatever_its_name_and_not_run(session, tmp_path, name, good):
    traces = tmp_path / "ran"
    content = pickle.dumps(Program(traces))
    pickle.loads(content)
    traces.unlink()  # so it would have run
    path = tmp_path / "folder" / name
    path.parent.mkdir()
    path.write_bytes(content)
    for each in (path, path.parent):
        with pytest.raises(PickleRefused, match=r"is refused: .* convert it: safetensors\.torch"):
            import_model(session, each, name="pickle")
    assert not traces.exists()
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


def with_a_tensor_too_many(weight_map):
    weight_map["nowhere.weight"] = "model-00001-of-00003.safetensors"


def without_a_shard(weight_map):
    for tensor in [tensor for tensor, shard in weight_map.items() if shard == "model-00002-of-00003.safetensors"]:
        del weight_map[tensor]


INDEXES = {
    to_a_missing_shard: "model-00009-of-00003.*; download the missing shard",
    out_of_the_folder: r"'\.\./model-00001-of-00003\.safetensors'; a shard is a \.safetensors file beside it",
    without_a_tensor: r"'model\.norm\.weight', which model-0000\d-.*; mend the index",
    with_a_tensor_too_many: r"'nowhere\.weight' into model-00001-.*; mend the index, or download the shards again",
    without_a_shard: "does not name model-00002-.*; mend the index",
}


@pytest.mark.parametrize("change", INDEXES)
def test_shards_that_do_not_fit_together_store_nothing(session, tmp_path, change, good):
    folder = write_folder(mixtral(), tmp_path / "sharded", shards=3)
    before = (folder / "model.safetensors.index.json").read_bytes()
    change_index(folder, change)
    with pytest.raises(FormatError, match=INDEXES[change]):
        import_model(session, folder, name="sharded")
    assert_nothing_stored_and_good_input_works(session, good)
    (folder / "model.safetensors.index.json").write_bytes(before)
    assert import_model(session, folder, name="sharded").version == "1"


def test_a_tensor_in_two_shards_stores_nothing(session, tmp_path, good):
    folder = write_folder(mixtral(), tmp_path / "sharded", shards=3)
    save_file(mixtral().arrays(), folder / "model-00003-of-00003.safetensors")
    with pytest.raises(FormatError, match=r"is in model-0000\d-\S+ and in model-00003-\S+; keep it in one shard only"):
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


TOKENIZERS = [
    b"{",
    b"[]",
    b'{"model": {"vocab": {}, "merges": [' + b"[]," * 3_000_000 + b"0]}}",
    b'{"model": {"vocab": {"a": "x"}}}',
    b'{"model": {"vocab": {"a\\u0000": 2}}}',
]


@pytest.mark.parametrize("content", TOKENIZERS, ids=range(len(TOKENIZERS)))
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


ARRAYS = {
    "objects": np.array([object()]),
    "structured": np.zeros(2, [("a", "f4"), ("b", "i4")]),
    "text": np.array(["a"]),
    "dates": np.zeros(2, "datetime64[s]"),
    "wider than any": np.zeros(2, np.longdouble),
    "no array": [1.0, 2.0],
}


@pytest.mark.parametrize("case", ARRAYS)
def test_an_array_that_cannot_be_stored_stores_nothing(session, case, good):
    arrays = {"fine": weights((3,)), "strange": ARRAYS[case]}
    with pytest.raises(TensorError, match=r"tensor 'strange'.*(give|convert|view|cast|pack|store)"):
        create_model(session, "arrays", {}, arrays)
    assert_nothing_stored_and_good_input_works(session, good)
    model = create_model(session, "arrays", {}, arrays | {"strange": weights((2, 2))})
    assert same(read_tensor(session, model, "fine"), arrays["fine"])


@pytest.mark.long
def test_a_tensor_of_more_than_2_31_elements(database, tmp_path):
    rows, columns, path = 2**21 + 1, 1024, tmp_path / "model.safetensors"
    header = build_header([("big", by_name("U8"), (rows, columns))])
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + rows * columns)  # zeros that take no disk
        file.seek(-2, 2)
        file.write(b"\x07\x08")
    with database.session() as session:
        model = import_model(session, path, name="big", compression="fast")
        assert model.nbytes == 2**31 + 1024
        assert read_tensor(session, model, "big", -1)[-3:].tolist() == [0, 7, 8]
        assert not read_tensor(session, model, "big", slice(2**20, 2**20 + 3)).any()


@pytest.fixture
def arc_halo(migrated_url):
    return CommandLine(migrated_url.render_as_string(hide_password=False))


def faulty_paths(folder):
    """A path of each kind of fault, and a pattern that its one line has."""
    for number, (content, reason) in enumerate(FAULTS.values()):
        path = folder / f"{number}.safetensors"
        path.write_bytes(content)
        yield path, reason
    for change, reason in INDEXES.items():
        path = write_folder(mixtral(), folder / change.__name__, shards=3)
        change_index(path, change)
        yield path, reason
    for suffix in sorted(PICKLE_SUFFIXES):
        path = folder / f"model{suffix}"
        path.write_bytes(pickle.dumps({"a": 1}))
        yield path, "is refused"
    for name, content in (("config.json", b"[1]"), ("tokenizer.json", b"{"), ("tokenizer.json", TOKENIZERS[2])):
        path = write_folder(bert(), folder / f"{name}-{len(content)}")
        (path / name).write_bytes(content)
        yield path, name
    yield folder / "nowhere", "nowhere"


def test_each_fault_is_one_line_of_the_command_line(arc_halo, tmp_path, good):
    for path, reason in faulty_paths(tmp_path):
        said = arc_halo.error("model", "import", path, "--name", "faulty")
        assert re.search(reason, said), (path, said)
    assert arc_halo.json("model", "list") == []
    arc_halo.run("model", "import", good, "--name", "good")


def test_nothing_stored_is_what_the_tables_say(session, good):
    import_model(session, good, name="good")
    assert all(count(session, table) for table in TABLES)
    assert session.scalar(text("SELECT count(*) FROM arc_halo.models")) == 1
