from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors import safe_open
from safetensors.numpy import load_file
from sqlalchemy import select

from arc_halo.errors import MergeError, ModelExists, ModelNotFound, RecipeError
from arc_halo.merging import METHODS, drawn_mask
from arc_halo.merging.recipe import Recipe
from arc_halo.registry import (
    check_model,
    create_model,
    export_model,
    import_model,
    iter_tensors,
    merge_models,
    parents_of,
    quantize_model,
    read_tensor,
)
from arc_halo.registry import merging as merging_module
from arc_halo.registry.aligning import align_models
from arc_halo.schema import ModelLineage, ModelWeight
from tests.fixtures.models import bert, gpt2, llama, write_folder
from tests.fixtures.tensors import same, weights

GOLDEN = Path(__file__).parents[1] / "golden" / "merging"
RECIPES = sorted(path.stem for path in GOLDEN.glob("*.yml"))
SUMS = (
    "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - model: a\n  - model: b\nparameters: {weight: 0.5}\n"
)
QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.fixture
def trio(session):
    """A base and two models near it, as ``base``, ``a`` and ``b``."""
    return three(session, bert())


def three(session, model, change=None):
    arrays = model.arrays()
    made = {"base": create_model(session, "base", model.config, arrays)}
    for seed, name in enumerate("ab", 1):
        other = {
            each: array
            if each in model.buffers
            else (array.astype(np.float32) + 0.1 * weights(array.shape, seed)).astype(array.dtype)
            for each, array in arrays.items()
        }
        if change is not None and name == "b":
            other = change(other)
        made[name] = create_model(session, name, model.config, other)
    return made


def recipe_of(session, model):
    links = session.scalars(select(ModelLineage).where(ModelLineage.child_id == model.id)).all()
    assert {link.kind for link in links} == {"merge"}
    return {link.parent.name: link.recipe for link in links}


@pytest.mark.parametrize("name", RECIPES)
def test_models_are_those_of_mergekit(session, tmp_path, name):
    for each in ("base", "a", "b"):
        folder = tmp_path / each
        folder.mkdir()
        (folder / "config.json").write_bytes((GOLDEN / "config.json").read_bytes())
        (folder / "model.safetensors").write_bytes((GOLDEN / f"model_{each}.safetensors").read_bytes())
        import_model(session, folder, name=each)
    made = merge_models(session, (GOLDEN / f"{name}.yml").read_text(), "merged")
    found = dict(iter_tensors(session, made))
    wanted = golden_tensors(GOLDEN / f"{name}.safetensors")
    assert found.keys() == wanted.keys()
    for each, array in wanted.items():
        assert found[each].dtype == array.dtype
        difference = np.abs(found[each].astype(np.float64) - array.astype(np.float64))
        one_step = np.spacing(np.abs(array).astype(np.float32)) * 65536
        assert (difference <= (1e-6 if array.dtype == np.float32 else one_step)).all(), each
    assert not list(check_model(session, made))


def golden_tensors(path):
    try:
        return load_file(path)
    except (KeyError, TypeError):  # a release of safetensors whose numpy knows no bfloat16
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        return {
            name: np.frombuffer(raw[8 + size :][slice(*each["data_offsets"])], bfloat16).reshape(each["shape"])
            for name, each in header.items() if name != "__metadata__"
        }  # fmt: skip


def test_everything_but_numbers_is_the_base_s(session, trio, tmp_path):
    made = merge_models(session, SUMS, "m", version="soup")
    assert (made.name, made.version, made.model_type) == ("m", "soup", "bert")
    assert made.architecture_config == trio["base"].architecture_config
    assert made.parameter_count == trio["base"].parameter_count
    wanted = [
        (
            read_tensor(session, "base", QUERY)
            + (read_tensor(session, each, QUERY) - read_tensor(session, "base", QUERY)) * np.float32(0.5)
        )
        for each in "ab"
    ]
    base = read_tensor(session, "base", QUERY)
    assert np.allclose(read_tensor(session, made, QUERY), sum(wanted) - base, atol=1e-7)
    position_ids = select(ModelWeight.tensor_id).where(ModelWeight.name == "embeddings.position_ids")
    assert len(set(session.scalars(position_ids))) == 1
    export_model(session, made, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert same(file.get_tensor(QUERY), read_tensor(session, made, QUERY))


@pytest.mark.usefixtures("trio")
def test_lineage_names_every_model(session):
    made = merge_models(session, SUMS.replace("- model: b", "- model: b@1"), "m", seed=7)
    found = recipe_of(session, made)
    assert found.keys() == {"base", "a", "b"}
    assert {each.name for each in parents_of(session, made)} == {"base", "a", "b"}
    (written,) = {json.dumps(each, sort_keys=True) for each in found.values()}
    written = json.loads(written)
    assert (written["method"], written["seed"], written["base"]) == ("task_arithmetic", 7, "base@1")
    assert written["models"] == {"a": "a@1", "b@1": "b@1", "base": "base@1"}
    assert written["recipe"]["parameters"] == {"weight": 0.5}
    again = merge_models(session, json.dumps(written["recipe"]), "again", seed=written["seed"])
    assert again.weights_digest == made.weights_digest


def test_new_tensors_lean_on_the_base(session):
    arrays = [weights((512, 512)) + 1e-4 * weights((512, 512), seed) * (seed > 0) for seed in range(3)]
    for name, array in zip(("base", "a", "b"), arrays, strict=True):
        create_model(session, name, {}, {"w": array.astype(bfloat16)})
    made = merge_models(session, SUMS, "m")
    alone = create_model(session, "alone", {}, {"w": weights((512, 512), 9).astype(bfloat16)})
    session.refresh(made)
    assert made.stored_nbytes < alone.stored_nbytes


@pytest.mark.usefixtures("trio")
@pytest.mark.parametrize("method", ["dare_ties", "dare_linear"])
def test_what_is_dropped_comes_of_the_seed(session, method):
    text = SUMS.replace("task_arithmetic", method).replace("0.5}", "0.5, density: 0.5}")
    made = [merge_models(session, text, "m", seed=seed) for seed in (1, 1, 2)]
    assert made[0].weights_digest == made[1].weights_digest != made[2].weights_digest
    base, a, b = (read_tensor(session, each, QUERY) for each in ("base", "a", "b"))
    kept = [drawn_mask(1, index, QUERY, 0.5)()(base.size).reshape(base.shape) for index in range(2)]
    merged = read_tensor(session, made[0], QUERY)
    neither = ~kept[0] & ~kept[1]
    assert same(merged[neither], base[neither])
    if method == "dare_linear":
        left = [np.where(mask, each - base, 0) for mask, each in zip(kept, (a, b), strict=True)]
        scaled = [
            part * np.abs(each - base).sum() / np.abs(part).sum() for part, each in zip(left, (a, b), strict=True)
        ]
        assert np.allclose(merged, base + sum(scaled) / 2, atol=1e-6)


def test_tensors_of_many_blocks(session, monkeypatch):
    monkeypatch.setattr(merging_module, "_HELD_NBYTES", 1 << 20)
    arrays = [weights((1, 900_001)) + weights((1, 900_001), seed) * (seed > 0) for seed in range(3)]
    for name, array in zip(("base", "a", "b"), arrays, strict=True):
        create_model(session, name, {}, {"w": array.astype(np.float32)})
    text = SUMS.replace("task_arithmetic", "ties").replace("0.5}", "1, density: 0.25}")
    found = read_tensor(session, merge_models(session, text, "m"), "w")
    base = arrays[0].astype(np.float32)
    deltas = [each.astype(np.float32) - base for each in arrays[1:]]
    size = base.size
    for delta in deltas:
        order = np.argsort(np.abs(delta).reshape(-1), kind="stable")
        delta.reshape(-1)[order[: size - int(0.25 * size)]] = 0
    sign = np.where(sum(deltas) >= 0, 1, -1)
    agrees = [np.sign(delta) == sign for delta in deltas]
    count = np.maximum(sum(each.astype(int) for each in agrees), 1)
    wanted = base + sum(np.where(each, delta, 0) for each, delta in zip(agrees, deltas, strict=True)) / count
    assert np.allclose(found, wanted, atol=1e-7)


def test_another_type_is_said_in_the_config(session, tmp_path):
    model = llama()
    model.config["torch_dtype"] = "bfloat16"
    for seed, name in enumerate(("base", "a", "b")):
        import_model(session, write_folder(model, tmp_path / name, arrays=model.arrays(seed)), name=name)
    made = merge_models(session, SUMS + "dtype: float32\n", "m")
    assert {array.dtype for _, array in iter_tensors(session, made)} == {np.dtype(np.float32)}
    assert made.architecture_config["torch_dtype"] == "float32"
    export_model(session, made, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"
    assert import_model(session, tmp_path / "out", name="back").weights_digest == made.weights_digest


def test_types_may_differ_where_the_recipe_names_one(session):
    for name, dtype in (("base", np.float32), ("a", np.float64), ("b", np.float16)):
        create_model(session, name, {}, {"w": np.full((2, 3), 1 + len(name), dtype)})
    with pytest.raises(MergeError, match=r"tensors of a have other types .*: w F64, not F32; tensors of b .*: w F16"):
        merge_models(session, SUMS, "m")
    made = merge_models(session, SUMS + "dtype: float16\n", "m")
    assert same(read_tensor(session, made, "w"), np.full((2, 3), 2, np.float16))


def test_what_is_tied_stays_tied(session):
    model = llama(tied=True)
    three(session, model)
    made = merge_models(session, SUMS, "m")
    assert made.parameter_count == sum(np.prod(shape) for shape in model.shapes.values())


@pytest.mark.parametrize("model", [gpt2(), llama(), bert("bert.")], ids=lambda each: each.config["model_type"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_family(session, model, method):
    three(session, model)
    text = SUMS.replace("task_arithmetic", method)
    if method == "slerp":
        text = text.replace("  - model: b\n", "").replace("{weight: 0.5}", "{t: 0.5}")
    made = merge_models(session, text, "m")
    assert made.weights_digest
    assert all(np.isfinite(array.astype(np.float32)).all() for _, array in iter_tensors(session, made))


def test_what_no_model_changed_is_shared(session):
    three(session, bert(), lambda arrays: arrays | {QUERY: bert().arrays()[QUERY]})
    create_model(session, "c", bert().config, bert().arrays() | {QUERY: weights((16, 16), 5)})
    text = SUMS.replace("  - model: a\n  - model: b\n", "  - model: c\n")
    aligned = align_models(session, Recipe.parse(text))
    assert [each.name for each in aligned.tensors] == [QUERY]
    made = merge_models(session, text, "m")
    ids = [
        dict(
            session.execute(
                select(ModelWeight.name, ModelWeight.tensor_id).where(ModelWeight.model_id == each.id)
            ).all()
        )
        for each in (made, aligned.base)
    ]
    assert {name for name in ids[0] if ids[0][name] != ids[1][name]} == {QUERY}


def without(name):
    return lambda arrays: {each: array for each, array in arrays.items() if each != name}


def changed(name, array):
    return lambda arrays: arrays | {name: array}


BAD = {
    "a tensor is missing": (without(QUERY), f"tensors are not in b: {QUERY}"),
    "a tensor too much": (changed("extra.weight", weights((2, 2))), "tensors of b are not in the base: extra.weight"),
    "another shape": (changed(QUERY, weights((16, 8))), rf"than the base's: {QUERY} \[16, 8\], not \[16, 16\]"),
    "another type": (changed(QUERY, weights((16, 16), dtype=np.float16)), f"{QUERY} F16, not F32"),
    "no floats": (changed("embeddings.position_ids", np.zeros((1, 32), np.int64)), "no floats and differ"),
    "NaN": (changed(QUERY, np.full((16, 16), np.nan, np.float32)), f"tensors of b hold NaN or infinity: {QUERY}"),
    "many": (lambda arrays: {each: weights((2, 3)) for each in arrays}, r"and \d+ more"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "told"), BAD.values(), ids=BAD)
def test_models_that_do_not_fit_are_named(session, change, told):
    three(session, bert(), change)
    with pytest.raises(MergeError, match=told):
        merge_models(session, SUMS, "m")
    with pytest.raises(ModelNotFound):
        read_tensor(session, "m", QUERY)


@pytest.mark.usefixtures("trio")
def test_what_cannot_be_merged(session):
    quantize_model(session, "a", "int8", name="small")
    for text, error, told in (
        (SUMS.replace("- model: b", "- model: nobody"), ModelNotFound, "no model 'nobody'"),
        (SUMS.replace("- model: b", "- model: a@1"), MergeError, "a and a@1 are the same model"),
        (SUMS.replace("- model: b", "- model: small"), MergeError, "small is quantised; dequantize it first"),
        (SUMS.replace("weight", "weigth"), RecipeError, "recipe, line 6, parameters.weigth"),
        (SUMS.replace("{weight: 0.5}", "{weight: [{filter: query, value: 1}]}"), MergeError, "no weight for tensor"),
        (SUMS.replace("0.5}", "1.0e+9}") + "dtype: float16\n", MergeError, "are too large for F16"),
    ):  # fmt: skip
        with pytest.raises(error, match=told):
            merge_models(session, text, "m")
    with pytest.raises(ModelExists):
        merge_models(session, SUMS, "base", version="1")


SLICES = """
merge_method: slerp
base_model: base
slices:
  - sources:
      - {{model: base, layer_range: [0, {0}]}}
      - {{model: a, layer_range: [{1}, {2}]}}
parameters: {{t: 0.5}}
"""


@pytest.mark.usefixtures("trio")
@pytest.mark.parametrize(
    ("layers", "told"),
    [((1, 0, 1), "the slices make 1 layers, but base has 2"), ((2, 1, 3), r"a has 2 layers, not those of \[1, 3\]")],
)
def test_slices_must_make_the_base_s_layers(session, layers, told):
    with pytest.raises(MergeError, match=told):
        merge_models(session, SLICES.format(*layers), "m")
