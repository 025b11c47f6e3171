from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import save_file
from sqlalchemy import select

from arc_halo.errors import InvalidName, ModelExists, ModelFolderError, ModelNotFound, TensorError
from arc_halo.registry import create_model, import_model, iter_tensors, read_tensor
from arc_halo.schema import AttentionHead, Embedding, Model
from arc_halo.store import put as store_put
from tests.fixtures.models import VOCABULARY, bert, distilbert, gpt2, llama, mixtral, qwen_moe, unknown, write_folder
from tests.fixtures.tensors import count, same, weights

FAMILIES = {
    "bert": bert(),
    "distilbert": distilbert(),
    "gpt2": gpt2(),
    "llama": llama(),
    "llama, tied": llama(tied=True),
    "qwen2": llama(qkv_bias=True, model_type="qwen2"),
    "qwen3": llama(qk_norm=True, head_dim=8, model_type="qwen3"),
    "phi3": llama(fused=True, model_type="phi3"),
    "mixtral": mixtral(),
    "qwen moe": qwen_moe(stacked=True),
}
NO_POSITIONS = {"llama", "llama, tied", "qwen2", "qwen3", "phi3", "mixtral", "qwen moe"}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def imported(session, tmp_path, family):
    return import_model(session, write_folder(FAMILIES[family], tmp_path / "model"), name=family)


def test_tensors_are_those_of_the_file(session, imported, family):
    arrays = FAMILIES[family].arrays()
    read = dict(iter_tensors(session, imported))
    assert read.keys() == arrays.keys()
    assert all(same(read[name], arrays[name]) for name in arrays)


def test_layers_are_a_tree_of_the_models_blocks(imported):
    types = Counter(layer.layer_type for layer in imported.layers)
    assert types["block"] == types["attention"] == 2
    assert types["feedforward"] >= 2
    assert types["other"] == 0
    roots = [layer for layer in imported.layers if layer.parent_id is None]
    below = {child.id for layer in imported.layers for child in layer.children}
    assert {layer.id for layer in imported.layers} == below | {layer.id for layer in roots}


def test_each_head_has_its_part_of_the_projections(session, imported, family):
    heads = session.scalars(select(AttentionHead).where(AttentionHead.layer.has(model_id=imported.id))).all()
    assert len(heads) == 2 * 4
    arrays = FAMILIES[family].arrays()
    for head in heads:
        for projection in ("query", "key", "value", "output"):
            axis, start, stop = (getattr(head, f"{projection}_{each}") for each in ("axis", "start", "stop"))
            name = getattr(head, f"{projection}_weight").name
            assert stop - start == head.head_dim
            assert stop <= arrays[name].shape[axis]


def test_grouped_heads_share_keys_and_values(session, tmp_path):
    model = import_model(session, write_folder(llama(heads=4, kv_heads=2), tmp_path / "model"), name="grouped")
    first = next(layer for layer in model.layers if layer.heads)
    assert [head.kv_group for head in first.heads] == [0, 0, 1, 1]
    assert [head.key_start for head in first.heads] == [0, 0, 4, 4]
    assert [head.query_start for head in first.heads] == [0, 4, 8, 12]


def test_every_weight_has_a_layer_and_a_category(imported, family):
    assert [weight.name for weight in imported.weights] == sorted(
        FAMILIES[family].shapes, key=[weight.name for weight in imported.weights].index
    )
    assert all(weight.layer_id is not None for weight in imported.weights)
    by_category = Counter(weight.category for weight in imported.weights)
    assert by_category.keys() >= {"weight", "embedding", "norm"}
    assert not by_category["other"]


def test_parameters_are_counted_without_buffers(session, imported, family):
    buffers = ("position_ids", ".attn.bias")
    arrays = FAMILIES[family].arrays()
    expected = sum(array.size for name, array in arrays.items() if not name.endswith(buffers))
    assert imported.parameter_count == expected
    assert session.scalar(select(Model.parameter_count).where(Model.id == imported.id)) == expected


def test_embeddings_carry_the_texts_of_tokens(session, imported, family):
    kinds = Counter(session.scalars(select(Embedding.kind)).all())
    assert kinds["token"] == len(VOCABULARY)
    assert (kinds["position"] == 0) == (family in NO_POSITIONS)
    king = session.scalars(select(Embedding).where(Embedding.label == "king", Embedding.kind == "token")).one()
    name = next(weight.name for weight in imported.weights if weight.tensor_id == king.owner_id)
    np.testing.assert_array_equal(king.vector, read_tensor(session, imported, name, VOCABULARY.index("king")))


def test_a_tensor_that_is_stored_twice_under_a_tied_config_counts_once(session, tmp_path):
    arrays = llama(tied=True).arrays()
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    folder = write_folder(llama(tied=True), tmp_path / "model", arrays=arrays)
    model = import_model(session, folder, name="tied")
    by_name = {weight.name: weight for weight in model.weights}
    assert by_name["lm_head.weight"].tied_to_id == by_name["model.embed_tokens.weight"].id
    assert model.parameter_count == sum(array.size for array in arrays.values()) - arrays["lm_head.weight"].size


def test_weights_that_a_config_calls_tied_but_that_differ_are_two(session, tmp_path):
    arrays = llama().arrays()
    model = import_model(session, write_folder(llama(tied=True), tmp_path / "model", arrays=arrays), name="untied")
    assert not any(weight.tied_to_id for weight in model.weights)
    assert model.parameter_count == sum(array.size for array in arrays.values())


def test_norms_of_ones_share_a_row_without_being_tied(session, tmp_path):
    arrays = bert().arrays()
    norms = [name for name in arrays if name.endswith("LayerNorm.weight")]
    arrays |= dict.fromkeys(norms, np.ones(16, np.float32))
    model = import_model(session, write_folder(bert(), tmp_path / "model", arrays=arrays), name="ones")
    shared = [weight for weight in model.weights if weight.name in norms]
    assert len({weight.tensor_id for weight in shared}) == 1
    assert all(weight.tied_to_id is None for weight in shared)
    assert model.parameter_count == sum(array.size for array in arrays.values()) - 32


def test_an_unknown_architecture_imports_as_other(session, tmp_path):
    model = import_model(session, write_folder(unknown(), tmp_path / "model"), name="convolutions")
    assert {layer.layer_type for layer in model.layers if layer.weights} == {"other"}
    assert model.parameter_count == sum(array.size for array in unknown().arrays().values())


def test_a_single_file_without_a_config(session, tmp_path):
    save_file({"a": weights((3, 4))}, tmp_path / "alone.safetensors")
    model = import_model(session, tmp_path / "alone.safetensors", name="alone")
    assert same(read_tensor(session, model, "a"), weights((3, 4)))
    assert [file.path for file in model.files] == ["alone.safetensors"]


def test_a_second_import_adds_no_content(session, tmp_path):
    folder = write_folder(bert(), tmp_path / "model")
    first = import_model(session, folder, name="a")
    tables = ("tensor_metadata", "tensor_chunks", "tensor_data", "embeddings")
    before = [count(session, table) for table in tables]
    second = import_model(session, folder, name="b")
    assert [count(session, table) for table in tables] == before
    assert first.weights_digest == second.weights_digest


def test_embeddings_may_be_left_out_and_asked_for_later(session, tmp_path):
    folder = write_folder(bert(), tmp_path / "model")
    import_model(session, folder, name="a", embeddings=False)
    assert count(session, "embeddings") == 0
    import_model(session, folder, name="a")
    assert count(session, "embeddings") == len(VOCABULARY) + 32 + 2


def test_rows_that_are_not_finite_are_not_searchable(session, tmp_path):
    arrays = bert().arrays()
    arrays["embeddings.word_embeddings.weight"][[2, 5]] = [[np.nan], [np.inf]]
    import_model(session, write_folder(bert(), tmp_path / "model", arrays=arrays), name="a")
    rows = session.scalars(select(Embedding.row_index).where(Embedding.kind == "token")).all()
    assert sorted(rows) == [row for row in range(len(VOCABULARY)) if row not in (2, 5)]


@pytest.mark.parametrize("small_nbytes", [-1, 2**30])
def test_an_import_is_there_when_its_caller_commits(database, tmp_path, monkeypatch, small_nbytes):
    monkeypatch.setattr(store_put, "SMALL_NBYTES", small_nbytes)
    monkeypatch.setattr("arc_halo.store.embeddings.SMALL_NBYTES", small_nbytes)
    folder = write_folder(bert(), tmp_path / "model")
    with database.session() as session:
        import_model(session, folder, name="a")
        session.rollback()
        assert session.scalars(select(Model)).all() == []
        import_model(session, folder, name="a")
        session.commit()
    with database.session() as session:
        assert session.scalars(select(Model.version)).all() == ["1"]


def test_progress_goes_up_to_all_bytes(session, tmp_path):
    reports = {}
    folder = write_folder(bert(), tmp_path / "model")
    import_model(session, folder, name="a", progress=lambda phase, *done: reports.setdefault(phase, []).append(done))
    assert list(reports) == ["hash", "store", "embed"]
    for seen in reports.values():
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1]


def test_the_config_is_kept(session, tmp_path):
    model = import_model(session, write_folder(llama(), tmp_path / "model"), name="a")
    assert model.architecture_config == llama().config
    assert model.model_type == "llama"
    assert model.status == "trained"
    assert len(model.config_digest) == len(model.tokenizer_digest) == 32


def test_versions_are_numbered(session, tmp_path):
    folder = write_folder(bert(), tmp_path / "model")
    given = [None, None, "release", "7", None, "007", None]
    versions = [import_model(session, folder, name="a", version=version).version for version in given]
    assert versions == ["1", "2", "release", "7", "8", "007", "9"]


def test_a_taken_version_is_refused_before_any_work(session, tmp_path):
    import_model(session, write_folder(bert(), tmp_path / "model"), name="a", version="1")
    before = count(session, "tensor_data")
    with pytest.raises(ModelExists, match="give another"):
        create_model(session, "a", {}, {"t": weights((7, 7))}, version="1")
    assert count(session, "tensor_data") == before


@pytest.mark.parametrize(("name", "version"), [("", None), (" ", None), ("a@b", None), ("a\0", None), ("a" * 201, None),
                                               ("\ud800", None), ("a", ""), ("a", "1@2"), ("a", "\0")])  # fmt: skip
def test_names_that_cannot_be_referred_to_are_refused(session, name, version):
    with pytest.raises(InvalidName, match="200 printable characters"):
        create_model(session, name, {}, {"t": weights((2,))}, version=version)
    assert count(session, "models") == 0


def test_a_path_that_is_not_there(session, tmp_path):
    with pytest.raises(ModelFolderError, match="nowhere"):
        import_model(session, tmp_path / "nowhere", name="a")


def test_models_are_made_of_arrays(session):
    arrays = mixtral().arrays()
    model = create_model(session, "made", mixtral().config, arrays)
    assert (model.status, model.model_type) == ("initialized", "mixtral")
    assert sum(len(layer.heads) for layer in model.layers) == 8
    assert all(same(array, arrays[name]) for name, array in iter_tensors(session, model))


def test_a_model_without_tensors(session):
    model = create_model(session, "empty", {}, {})
    assert (model.parameter_count, model.nbytes, model.stored_nbytes) == (0, 0, 0)
    assert model.weights_digest is not None
    assert dict(iter_tensors(session, model)) == {}


@pytest.mark.parametrize("name", ["", "a\0b", "__metadata__", "\ud800", "a" * 2000, "../a"], ids=repr)
def test_tensor_names_that_no_file_can_hold_are_refused(session, name):
    with pytest.raises(TensorError, match="give other names"):
        create_model(session, "a", {}, {name: weights((2,))})
    assert count(session, "models") == 0


@pytest.mark.parametrize("config", [{"a": "\0"}, {"a": "\ud800"}, {"a": np.float32(1)}, {1: 2, "1": 3}], ids=repr)
def test_configs_that_are_no_json_are_refused(session, config):
    with pytest.raises(ModelFolderError, match="config"):
        create_model(session, "a", config, {"t": weights((2,))})
    assert count(session, "models") == 0


def test_numbers_that_json_lacks_are_kept_as_text(session):
    assert create_model(session, "a", {"a": float("nan")}, {}).architecture_config == {"a": "NaN"}


def test_arrays_without_a_type_are_refused(session):
    with pytest.raises(TensorError, match="'t'"):
        create_model(session, "a", {}, {"t": np.zeros(3, object)})


def test_a_model_that_is_not_there(session):
    with pytest.raises(ModelNotFound, match="import one first"):
        read_tensor(session, "nothing", "a")
