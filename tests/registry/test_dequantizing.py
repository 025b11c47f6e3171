from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from arc_halo.errors import InvalidName, ModelExists, ModelFolderError, QuantizationError, TensorError
from arc_halo.quantization import SCHEMES, scheme
from arc_halo.registry import (
    create_model,
    dequantize_model,
    dequantize_tensor,
    load_model,
    quantize_model,
    read_tensor,
)
from arc_halo.registry.forms import stored_forms
from arc_halo.registry.reading import weights_of
from arc_halo.schema import ModelLineage
from tests.fixtures.models import bert, gpt2, llama
from tests.fixtures.tensors import counts, same, weights

ids = pytest.mark.parametrize("scheme_id", SCHEMES)
QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.fixture
def base(session):
    model = bert(hidden=64)
    return create_model(session, "m", model.config, model.arrays())


def of(session, array, scheme_id, **options):
    """A model of one matrix, quantised."""
    create_model(session, "one", {}, {"w": array})
    return quantize_model(session, "one", scheme_id, include="w", **options)


@ids
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 129), (1, 1), (5, 64), (2, 3, 7)], ids=str)
def test_rows_of_any_length_and_floats_of_any_type_come_back(session, scheme_id, dtype, shape):
    array = weights(shape, dtype=dtype)
    made = of(session, array, scheme_id)
    expected = scheme(scheme_id).dequantize(scheme(scheme_id).quantize(array), shape)
    assert same(dequantize_tensor(session, made, "w", "F32"), expected)
    assert same(dequantize_tensor(session, made, "w"), expected.astype(dtype))
    assert same(read_tensor(session, dequantize_model(session, made), "w"), expected.astype(dtype))


@ids
@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_codes_become_the_same_codes_again(session, base, scheme_id, dtype):
    made = quantize_model(session, base, scheme_id)
    again = quantize_model(session, dequantize_model(session, made, dtype), scheme_id)
    assert again.weights_digest == made.weights_digest


@ids
def test_what_is_read_of_a_quantised_model_is_its_codes(session, base, scheme_id):
    made = quantize_model(session, base, scheme_id)
    codes = scheme(scheme_id).quantize(read_tensor(session, base, QUERY)).codes
    assert same(read_tensor(session, made, QUERY, slice(3, 9)), codes[3:9])
    assert same(load_model(session, made, cache=False)[QUERY], codes)
    assert same(read_tensor(session, made, "pooler.dense.weight"), read_tensor(session, base, "pooler.dense.weight"))


@ids
def test_a_model_says_in_which_form_its_tensors_are_stored(session, base, scheme_id):
    made = quantize_model(session, base, scheme_id)
    forms = stored_forms(made, weights_of(session, made))
    assert (forms[QUERY].scheme, forms[QUERY].dtype.name, forms[QUERY].shape) == (scheme_id, "F32", (64, 64))
    assert forms[QUERY].parts == (QUERY, f"{QUERY}_scale")
    rows = [read_tensor(session, made, part, slice(5, 6)) for part in forms[QUERY].parts]
    assert same(forms[QUERY].floats(*rows), dequantize_tensor(session, made, QUERY)[5:6])
    assert stored_forms(base, weights_of(session, base)) == {}


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(SCHEMES)), st.integers(1, 5), st.integers(1, 200), st.integers(0, 2**32))
def test_any_matrix_is_dequantised_as_its_scheme_says(session, scheme_id, rows, columns, seed):
    with session.begin_nested() as savepoint:
        array = weights((rows, columns), seed)
        made = of(session, array, scheme_id)
        expected = scheme(scheme_id).dequantize(scheme(scheme_id).quantize(array), array.shape)
        assert same(dequantize_tensor(session, made, "w"), expected)
        restored = dequantize_model(session, made)
        assert same(read_tensor(session, restored, "w"), expected)
        assert quantize_model(session, restored, scheme_id, include="w").weights_digest == made.weights_digest
        savepoint.rollback()


@pytest.mark.parametrize("small", [bert(), gpt2(), llama(tied=True)], ids=["bert", "gpt2", "llama"])
@ids
def test_families(session, small, scheme_id):
    origin = create_model(session, "m", small.config, small.arrays())
    restored = dequantize_model(session, quantize_model(session, origin, scheme_id))
    assert restored.architecture_config == origin.architecture_config
    assert [(w.name, w.tensor.dtype, w.tensor.shape, w.category, w.is_trainable) for w in restored.weights] == [
        (w.name, w.tensor.dtype, w.tensor.shape, w.category, w.is_trainable) for w in origin.weights
    ]


def test_lineage_says_what_was_dequantised(session, base):
    made = quantize_model(session, base, "nf4")
    restored = dequantize_model(session, made, "F16", name="half", version="a")
    link = session.scalars(select(ModelLineage).where(ModelLineage.child_id == restored.id)).one()
    assert (link.parent_id, link.kind) == (made.id, "copy")
    assert link.recipe == {"dequantized": ["nf4"], "dtype": "F16"}
    assert read_tensor(session, "half@a", QUERY).dtype == np.float16


def test_progress_counts_codes_and_scales(session, base):
    made = quantize_model(session, base)
    told = {}
    dequantize_model(session, made, progress=lambda phase, done, total: told.update({phase: (done, total)}))
    assert list(told) == ["dequantize", "hash", "store"]
    assert told["dequantize"] == (2 * 12 * 64 * 64 + 4 * 2 * (4 * 64 + 256 + 64),) * 2


@pytest.mark.parametrize(
    ("options", "error"), [({"version": "1"}, ModelExists), ({"name": "a@b"}, InvalidName)], ids=str
)
def test_what_cannot_be_is_refused_before_anything_is_stored(session, base, options, error):
    made = quantize_model(session, base)
    before = counts(session)
    with pytest.raises(error):
        dequantize_model(session, made, **options)
    assert counts(session) == before


def test_numbers_too_large_leave_nothing_behind(session):
    made = of(session, np.full((4, 4), 1e30, np.float32), "int8")
    before = counts(session)
    with pytest.raises(TensorError, match="dequantise it as F32"):
        dequantize_model(session, made, "F16")
    with pytest.raises(TensorError, match="dequantise it as F32"):
        dequantize_tensor(session, made, "w", "F16")
    assert counts(session) == before


def test_another_tools_quantisation_is_not_ours(session):
    create_model(session, "m", {"quantization_config": {"quant_method": "gptq"}}, {"w": weights((4, 4))})
    with pytest.raises(QuantizationError, match="not quantised by arc-halo"):
        dequantize_model(session, "m")
    with pytest.raises(QuantizationError, match="read_tensor has it"):
        dequantize_tensor(session, "m", "w")


def test_scales_that_are_not_finite_are_told(session, base):
    made = quantize_model(session, base)
    arrays = {name: array.copy() for name, array in load_model(session, made, cache=False).items()}
    arrays[f"{QUERY}_scale"][3] = np.inf
    damaged = create_model(session, "damaged", made.architecture_config, arrays)
    with pytest.raises(TensorError, match=f"'{QUERY}' has codes or scales that stand for no number"):
        dequantize_tensor(session, damaged, QUERY)


def test_a_model_whose_scales_are_gone(session, base):
    made = quantize_model(session, base)
    arrays = load_model(session, made, cache=False)
    del arrays[f"{QUERY}_scale"]
    damaged = create_model(session, "damaged", made.architecture_config, arrays)
    with pytest.raises(ModelFolderError, match=f"describes '{QUERY}' as int8"):
        dequantize_model(session, damaged)
