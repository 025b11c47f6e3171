from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from arc_halo.database.backoff import LONGEST_SECONDS, delays


@given(st.integers(1, 40))
def test_one_wait_less_than_attempts_each_below_a_doubling_ceiling(attempts):
    waits = list(delays(attempts))
    assert len(waits) == attempts - 1
    assert all(0 <= wait <= min(LONGEST_SECONDS, 0.25 * 2**n) for n, wait in enumerate(waits))


def test_clients_that_failed_together_do_not_return_together():
    assert len({tuple(delays(3)) for _ in range(20)}) == 20
