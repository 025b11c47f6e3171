"""Merged arrays are those that mergekit makes: `tests/golden/merging/make.py` wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from arc_halo.merging import METHODS, given_mask
from tests.merging.arrays import merge

GOLDEN = Path(__file__).parents[1] / "golden" / "merging"
CASES = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def golden(request):
    with np.load(GOLDEN / f"{request.param}.npz") as file:
        found = dict(file)
    return {
        name: array.view(ml_dtypes.bfloat16) if array.dtype == np.uint16 else array for name, array in found.items()
    }


def ours(golden, case, block):
    """float32 numbers."""
    chosen, said = CASES[case]["method"], CASES[case]["parameters"]
    arrays = [golden["base"], *(golden[f"model{index}"] for index in range(3))]
    if chosen == "slerp":
        arrays = [golden["base"], golden["far" if case == "slerp" else "model0"]]
    drawn = [golden[f"{case}.mask{index}"] for index in range(3) if f"{case}.mask{index}" in golden]
    size = arrays[0].size
    masks = [given_mask(np.unpackbits(each, count=size).astype(np.bool_)) for each in drawn]
    return merge(chosen, [each.astype(np.float32) for each in arrays], said, masks=masks, block=block)


def steps_apart(left, right):
    """How many numbers of bfloat16 lie between."""
    ordered = [
        np.where(bits < 0x8000, bits, 0x8000 - bits) for bits in (a.view(np.uint16).astype(int) for a in (left, right))
    ]
    return np.abs(ordered[0] - ordered[1])


@pytest.mark.parametrize("block", [1 << 20, 64, 7])
@pytest.mark.parametrize("case", CASES)
def test_results_are_those_of_mergekit(golden, case, block):
    wanted, found = golden[f"{case}.result"], ours(golden, case, block)
    if wanted.dtype == np.float32:
        assert np.abs(found - wanted).max() <= 1e-6
    else:
        assert steps_apart(found.astype(ml_dtypes.bfloat16), wanted).max() <= 1


def test_every_method_has_a_case():
    assert {each["method"] for each in CASES.values()} == set(METHODS)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(("linear", "slerp"))])
def test_what_mergekit_computes_in_float32_is_equal_where_it_is_asked_for_bfloat16_too(golden, case):
    if f"{case}.native" in golden:
        found = ours(golden, case, 64).astype(ml_dtypes.bfloat16)
        assert steps_apart(found, golden[f"{case}.native"]).max() <= 1
