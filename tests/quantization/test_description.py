from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arc_halo.dtypes import DTYPES
from arc_halo.errors import ModelFolderError
from arc_halo.quantization import Description, QuantizedTensor
from arc_halo.quantization.description import FIELD

TENSOR = QuantizedTensor("a.weight", "a.weight_scale", DTYPES["BF16"], (3, 5))
CONFIG = {"model_type": "bert"}
DESCRIBED = Description("nf4", {TENSOR.name: TENSOR}).added_to(CONFIG)


def test_there_and_back():
    assert Description.of(DESCRIBED) == Description("nf4", {TENSOR.name: TENSOR})
    assert DESCRIBED[FIELD]["tensors"] == {
        "a.weight": {"scale": "a.weight_scale", "dtype": "BF16", "shape": [3, 5]}
    }  # fmt: skip


@pytest.mark.parametrize("config", [CONFIG, {FIELD: None}, {FIELD: {"quant_method": "gptq", "bits": 4}}], ids=str)
def test_not_by_us(config):
    assert Description.of(config) is None


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({}, optional={"scale": json, "dtype": json | st.sampled_from(["F32", "I8"]), "shape": json})
    | json
)
def test_any_damage_is_told(tensor):
    described = {"quantized_by": "arc-halo", "scheme": "int8", "tensors": {"a": tensor}}
    try:
        found = Description.of({FIELD: described})
    except ModelFolderError as error:
        assert "restore the file" in str(error)  # noqa: PT017  # most of the examples raise
    else:
        assert found.tensors["a"].dtype.is_float


@pytest.mark.parametrize("damage", [{"tensors": None}, {"tensors": [1]}, {"scheme": None, "tensors": 3}], ids=str)
def test_without_tensors(damage):
    with pytest.raises(ModelFolderError, match="does not say what was quantised"):
        Description.of({FIELD: {"quantized_by": "arc-halo", **damage}})
