"""Each kind of change goes up and down, and leaves nothing for a second autogenerate to find."""

from __future__ import annotations

import pytest

from tests.autogenerate.cases import CASES, declared
from tests.autogenerate.project import assert_round_trip


@pytest.mark.parametrize("name", CASES)
def test_round_trip(project, name):
    assert_round_trip(project, declared(name, changed=False), declared(name, changed=True))
