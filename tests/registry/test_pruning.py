from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sqlalchemy import select

from arc_halo.errors import (
    ConfigurationError,
    InvalidName,
    ModelExists,
    ModelNotFound,
    TensorError,
    TensorNotFound,
)
from arc_halo.quantization import Deviation
from arc_halo.quantization.sparsity import share
from arc_halo.registry import (
    check_model,
    create_model,
    dequantize_tensor,
    export_model,
    import_model,
    iter_tensors,
    load_model,
    parents_of,
    prune_model,
    quantize_model,
    read_tensor,
)
from arc_halo.schema import ModelLineage, ModelWeight
from tests.fixtures.models import bert, gpt2, llama, mixtral, unknown, write_folder
from tests.fixtures.tensors import counts, same, weights

QUERY = "encoder.layer.1.attention.self.query.weight"
LINEAR = {
    f"encoder.layer.{block}.{part}.weight"
    for block in (0, 1)
    for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
                 "intermediate.dense", "output.dense")
}  # fmt: skip
shares = st.floats(0.02, 0.98)
in_a_database = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def base(session):
    model = bert()
    return create_model(session, "m", model.config, model.arrays())


def recipe(session, model):
    return session.scalars(select(ModelLineage.recipe).where(ModelLineage.child_id == model.id)).one()


def pruned_names(session, model):
    return set(recipe(session, model)["tensors"])


def zeros(array):
    return int(array.size - np.count_nonzero(array))


def of(session, *arrays):
    """A model of matrices w0, w1, ..."""
    return create_model(session, "w", {}, {f"w{index}": array for index, array in enumerate(arrays)})


def pruned(session, model, *options, **named):
    made = prune_model(session, model, *options, include="w*", **named)
    return [array for _, array in iter_tensors(session, made)]


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_each_linear_map_is_as_sparse_as_asked(session, base, sparsity):
    made = prune_model(session, "m", sparsity)
    assert pruned_names(session, made) == LINEAR
    for name, array in iter_tensors(session, made, LINEAR):
        original = read_tensor(session, base, name)
        assert zeros(array) == share(sparsity, array.size)
        assert np.abs(original[array == 0]).max() <= np.abs(array[array != 0]).min()
        assert same(array[array != 0], original[array != 0])
    assert not list(check_model(session, made))


def test_everything_else_is_shared(session, base):
    made = prune_model(session, base, 0.5)
    ids = [
        dict(
            session.execute(
                select(ModelWeight.name, ModelWeight.tensor_id).where(ModelWeight.model_id == each.id)
            ).all()
        )
        for each in (base, made)
    ]
    assert {name for name in ids[0] if ids[0][name] != ids[1][name]} == LINEAR
    assert made.architecture_config == base.architecture_config
    assert made.parameter_count == base.parameter_count
    assert made.trainable_parameter_count == base.trainable_parameter_count


def test_over_the_whole_model_the_share_is_of_all(session, base):
    arrays = {name: array.copy() for name, array in load_model(session, base, cache=False).items()}
    arrays[QUERY] *= 1000
    create_model(session, "uneven", base.architecture_config, arrays)
    made = prune_model(session, "uneven", 0.4, scope="model")
    found = dict(iter_tensors(session, made, LINEAR))
    total = sum(array.size for array in found.values())
    assert sum(map(zeros, found.values())) == share(0.4, total)
    assert zeros(found[QUERY]) < 0.1 * found[QUERY].size
    kept = min(np.abs(array[array != 0]).min() for array in found.values())
    assert max(np.abs(arrays[name][array == 0]).max(initial=0) for name, array in found.items()) <= kept


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_of_equal_numbers_the_first_are_pruned(session, scope):
    model = of(session, np.ones((4, 5), np.float32), np.ones((2, 5), np.float32))
    first, second = pruned(session, model, 0.5, scope=scope)
    expected = {"tensor": [10, 5], "model": [15, 0]}[scope]
    assert [np.flatnonzero(array == 0).tolist() for array in (first, second)] == [
        list(range(each)) for each in expected
    ]


def test_zeros_that_are_there_count(session):
    array = np.arange(20, dtype=np.float32).reshape(4, 5)
    array[2:] = 0
    (found,) = pruned(session, of(session, array), 0.5)
    assert zeros(found) == 11  # those ten and the first, which is one
    assert same(found, array)


@in_a_database
@given(
    st.lists(
        npst.arrays(
            st.sampled_from([np.float16, np.float32, np.float64]),
            npst.array_shapes(min_dims=2, max_dims=3, max_side=12),
            elements=st.floats(-4, 4, width=16),
        ),
        min_size=1,
        max_size=3,
    ),
    shares,
    st.sampled_from(["tensor", "model"]),
)
def test_any_numbers_are_as_sparse_as_asked(session, arrays, sparsity, scope):
    with session.begin_nested() as savepoint:
        found = pruned(session, of(session, *arrays), sparsity, scope=scope)
        groups = [list(range(len(arrays)))] if scope == "model" else [[index] for index in range(len(arrays))]
        for group in groups:
            before = np.concatenate([arrays[index].ravel().astype(np.float64) for index in group])
            after = np.concatenate([found[index].ravel().astype(np.float64) for index in group])
            assert zeros(after) == max(share(sparsity, before.size), zeros(before))
            assert np.abs(before[after == 0]).max(initial=0) <= np.abs(after[after != 0]).min(initial=np.inf)
            assert (before[after != 0] == after[after != 0]).all()
        savepoint.rollback()


def test_numbers_of_a_tensor_of_many_blocks(session):
    array = weights((700, 1024))
    (found,) = pruned(session, of(session, array), 0.7)
    assert zeros(found) == share(0.7, array.size)
    assert same(found, np.where(np.abs(array) <= np.abs(array[found == 0]).max(), np.float32(0), array))


@pytest.mark.parametrize(("pattern", "kept", "group"), [("2:4", 2, 4), ("1:8", 1, 8), ("4:8", 4, 8)])
def test_a_pattern_is_kept_in_every_row(session, base, pattern, kept, group):
    made = prune_model(session, base, pattern=pattern)
    for name, array in iter_tensors(session, made, LINEAR):
        groups = array.reshape(-1, group)
        assert ((groups != 0).sum(axis=1) == kept).all()
        largest = np.sort(np.abs(read_tensor(session, base, name)).reshape(-1, group))[:, -kept:]
        assert same(np.sort(np.abs(groups))[:, -kept:], largest)
    assert recipe(session, made)["sparsity"] == 1 - kept / group


def test_rows_that_no_pattern_fits_are_told_and_nothing_is_left(session):
    model = of(session, weights((4, 8)), weights((4, 6)))
    before = counts(session)
    with pytest.raises(TensorError, match=r"tensor 'w1': rows .* leave it out by a pattern to include"):
        pruned(session, model, pattern="2:4")
    assert counts(session) == before
    assert zeros(read_tensor(session, prune_model(session, model, pattern="2:4", include="w0"), "w0")) == 16


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_rows_of_the_smallest_norm(session, scope):
    arrays = [weights((8, 16)), weights((24, 4), 1)]
    arrays[0] *= np.arange(1, 9, dtype=np.float32)[:, None]
    found = pruned(session, of(session, *arrays), 0.25, structured="rows", scope=scope)
    gone = [~array.any(axis=1) for array in found]
    means = [np.sqrt(np.square(array.astype(np.float64)).mean(axis=1)) for array in arrays]
    groups = (
        [(np.concatenate(gone), np.concatenate(means))] if scope == "model" else list(zip(gone, means, strict=True))
    )
    for is_gone, mean in groups:
        assert is_gone.sum() == share(0.25, len(mean))
        assert mean[is_gone].max() <= mean[~is_gone].min()
    for before, after, is_gone in zip(arrays, found, gone, strict=True):
        assert same(after, np.where(is_gone[:, None], np.float32(0), before))


def head_parts(small, arrays, block):
    """For each head what of query, key, value and output is its own, as views; and its key-value group."""
    heads, group = 4, 1
    if small.config["model_type"] == "gpt2":
        at = f"transformer.h.{block}.attn"
        query, key, value = np.split(arrays[f"{at}.c_attn.weight"], 3, axis=1)
        cut = [(query[:, 4 * h : 4 * h + 4], key[:, 4 * h : 4 * h + 4], value[:, 4 * h : 4 * h + 4],
                arrays[f"{at}.c_proj.weight"][4 * h : 4 * h + 4]) for h in range(heads)]  # fmt: skip
        return cut, list(range(heads))
    if small.config["model_type"] == "llama":
        at, group = f"model.layers.{block}.self_attn", 2
        names = [f"{at}.{each}_proj.weight" for each in "qkvo"]
    else:
        at = f"encoder.layer.{block}.attention"
        names = [f"{at}.self.query.weight", f"{at}.self.key.weight", f"{at}.self.value.weight",
                 f"{at}.output.dense.weight"]  # fmt: skip
    query, key, value, output = (arrays[name] for name in names)
    cut = []
    for head in range(heads):
        own, shared = slice(4 * head, 4 * head + 4), slice(4 * (head // group), 4 * (head // group) + 4)
        cut.append((query[own], key[shared], value[shared], output[:, own]))
    return cut, [head // group for head in range(heads)]


FAMILIES = pytest.mark.parametrize("small", [bert(), gpt2(), llama()], ids=["bert", "gpt2", "llama"])


def with_weak_heads(small, weak):
    """Arrays in which those heads, by block, are small."""
    arrays = small.arrays()
    for block, heads in weak.items():
        cut, _ = head_parts(small, arrays, block)
        for head in heads:
            for part in (cut[head][0], cut[head][3]):
                part[...] *= 0.01
    return arrays


@FAMILIES
def test_the_weakest_heads_of_each_layer_are_zero_in_all_projections(session, small):
    weak = {0: [1, 3], 1: [0, 1]}
    arrays = with_weak_heads(small, weak)
    origin = create_model(session, "m", small.config, arrays)
    made = prune_model(session, origin, 0.5, structured="heads")
    found = {name: array.copy() for name, array in iter_tensors(session, made)}
    for block, gone in weak.items():
        cut, groups = head_parts(small, found, block)
        kept_groups = {groups[head] for head in range(4) if head not in gone}
        for head, (query, key, value, output) in enumerate(cut):
            assert [part.any() for part in (query, output)] == [head not in gone] * 2
            assert [part.any() for part in (key, value)] == [groups[head] in kept_groups] * 2
    assert sorted(recipe(session, made)["heads"].values()) == sorted(weak.values())
    # Where it is not zero it is as it was.
    for name, array in found.items():
        assert same(array[array != 0], arrays[name][array != 0])


@FAMILIES
def test_heads_over_the_whole_model(session, small):
    arrays = with_weak_heads(small, {1: [0, 1, 2]})
    create_model(session, "m", small.config, arrays)
    made = prune_model(session, "m", 3 / 8, structured="heads", scope="model")
    (pruned_heads,) = recipe(session, made)["heads"].values()
    assert pruned_heads == [0, 1, 2]


def test_keys_and_values_go_when_all_heads_that_share_them_go(session):
    small = llama()
    create_model(session, "m", small.config, with_weak_heads(small, {0: [0], 1: [2, 3]}))
    made = prune_model(session, "m", 3 / 8, structured="heads", scope="model")
    keys = [read_tensor(session, made, f"model.layers.{block}.self_attn.k_proj.weight") for block in (0, 1)]
    assert keys[0].astype(bool).all(axis=1).tolist() == [True] * 8
    assert keys[1].any(axis=1).tolist() == [True] * 4 + [False] * 4
    # What is not changed is not stored again, and has no figures.
    assert "model.layers.0.self_attn.k_proj.weight" not in pruned_names(session, made)


def test_the_heads_of_a_pruned_model_are_its_own(session):
    small = gpt2()
    create_model(session, "m", small.config, with_weak_heads(small, {0: [2], 1: [2]}))
    once = prune_model(session, "m", 0.25, structured="heads")
    again = prune_model(session, once, 0.25, structured="heads")
    assert recipe(session, again)["heads"] == recipe(session, once)["heads"]
    assert again.weights_digest == once.weights_digest


def test_only_layers_of_which_all_projections_are_included_lose_heads(session, base):
    made = prune_model(session, base, 0.5, structured="heads", include="encoder.layer.1.*")
    assert list(recipe(session, made)["heads"]) == ["encoder.layer.1.attention"]
    with pytest.raises(TensorNotFound, match="no attention heads in the tensors"):
        prune_model(session, base, 0.5, structured="heads", exclude="*key*")


def test_a_network_without_heads(session):
    model = unknown()
    create_model(session, "m", model.config, model.arrays())
    with pytest.raises(TensorNotFound, match="no attention heads"):
        prune_model(session, "m", 0.5, structured="heads", include="*")


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"sparsity": 0.25, "structured": "rows"},
                                     {"sparsity": 0.25, "structured": "heads"}], ids=str)  # fmt: skip
def test_lineage_says_what_it_cost(session, base, options):
    made = prune_model(session, base, **options)
    link = session.scalars(select(ModelLineage).where(ModelLineage.child_id == made.id)).one()
    assert (link.parent_id, link.kind) == (base.id, "prune")
    assert list(parents_of(session, made)) == [base]
    told = [link.recipe[each] for each in ("structured", "pattern", "scope")]
    assert told == [options.get("structured"), options.get("pattern"), "tensor"]
    for name, figures in link.recipe["tensors"].items():
        before, after = read_tensor(session, base, name), read_tensor(session, made, name)
        measured = Deviation()
        measured.add(before, after)
        assert figures == pytest.approx({"zero_fraction": zeros(after) / after.size, **measured.figures()})


def test_norms_of_what_is_left_are_in_the_catalogue(session, base):
    made = prune_model(session, base, 0.5)
    for weight in made.weights:
        if weight.name in LINEAR:
            array = read_tensor(session, made, weight.name)
            assert weight.tensor.zero_fraction == zeros(array) / array.size
            assert weight.tensor.l2_norm == pytest.approx(np.linalg.norm(array.astype(np.float64)))


def test_numbers_that_squares_have_no_room_for_are_measured_without(session):
    array = np.full((2, 4), 1e300)
    array[0] = 1e-300
    made = prune_model(session, of(session, array), 0.5, include="w0")
    figures = recipe(session, made)["tensors"]["w0"]
    assert (figures["cosine"], figures["max_abs"]) == (None, 1e-300)
    gone = prune_model(session, made, 0.75, include="w0")
    assert recipe(session, gone)["tensors"]["w0"]["rms"] is None


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=str)
@pytest.mark.parametrize(
    "options", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"sparsity": 0.5, "structured": "rows"}], ids=str
)
def test_types_stay(session, dtype, options):
    array = weights((6, 8), dtype=dtype)
    (found,) = pruned(session, of(session, array), **options)
    assert (found.dtype, zeros(found)) == (array.dtype, 24)


def test_what_is_not_finite_stays_and_is_named(session):
    arrays = [weights((4, 4)), weights((4, 4))]
    arrays[0][1, 2] = np.inf
    made = prune_model(session, of(session, *arrays), 0.5, include="w*")
    assert recipe(session, made)["not_finite"] == ["w0"]
    assert same(read_tensor(session, made, "w0"), arrays[0])
    with pytest.raises(TensorNotFound, match="hold NaN or infinity"):
        prune_model(session, "w", 0.5, include="w0")


@pytest.mark.parametrize("exclude", ["*layer.0*", ["*layer.0.attention*", "*.layer.0.*dense*"]], ids=str)
def test_what_is_excluded_stays(session, base, exclude):
    made = prune_model(session, base, 0.5, exclude=exclude)
    assert pruned_names(session, made) == {name for name in LINEAR if ".0." not in name}
    assert recipe(session, made)["exclude"] == ([exclude] if isinstance(exclude, str) else exclude)
    with pytest.raises(TensorNotFound, match="exclude fewer"):
        prune_model(session, base, 0.5, exclude="*")


def test_tied_tensors_are_pruned_once_and_stay_tied(session):
    model = bert()
    arrays = model.arrays()
    arrays["cls.predictions.decoder.weight"] = arrays["embeddings.word_embeddings.weight"]
    create_model(session, "m", model.config | {"tie_word_embeddings": True}, arrays)
    made = prune_model(session, "m", 0.5, include="cls.*")
    by_name = {weight.name: weight for weight in made.weights}
    tied, source = by_name["cls.predictions.decoder.weight"], by_name["embeddings.word_embeddings.weight"]
    assert (tied.tied_to_id, tied.tensor_id) == (source.id, source.tensor_id)
    assert pruned_names(session, made) == {source.name}
    with pytest.raises(TensorNotFound, match="exclude fewer"):
        prune_model(session, "m", 0.5, include="cls.*", exclude="embeddings.*")


def test_routers_are_pruned_only_by_name(session):
    small = mixtral()
    create_model(session, "m", small.config, small.arrays())
    assert not [name for name in pruned_names(session, prune_model(session, "m", 0.5)) if name.endswith("gate.weight")]


def test_a_pruned_model_can_be_quantised_and_stays_sparse(session, base):
    sparse = prune_model(session, base, pattern="2:4")
    small = quantize_model(session, sparse)
    restored = dequantize_tensor(session, small, QUERY)
    assert not restored[read_tensor(session, sparse, QUERY) == 0].any()


def test_files_of_a_pruned_model_are_laid_out_as_the_originals(session, tmp_path):
    folder = write_folder(bert(), tmp_path / "bert", shards=2)
    import_model(session, folder, name="m")
    made = prune_model(session, "m", 0.5)
    export_model(session, made, tmp_path / "out")
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == sorted(each.name for each in folder.iterdir())
    assert import_model(session, tmp_path / "out", name="again").weights_digest == made.weights_digest


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({}, ConfigurationError, "give a sparsity"),
        ({"sparsity": 1.0}, ConfigurationError, "between 0 and 1"),
        ({"sparsity": 0.5, "structured": "columns"}, ConfigurationError, "no structure"),
        ({"structured": "2:4"}, ConfigurationError, "no structure"),
        ({"pattern": "rows"}, ConfigurationError, "no pattern"),
        ({"sparsity": 0.5, "pattern": "2:4"}, ConfigurationError, "leave yours out"),
        ({"structured": "heads", "pattern": "2:4"}, ConfigurationError, "give one of the two"),
        ({"pattern": "2:4", "scope": "model"}, ConfigurationError, "the same in each tensor"),
        ({"sparsity": 0.5, "scope": "layer"}, ConfigurationError, "no scope"),
        ({"sparsity": 0.5, "version": "1"}, ModelExists, "has a version '1'"),
        ({"sparsity": 0.5, "name": "a@b"}, InvalidName, "a@b"),
        ({"sparsity": 0.5, "include": "*.bias"}, TensorNotFound, "no tensor '*.bias'"),
        ({"sparsity": 0.5, "compression": "tight"}, ConfigurationError, "tight"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_stored(session, base, options, error, told):
    before = counts(session)
    with pytest.raises(error) as caught:
        prune_model(session, base, **options)
    assert told in str(caught.value)
    assert counts(session) == before


def test_a_model_that_is_not_there(session):
    with pytest.raises(ModelNotFound):
        prune_model(session, "nothing", 0.5)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"sparsity": 0.5}, 2),
        ({"sparsity": 0.5, "structured": "rows"}, 1),
        ({"sparsity": 0.5, "structured": "heads"}, 1),
        ({"pattern": "2:4"}, 0),
    ],
    ids=str,
)
def test_progress_is_told_in_bytes(session, base, options, passes):
    told = {}
    prune_model(session, base, **options, progress=lambda phase, done, total: told.update({phase: (done, total)}))
    nbytes = 2 * (4 * 16 * 16 + (0 if options.get("structured") == "heads" else 2 * 16 * 64)) * 4
    assert list(told) == ["measure", "prune", "hash", "store"][not passes :]
    assert told.get("measure", (0, 0)) == (passes * nbytes,) * 2
    assert told["prune"] == (nbytes, nbytes)


def test_a_model_of_nothing_but_codes(session):
    create_model(session, "m", {}, {"w": weights((4, 4))})
    codes = quantize_model(session, "m", include="w", name="codes")
    for include in (None, "*"):
        with pytest.raises(TensorNotFound, match="codes@1 has no matrices of floats; dequantize it first"):
            prune_model(session, codes, 0.5, include=include)
