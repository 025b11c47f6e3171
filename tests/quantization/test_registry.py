from __future__ import annotations

import pytest

from arc_halo.errors import ConfigurationError
from arc_halo.quantization import SCHEMES, scheme


def test_a_scheme_is_found_by_its_id():
    assert {name: type(scheme(name)).__name__ for name in SCHEMES} == {
        "int8": "Int8", "nf4": "NormalFloat4", "fp8": "Fp8"
    }  # fmt: skip


def test_an_unknown_scheme_is_named_with_those_there_are():
    with pytest.raises(ConfigurationError, match="'int3' is not known; there are int8, nf4, fp8"):
        scheme("int3")
