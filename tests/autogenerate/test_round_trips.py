"""Each kind of change goes up and down, and leaves nothing for a second autogenerate to find."""

from __future__ import annotations

import pytest

from arc_halo.testing.migrations import assert_round_trip
from tests.autogenerate.cases import CASES, declared
from tests.autogenerate.project import new_metadata


@pytest.mark.parametrize("name", CASES)
def test_round_trip(project, name):
    before, after = (declared(name, changed=changed) for changed in (False, True))
    assert_round_trip(project, before, after, rest=new_metadata())
