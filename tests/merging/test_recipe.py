from __future__ import annotations

import json
from contextlib import suppress
from math import isclose

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.errors import MergeError, RecipeError
from arc_halo.merging import METHODS
from arc_halo.merging.document import compose
from arc_halo.merging.recipe import Recipe
from arc_halo.merging.settings import Clause, Setting

TIES = """
merge_method: ties
base_model: base@1
models:
  - model: base@1
  - model: a@1
    parameters:
      weight: 1.0
      density: [1, 0.5, 0]
  - model: b@production
    parameters:
      weight:
        - filter: mlp
          value: [0, 1]
        - value: 2e-1
parameters:
  lambda: 0.9
dtype: bfloat16
tokenizer_source: base
"""
LINEAR = "merge_method: linear\nmodels:\n  - model: a\n  - model: b\nparameters: {weight: 1}\n"
SLERP = """
merge_method: slerp
base_model: a
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: b, layer_range: [1, 3]}
parameters:
  t: 0.5
"""


def test_a_recipe_says_everything():
    recipe = Recipe.parse(TIES)
    assert (recipe.method.id, recipe.base_model, recipe.dtype) == ("ties", "base@1", "BF16")
    assert recipe.models == ["base@1", "a@1", "b@production"]
    (part,) = recipe.slices
    base, a, b = part.sources
    assert recipe.shared(part, "w", 0) == {"lambda": 0.9, "normalize": True, "rescale": False}
    assert recipe.of_source(part, base, "w", 0) == {}
    assert [recipe.of_source(part, a, "w", place)["density"] for place in (0, 0.25, 0.5, 1)] == [1, 0.75, 0.5, 0]
    assert recipe.of_source(part, b, "layers.0.mlp.up", 0.25) == {"weight": 0.25, "density": 1.0}
    assert recipe.of_source(part, b, "layers.0.attn", 0.25) == {"weight": 0.2, "density": 1.0}
    assert recipe.document["models"][1]["parameters"]["density"] == [1, 0.5, 0]


def test_the_base_is_added_to_models_and_is_the_first_where_none_is_needed():
    named = Recipe.parse(TIES.replace("  - model: base@1\n", ""))
    assert [source.model for source in named.slices[0].sources] == ["a@1", "b@production", "base@1"]
    assert Recipe.parse(LINEAR).base_model == "a"
    assert Recipe.parse(LINEAR + "base_model: c\n").models == ["a", "b", "c"]


def test_slices_have_layers():
    recipe = Recipe.parse(SLERP)
    assert [source.layers for source in recipe.slices[0].sources] == [range(2), range(1, 3)]


def test_the_nearest_setting_counts():
    text = SLERP.replace("merge_method: slerp", "merge_method: task_arithmetic").replace(
        "parameters:\n  t: 0.5", "    parameters: {weight: [{filter: mlp, value: 2}], lambda: 3}\n"
        "parameters: {weight: 1, lambda: 4}"
    )  # fmt: skip
    recipe = Recipe.parse(text)
    (part,) = recipe.slices
    assert recipe.of_source(part, part.sources[1], "mlp", 0) == {"weight": 2}
    assert recipe.of_source(part, part.sources[1], "attn", 0) == {"weight": 1}
    assert recipe.shared(part, "attn", 0)["lambda"] == 3


def test_a_parameter_that_nobody_says_is_named():
    recipe = Recipe.parse(TIES.replace("        - value: 2e-1\n", ""))
    (part,) = recipe.slices
    with pytest.raises(MergeError, match="no weight for tensor 'attn' of b@production"):
        recipe.of_source(part, part.sources[2], "attn", 0)


REFUSED = {
    "an unknown key": (TIES + "merge: 1\n", r"line \d+, merge: unknown key; there are merge_method"),
    "an unknown key of a model": (
        TIES.replace("    parameters:\n      weight: 1.0", "    parameter:\n      weight: 1.0"),
        r"models\[1\].parameter: unknown key; there are model, parameters",
    ),
    "an unknown parameter": (
        TIES.replace("weight: 1.0", "weigth: 1.0"), r"line 8, models\[1\].parameters.weigth: ties has no"
    ),
    "a parameter of another method": (TIES.replace("lambda: 0.9", "gamma: 1"), "ties has no parameter 'gamma'"),
    "int8_mask": (TIES.replace("lambda: 0.9", "int8_mask: true"), "parameters.int8_mask: .* changes no result"),
    "a shared parameter of a model": (TIES.replace("weight: 1.0", "lambda: 1.0"), "is one for all models"),
    "a key that stands there twice": (TIES + "dtype: float32\n", "dtype: stands there twice"),
    "a text for a number": (TIES.replace("lambda: 0.9", "lambda: much"), "line 17, parameters.lambda: must be a"),
    "a number for a flag": (TIES.replace("lambda: 0.9", "normalize: 1"), "must be true or false, not '1'"),
    "not a number": (TIES.replace("lambda: 0.9", "lambda: .nan"), "must be a number"),
    "a flag for a number": (TIES.replace("lambda: 0.9", "lambda: true"), "must be a number, not 'true'"),
    "too much density": (TIES.replace("[1, 0.5, 0]", "[1, 1.5, 0]"), r"density\[1\]: density must be at most 1"),
    "too little density": (TIES.replace("[1, 0.5, 0]", "-0.1"), "density must be at least 0"),
    "an empty gradient": (TIES.replace("[1, 0.5, 0]", "[]"), "must not be empty"),
    "a mixture": (TIES.replace("[1, 0.5, 0]", "[1, {value: 1}]"), "as its neighbours are"),
    "a filter without a value": (TIES.replace("[1, 0.5, 0]", "[{filter: a}]"), "has no value"),
    "another tokenizer": (TIES.replace("tokenizer_source: base", "tokenizer_source: union"), "'union' is not done"),
    "a tokenizer": (TIES + "tokenizer: {source: base}\n", "vocabularies are not merged"),
    "modules": (TIES + "modules: {}\n", "modules: models of several modules"),
    "another type": (TIES.replace("bfloat16", "int4"), "'int4' is no type of weights"),
    "an unknown method": (TIES.replace("ties", "frankenmerge"), "merge_method: merge method 'frankenm"),
    "no method": ("models: [{model: a}]", "has no merge_method; there are linear"),
    "no models": ("merge_method: linear", "needs either models or slices"),
    "models and slices": (SLERP + "models: [{model: a}]\n", "needs either models or slices"),
    "no base": (TIES.replace("base_model: base@1\n", ""), "ties needs a base_model"),
    "a base that is no source": (SLERP.replace("base_model: a", "base_model: c"), "must be one of the sources"),
    "three for slerp": (
        SLERP.replace("parameters:", "      - {model: c, layer_range: [0, 2]}\nparameters:"), "slerp merges 2 models"
    ),
    "a model twice": (LINEAR.replace("model: b", "model: a"), "a model is named twice"),
    "nothing beside the base": ("merge_method: ties\nbase_model: a\nmodels: [{model: a}]", "no model beside the base"),
    "a source without layers": (SLERP.replace(", layer_range: [1, 3]", ""), r"sources\[1\]: has no layer_range"),
    "other numbers of layers": (SLERP.replace("[1, 3]", "[1, 4]"), "must be equally long"),
    "layers backwards": (SLERP.replace("[1, 3]", "[3, 1]"), r"as \[0, 12\]"),
    "half a layer": (SLERP.replace("[1, 3]", "[1.5, 3]"), "must be a whole number"),
    "no YAML": ("models: [", "line 1: "),
    "a tag": ("merge_method: !!python/object:os.system x", "not known|could not|must be"),
    "nothing": ("", "is empty"),
    "a list": ("- a", "must be keys with values"),
    "a date": (TIES.replace("lambda: 0.9", "lambda: 2020-13-45"), "parameters.lambda: .*cannot be read"),
    "too deep": ("[" * 5000, "nested too deeply|line 1"),
    "too long": ("a" * (1 << 20) + "a", "that is no recipe"),
    "aliases that explode": (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(7)
        ), "unknown key|that is no recipe"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "told"), REFUSED.values(), ids=REFUSED)
def test_what_a_recipe_cannot_say(text, told):
    with pytest.raises(RecipeError, match=told) as caught:
        Recipe.parse(text, "recipe.yml")
    assert str(caught.value).startswith("recipe.yml")


def test_aliases_are_followed_but_not_without_end():
    assert Recipe.parse(LINEAR.replace("weight: 1", "weight: &w 2") + "# *w\n").models == ["a", "b"]
    with pytest.raises(RecipeError, match="100,000 values"):
        compose("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(7)
        ), "r").plain()  # fmt: skip


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"recipe.yml is no UTF-8"):
        Recipe.read(path)
    path.write_text(LINEAR)
    assert Recipe.read(path).models == ["a", "b"]


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=6), st.floats(0, 1))
def test_a_gradient_lies_between_its_ends(values, place):
    found = Clause(None, values).at(place)
    assert min(values) - 1e-9 <= found <= max(values) + 1e-9
    for index, each in enumerate(values):
        at = index / (len(values) - 1) if len(values) > 1 else 0
        assert isclose(Clause(None, values).at(at), each, abs_tol=1e-9)


@given(st.floats(0, 1), st.lists(st.booleans(), min_size=1, max_size=5))
def test_flags_are_not_mixed(place, flags):
    assert Clause(None, flags).at(place) in (True, False)


def test_the_first_clause_that_matches_counts():
    setting = Setting((Clause("mlp", (1,)), Clause("up", (2,))))
    assert [setting.of(each, 0) for each in ("mlp.up", "up", "q")] == [1, 2, None]


settings_drawn = st.one_of(
    st.floats(0, 1),
    st.lists(st.floats(0, 1), min_size=1, max_size=4),
    st.lists(
        st.fixed_dictionaries({"value": st.floats(0, 1)}, optional={"filter": st.sampled_from(["mlp", "attn"])}),
        min_size=1, max_size=3,
    ),
)  # fmt: skip


@given(st.sampled_from(sorted(METHODS)), st.data())
def test_what_is_written_is_what_is_read(name, data):
    chosen = METHODS[name]
    own = {each.name for each in chosen.parameters if not each.is_flag}
    document = {
        "merge_method": name, "base_model": "a",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {each: data.draw(settings_drawn) for each in sorted(own)},
    }  # fmt: skip
    recipe = Recipe.parse(yaml.safe_dump(document))
    assert recipe.document == json.loads(json.dumps(document))
    for parameter, said in document["parameters"].items():
        if isinstance(said, float):
            assert recipe.parameters[parameter].of("w", data.draw(st.floats(0, 1))) == said


KEYS = ["models", "model", "slices", "sources", "parameters", "merge_method", "base_model", "weight"]
documents = st.recursive(
    st.text(max_size=3), lambda each: st.lists(each) | st.dictionaries(st.sampled_from(KEYS), each)
)


@given(st.text() | documents.map(yaml.safe_dump))
def test_anything_else_is_refused(text):
    with suppress(RecipeError):
        Recipe.parse(text)
